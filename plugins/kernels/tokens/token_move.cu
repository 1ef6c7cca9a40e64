// One warp per token that is written, eight tokens per block.
//
// A scatter writes every token of y once, from `updated` or from x. To know which, a block looks through its row's
// indices for those that fall into its eight tokens: keep * 8 bytes, next to 8 tokens of some 2 KB each.

#include "token_move.h"

#include <climits>

#include "../launch.cuh"
#include "token.cuh"

namespace actvar {
namespace {

template <typename Unit>
__device__ void copy_token(Unit* to, Unit const* from, int units, int lane) {
    for (int unit = lane; unit < units; unit += kWarp) to[unit] = from[unit];
}

template <typename Unit>
__global__ void __launch_bounds__(kThreads) gather_kernel(Unit const* x, std::int64_t const* indices, Unit* kept,
                                                          std::int64_t tokens, int length, int keep, int units) {
    int const lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    std::int64_t const token = static_cast<std::int64_t>(blockIdx.x) * kTokens + warp;
    if (token >= tokens) return;
    std::int64_t const row = token / keep, index = indices[token];
    Unit* const to = kept + token * units;
    if (index >= 0 && index < length) {
        copy_token(to, x + (row * length + index) * units, units, lane);
    } else {
        for (int unit = lane; unit < units; unit += kWarp) to[unit] = Unit{};
    }
}

template <typename Unit>
__global__ void __launch_bounds__(kThreads)
    scatter_kernel(Unit const* x, std::int64_t const* indices, Unit const* updated, Unit* y, int blocks_per_row,
                   int length, int keep, int units) {
    __shared__ int places[kTokens];
    int const lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    std::int64_t const row = blockIdx.x / static_cast<unsigned>(blocks_per_row);
    int const first = static_cast<int>(blockIdx.x % static_cast<unsigned>(blocks_per_row)) * kTokens;
    find_places(places, indices + row * keep, keep, first);
    int const token = first + warp;
    if (token >= length) return;
    std::int64_t const whole = row * length + token;
    Unit const* const from = places[warp] < 0 ? x + whole * units : updated + (row * keep + places[warp]) * units;
    copy_token(y + whole * units, from, units, lane);
}

bool valid(int rows, int length, int keep, int width, ActvarDtype dtype) {
    if (rows < 0 || length < 0 || keep < 0 || width < 0 || actvarBytes(dtype) == 0) return false;
    std::int64_t const most = length > keep ? length : keep;
    return rows * most <= INT_MAX && width <= INT_MAX / actvarBytes(dtype);
}

template <typename Unit>
cudaError_t gather(void const* x, std::int64_t const* indices, void* kept, int rows, int length, int keep, int bytes,
                   cudaStream_t stream) {
    std::int64_t const tokens = static_cast<std::int64_t>(rows) * keep;
    auto const blocks = static_cast<unsigned>(groups_of<std::int64_t>(kTokens, tokens));
    return launch(gather_kernel<Unit>, dim3(blocks), kThreads, stream, static_cast<Unit const*>(x), indices,
                  static_cast<Unit*>(kept), tokens, length, keep, bytes / static_cast<int>(sizeof(Unit)));
}

template <typename Unit>
cudaError_t scatter(void const* x, std::int64_t const* indices, void const* updated, void* y, int rows, int length,
                    int keep, int bytes, cudaStream_t stream) {
    int const blocks_per_row = groups_of(kTokens, length);
    auto const blocks = static_cast<unsigned>(rows) * static_cast<unsigned>(blocks_per_row);
    return launch(scatter_kernel<Unit>, dim3(blocks), kThreads, stream, static_cast<Unit const*>(x), indices,
                  static_cast<Unit const*>(updated), static_cast<Unit*>(y), blocks_per_row, length, keep,
                  bytes / static_cast<int>(sizeof(Unit)));
}

}  // namespace
}  // namespace actvar

cudaError_t actvarTokenGather(void const* x, std::int64_t const* indices, void* kept, int rows, int length, int keep,
                              int width, ActvarDtype dtype, cudaStream_t stream) noexcept {
    using namespace actvar;
    if (!valid(rows, length, keep, width, dtype)) return cudaErrorInvalidValue;
    int const bytes = width * actvarBytes(dtype);
    if (bytes % sizeof(uint4) == 0 && aligned(x) && aligned(kept))
        return gather<uint4>(x, indices, kept, rows, length, keep, bytes, stream);
    return gather<std::uint16_t>(x, indices, kept, rows, length, keep, bytes, stream);
}

cudaError_t actvarTokenScatter(void const* x, std::int64_t const* indices, void const* updated, void* y, int rows,
                               int length, int keep, int width, ActvarDtype dtype, cudaStream_t stream) noexcept {
    using namespace actvar;
    if (!valid(rows, length, keep, width, dtype)) return cudaErrorInvalidValue;
    int const bytes = width * actvarBytes(dtype);
    if (bytes % sizeof(uint4) == 0 && aligned(x) && aligned(updated) && aligned(y))
        return scatter<uint4>(x, indices, updated, y, rows, length, keep, bytes, stream);
    return scatter<std::uint16_t>(x, indices, updated, y, rows, length, keep, bytes, stream);
}
