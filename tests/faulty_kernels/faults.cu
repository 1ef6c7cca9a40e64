// Kernels with a fault each, and beside each the same without it: what the stand-in for CUDA must find.

#include <cuda_runtime.h>

#include "../../plugins/kernels/launch.cuh"

namespace {

constexpr int kThreads = 64;

// y[i] = the sum of x over the block, from one partial sum per thread.
template <bool kClears, bool kWaits>
__global__ void sum_kernel(float const* x, float* y) {
    __shared__ float sums[kThreads];
    __shared__ float total;
    auto const thread = static_cast<int>(threadIdx.x);
    if (kClears && thread == 0) total = 0.0f;
    sums[thread] = x[blockIdx.x * kThreads + thread];
    if (kWaits) __syncthreads();
    if (thread == 0)
        for (float const sum : sums) total += sum;
    __syncthreads();
    y[blockIdx.x * kThreads + thread] = total;
}

// 49,152 bytes are what a block may have; these are four more.
__global__ void greedy_kernel(float* y) {
    __shared__ float values[12289];
    values[threadIdx.x] = 1.0f;
    y[threadIdx.x] = values[threadIdx.x];
}

__global__ void empty_kernel() {}

}  // namespace

// 0: no fault; 1: a sum that starts from whatever is there; 2: no barrier.
extern "C" cudaError_t sumBlocks(int fault, float const* x, float* y, int blocks) {
    auto* const kernel = fault == 1   ? &sum_kernel<false, true>
                         : fault == 2 ? &sum_kernel<true, false>
                                      : &sum_kernel<true, true>;
    return actvar::launch(kernel, dim3(static_cast<unsigned>(blocks)), kThreads, nullptr, x, y);
}

extern "C" cudaError_t launchEmpty(unsigned x, unsigned y, unsigned z, int threads) {
    return actvar::launch(empty_kernel, dim3(x, y, z), threads, nullptr);
}

extern "C" cudaError_t launchGreedy(float* y) { return actvar::launch(greedy_kernel, dim3(1), 1, nullptr, y); }
