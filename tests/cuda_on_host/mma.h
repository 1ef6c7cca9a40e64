// Stands in for the toolkit's header of this name. Each lane holds its own part of the sums, eight elements of one
// row, of another row than a kernel could guess, as the real places are unknown to it too; and what they are made of.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <type_traits>

#include "fibers.h"

namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

template <typename Use, int m, int n, int k, typename T, typename Layout = void>
struct fragment {
    float values[16][16];
};

template <typename T>
struct fragment<accumulator, 16, 16, 16, T> {
    T values[8];
};

inline int first_element() { return (cuda_on_host::thread_index() * 5 + 3) % cuda_on_host::kWarp * 8; }

// What WMMA asks of an address and of the distance between rows.
template <typename T>
void check_square(T const* address, unsigned stride) {
    if (reinterpret_cast<std::uintptr_t>(address) % 32 == 0 && stride * sizeof(T) % 16 == 0) return;
    std::fprintf(stderr, "a square is not aligned\n");
    std::abort();
}

template <typename T>
void fill_fragment(fragment<accumulator, 16, 16, 16, T>& to, T value) {
    for (T& element : to.values) element = value;
}

// Loads what the lane's own sums are made of: one row of a, or eight columns of b. The rest is not looked at.
template <typename Use, typename T, typename Layout>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, Layout>& to, T const* from, unsigned stride) {
    check_square(from, stride);
    constexpr bool kRowMajor = std::is_same_v<Layout, row_major>, kIsA = std::is_same_v<Use, matrix_a>;
    auto const first = static_cast<unsigned>(first_element()), own_row = first / 16, own_column = first % 16;
    for (unsigned row = kIsA ? own_row : 0; row < (kIsA ? own_row + 1 : 16); ++row)
        for (unsigned column = kIsA ? 0 : own_column; column < (kIsA ? 16 : own_column + 8); ++column)
            to.values[row][column] =
                static_cast<float>(from[kRowMajor ? row * stride + column : column * stride + row]);
}

template <typename T, typename LayoutA, typename LayoutB>
void mma_sync(fragment<accumulator, 16, 16, 16, float>& to, fragment<matrix_a, 16, 16, 16, T, LayoutA> const& a,
              fragment<matrix_b, 16, 16, 16, T, LayoutB> const& b,
              fragment<accumulator, 16, 16, 16, float> const& start) {
    int const row = first_element() / 16, column = first_element() % 16;
    for (int i = 0; i < 8; ++i) {
        float sum = start.values[i];
        for (int k = 0; k < 16; ++k) sum += a.values[row][k] * b.values[k][column + i];
        to.values[i] = sum;
    }
}

inline void store_matrix_sync(float* to, fragment<accumulator, 16, 16, 16, float> const& from, unsigned stride,
                              layout_t) {
    check_square(to, stride);
    auto const first = static_cast<unsigned>(first_element()), row = first / 16, column = first % 16;
    for (unsigned i = 0; i < 8; ++i) to[row * stride + column + i] = from.values[i];
}

}  // namespace nvcuda::wmma
