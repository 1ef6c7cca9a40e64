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

// y[i] = x[i + 1] of the block, by way of shared memory; the values are read as they were before, whatever the order.
// Without the second barrier a thread writes what another has yet to read.
template <bool kWaits>
__global__ void shift_kernel(float const* x, float* y) {
    __shared__ float values[kThreads];
    auto const thread = static_cast<int>(threadIdx.x);
    values[thread] = x[thread];
    __syncthreads();
    float const next = values[(thread + 1) % kThreads];
    if (kWaits) __syncthreads();
    values[thread] = -1.0f;
    y[thread] = next;
}

// The sum of a warp's values, by lanes that read each other's.
template <bool kWaits>
__global__ void warp_kernel(float const* x, float* y) {
    __shared__ float values[kThreads];
    auto const thread = static_cast<int>(threadIdx.x);
    values[thread] = x[thread];
    if (kWaits) __syncwarp();
    y[thread] = values[thread ^ 1];
}

// One value more than there is room for, which nobody else has.
template <bool kBeyond>
__global__ void beyond_kernel(float const* x, float* y) {
    __shared__ float values[kThreads];
    auto const thread = static_cast<int>(threadIdx.x);
    values[thread + (kBeyond ? 1 : 0)] = x[thread];
    __syncthreads();
    y[thread] = values[thread];
}

// Plain beside atomic.
template <bool kIsAtomic>
__global__ void count_kernel(float const* x, float* y) {
    __shared__ float count;
    if (threadIdx.x == 0) count = 0.0f;
    __syncthreads();
    if (kIsAtomic)
        atomicAdd(&count, x[threadIdx.x]);
    else
        count += x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = count;
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

// A kernel by its name, with its fault or without.
extern "C" cudaError_t runKernel(char kind, int faulty, float const* x, float* y) {
    auto* const kernel = kind == 's'   ? (faulty ? &shift_kernel<false> : &shift_kernel<true>)
                         : kind == 'w' ? (faulty ? &warp_kernel<false> : &warp_kernel<true>)
                         : kind == 'b' ? (faulty ? &beyond_kernel<true> : &beyond_kernel<false>)
                                       : (faulty ? &count_kernel<false> : &count_kernel<true>);
    return actvar::launch(kernel, dim3(1), kThreads, nullptr, x, y);
}

extern "C" cudaError_t launchEmpty(unsigned x, unsigned y, unsigned z, int threads) {
    return actvar::launch(empty_kernel, dim3(x, y, z), threads, nullptr);
}

extern "C" cudaError_t launchGreedy(float* y) { return actvar::launch(greedy_kernel, dim3(1), 1, nullptr, y); }
