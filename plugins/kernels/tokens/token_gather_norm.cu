// One block per kept token. Each thread holds eight of its values from the one read to both writes, so that mean and
// variance take two passes over registers and none over memory.
//
// Rounding: a sum's terms are rounded 12 + W times on their way for W warps, so the mean is off by at most (13 + W) u
// times the mean of |x|, u = 2^-24, and that offset enters the variance only by its square. Of a token whose mean is
// small beside its deviation, a normed value is right to some (20 + W) u of its size before it is rounded to its type.

#include "token_gather_norm.h"

#include <climits>

#include "../launch.cuh"
#include "../number.cuh"
#include "token.cuh"

namespace actvar {
namespace {

constexpr int kHeld = 8;  // values per thread
constexpr int kMostThreads = 1024, kMostWarps = kMostThreads / kWarp;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// The sum of all threads' values, the same bits in every thread. `of_warps` is written once per launch.
__device__ float block_sum(float value, float* of_warps) {
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kAllLanes, value, lanes);
    if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = value;
    __syncthreads();
    float sum = 0;
    for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) sum += of_warps[warp];
    return sum;
}

template <typename T, int kPack>
__global__ void __launch_bounds__(kMostThreads)
    gather_norm_kernel(float const* x, std::int64_t const* indices, float const* scale, float const* shift, float* kept,
                       T* normed, int length, int keep, int width, float epsilon) {
    __shared__ float sums[kMostWarps], squares[kMostWarps];
    constexpr int kPacks = kHeld / kPack;
    std::int64_t const token = blockIdx.x, row = token / keep, index = indices[token];
    bool const inside = index >= 0 && index < length;
    std::int64_t const from = inside ? (row * length + index) * width : 0, of_row = row * width, to = token * width;
    int const threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
    auto const column = [=](int p) { return (p * threads + thread) * kPack; };

    Pack<float, kPack> held[kPacks], factor[kPacks], offset[kPacks];
    for (int p = 0; p < kPacks; ++p) {  // all reads before the first write
        held[p] = {};
        if (column(p) >= width) continue;
        if (inside) held[p] = pack<float, kPack>(x + from + column(p));
        factor[p] = pack<float, kPack>(scale + of_row + column(p));
        offset[p] = pack<float, kPack>(shift + of_row + column(p));
    }
    float sum = 0;
    for (int p = 0; p < kPacks; ++p) {
        if (column(p) >= width) continue;
        pack<float, kPack>(kept + to + column(p)) = held[p];
        for (float value : held[p].values) sum += value;
    }
    float const mean = block_sum(sum, sums) / static_cast<float>(width);

    float square = 0;
    for (int p = 0; p < kPacks; ++p) {
        if (column(p) >= width) continue;
        for (float& value : held[p].values) {
            value -= mean;
            square = fmaf(value, value, square);
        }
    }
    float const variance = block_sum(square, squares) / static_cast<float>(width);
    float const reciprocal = 1.0f / sqrtf(variance + epsilon);

    for (int p = 0; p < kPacks; ++p) {
        if (column(p) >= width) continue;
        Pack<T, kPack> result;
        for (int i = 0; i < kPack; ++i) {
            float const unit = held[p].values[i] * reciprocal;
            result.values[i] = from_float<T>(fmaf(unit, 1.0f + factor[p].values[i], offset[p].values[i]));
        }
        pack<T, kPack>(normed + to + column(p)) = result;
    }
}

template <typename T>
cudaError_t gather_norm(float const* x, std::int64_t const* indices, float const* scale, float const* shift,
                        float* kept, void* normed, int rows, int length, int keep, int width, float epsilon,
                        cudaStream_t stream) {
    bool const four = width % 4 == 0 && aligned(x) && aligned(scale) && aligned(shift) && aligned(kept) &&
                      aligned(normed);
    auto const kernel = four ? gather_norm_kernel<T, 4> : gather_norm_kernel<T, 1>;
    auto const blocks = static_cast<unsigned>(rows) * static_cast<unsigned>(keep);
    int const threads = groups_of(kWarp, groups_of(kHeld, width)) * kWarp;
    return launch(kernel, dim3(width == 0 ? 0 : blocks), threads, stream, x, indices, scale, shift, kept,
                  static_cast<T*>(normed), length, keep, width, epsilon);
}

}  // namespace
}  // namespace actvar

cudaError_t actvarTokenGatherNorm(float const* x, std::int64_t const* indices, float const* scale, float const* shift,
                                  float* kept, void* normed, int rows, int length, int keep, int width, float epsilon,
                                  ActvarDtype dtype, cudaStream_t stream) noexcept {
    using namespace actvar;
    if (rows < 0 || length < 0 || keep < 0 || width < 0 || width > kHeld * kMostThreads ||
        static_cast<std::int64_t>(rows) * keep > INT_MAX)
        return cudaErrorInvalidValue;
    auto const run = [&](auto function) {
        return function(x, indices, scale, shift, kept, normed, rows, length, keep, width, epsilon, stream);
    };
    switch (dtype) {
        case kActvarFp32: return run(gather_norm<float>);
        case kActvarFp16: return run(gather_norm<__half>);
        case kActvarBf16: return run(gather_norm<__nv_bfloat16>);
    }
    return cudaErrorInvalidValue;
}
