// One warp per token that is written, eight tokens per block, as in a scatter (token_move.cu). A lane has up to four
// reads of each tensor under way: a token alone is too little to hide the way to memory behind.

#include "token_scatter_gated.h"

#include <climits>

#include "../launch.cuh"
#include "../number.cuh"
#include "token.cuh"

namespace actvar {
namespace {

constexpr int kAhead = 4;

// to[column] = value(column) for all columns of a token, kAhead packs of a lane at a time.
template <int kPack, typename Value>
__device__ void write_token(float* to, int width, int lane, Value value) {
    for (int first = lane * kPack; first < width; first += kWarp * kPack * kAhead) {
        Pack<float, kPack> results[kAhead];
        for (int p = 0; p < kAhead; ++p) {
            int const column = first + p * kWarp * kPack;
            if (column < width) results[p] = value(column);
        }
        for (int p = 0; p < kAhead; ++p) {
            int const column = first + p * kWarp * kPack;
            if (column < width) pack<float, kPack>(to + column) = results[p];
        }
    }
}

template <typename T, int kPack>
__global__ void __launch_bounds__(kThreads)
    scatter_gated_kernel(float const* x, std::int64_t const* indices, float const* kept, float const* gamma,
                         T const* change, float* y, int blocks_per_row, int length, int keep, int width) {
    __shared__ int places[kTokens];
    int const lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    std::int64_t const row = blockIdx.x / static_cast<unsigned>(blocks_per_row);
    int const first = static_cast<int>(blockIdx.x % static_cast<unsigned>(blocks_per_row)) * kTokens;
    find_places(places, indices + row * keep, keep, first);
    if (first + warp >= length) return;
    std::int64_t const whole = (row * length + first + warp) * width;
    if (places[warp] < 0) {
        write_token<kPack>(y + whole, width, lane, [&](int column) { return pack<float, kPack>(x + whole + column); });
        return;
    }
    float const* const of_row = gamma + row * width;
    std::int64_t const place = (row * keep + places[warp]) * width;
    write_token<kPack>(y + whole, width, lane, [&](int column) {
        Pack<float, kPack> sum = pack<float, kPack>(kept + place + column);
        Pack<float, kPack> const gate = pack<float, kPack>(of_row + column);
        Pack<T, kPack> const add = pack<T, kPack>(change + place + column);
        for (int i = 0; i < kPack; ++i) sum.values[i] = fmaf(gate.values[i], to_float(add.values[i]), sum.values[i]);
        return sum;
    });
}

template <typename T>
cudaError_t scatter_gated(float const* x, std::int64_t const* indices, float const* kept, float const* gamma,
                          void const* change, float* y, int rows, int length, int keep, int width,
                          cudaStream_t stream) {
    bool const four = width % 4 == 0 && aligned(x) && aligned(kept) && aligned(gamma) && aligned(change) && aligned(y);
    auto const kernel = four ? scatter_gated_kernel<T, 4> : scatter_gated_kernel<T, 1>;
    int const blocks_per_row = groups_of(kTokens, length);
    auto const blocks = static_cast<unsigned>(rows) * static_cast<unsigned>(blocks_per_row);
    return launch(kernel, dim3(blocks), kThreads, stream, x, indices, kept, gamma, static_cast<T const*>(change), y,
                  blocks_per_row, length, keep, width);
}

}  // namespace
}  // namespace actvar

cudaError_t actvarTokenScatterGated(float const* x, std::int64_t const* indices, float const* kept, float const* gamma,
                                    void const* change, float* y, int rows, int length, int keep, int width,
                                    ActvarDtype dtype, cudaStream_t stream) noexcept {
    using namespace actvar;
    if (rows < 0 || length < 0 || keep < 0 || width < 0 || static_cast<std::int64_t>(rows) * length > INT_MAX)
        return cudaErrorInvalidValue;
    auto const run = [&](auto function) {
        return function(x, indices, kept, gamma, change, y, rows, length, keep, width, stream);
    };
    switch (dtype) {
        case kActvarFp32: return run(scatter_gated<float>);
        case kActvarFp16: return run(scatter_gated<__half>);
        case kActvarBf16: return run(scatter_gated<__nv_bfloat16>);
    }
    return cudaErrorInvalidValue;
}
