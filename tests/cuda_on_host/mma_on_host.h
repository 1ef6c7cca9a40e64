// Stands in for the instructions of plugins/kernels/experts/mma.cuh: what they do, lane by lane, by the index formulas
// of the PTX ISA. A warp's lanes put what they have on a board, wait for one another, and read what they get.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

#include "bank_conflicts.h"
#include "fibers.h"
#include "watch.h"

namespace cuda_on_host {

struct Board {
    char const* rows[kWarp];
    float a[16][16], b[16][8];
};

// The running warp's. There are two in turn: no lane is further ahead of the others than that.
inline Board& board() {
    static std::vector<Board> boards(2 * 1024 / kWarp);
    return boards[static_cast<std::size_t>(thread_index() / kWarp) * 2 + warp_epoch() % 2];
}

template <typename T>
float half_of(std::uint32_t pair, int half) {
    using Bits = std::conditional_t<std::is_same_v<T, __half>, __half_raw, __nv_bfloat16_raw>;
    Bits bits;
    bits.x = static_cast<std::uint16_t>(pair >> 16 * half);
    return static_cast<float>(T(bits));
}

inline std::uint32_t value_at(char const* row, int column) {
    std::uint16_t bits;
    std::memcpy(&bits, row + column * 2, sizeof bits);
    return bits;
}

}  // namespace cuda_on_host

namespace actvar {

template <bool kTurned>
void ldmatrix_x4(std::uint32_t (&pairs)[4], void const* row) {
    using namespace cuda_on_host;
    if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) {
        std::fprintf(stderr, "a row of a matrix is not aligned\n");
        std::abort();
    }
    touch(row, 16, Access::kRead);
    int const lane = thread_index() % kWarp, group = lane / 4, in_group = lane % 4;
    Board& given = board();
    given.rows[lane] = static_cast<char const*>(row);
    wait_for_warp();
    if (lane % 8 == 0) count_bank_conflicts(given.rows + lane);
    for (int i = 0; i < 4; ++i) {
        char const* const* const matrix = given.rows + 8 * i;
        pairs[i] = kTurned ? value_at(matrix[2 * in_group], group) | value_at(matrix[2 * in_group + 1], group) << 16
                           : value_at(matrix[group], 2 * in_group) | value_at(matrix[group], 2 * in_group + 1) << 16;
    }
}

template <typename T>
void mma_m16n8k16(float (&sums)[4], std::uint32_t const (&a)[4], std::uint32_t b0, std::uint32_t b1) {
    using namespace cuda_on_host;
    int const lane = thread_index() % kWarp, group = lane / 4, in_group = lane % 4;
    Board& given = board();
    for (int i = 0; i < 8; ++i) {
        int const row = i < 2 || (4 <= i && i < 6) ? group : group + 8;
        given.a[row][2 * in_group + (i & 1) + (i < 4 ? 0 : 8)] = half_of<T>(a[i / 2], i % 2);
    }
    for (int i = 0; i < 4; ++i)
        given.b[2 * in_group + (i & 1) + (i < 2 ? 0 : 8)][group] = half_of<T>(i < 2 ? b0 : b1, i % 2);
    wait_for_warp();
    for (int i = 0; i < 4; ++i) {
        int const row = i < 2 ? group : group + 8, column = 2 * in_group + (i & 1);
        for (int k = 0; k < 16; ++k) sums[i] += given.a[row][k] * given.b[k][column];
    }
}

}  // namespace actvar
