// Stands in for the toolkit's header of this name: what the kernels use of it, on fibers.

#pragma once

#include <driver_types.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "fibers.h"
#include "shared_memory.h"
#include "watch.h"

#undef __shared__
#ifdef CUDA_ON_HOST_WATCHED  // a guard before each variable, which is nobody's: see watch.h
#define CUDA_ON_HOST_JOINED(one, other) one##other
#define CUDA_ON_HOST_GUARD(number) [[gnu::used]] static thread_local char CUDA_ON_HOST_JOINED(guard_, number)[64]
#define __shared__ CUDA_ON_HOST_GUARD(__COUNTER__); static thread_local
#else
#define __shared__ static thread_local  // blocks run one after another; see shared_memory.h
#endif
#undef __launch_bounds__
#define __launch_bounds__(...)

using std::max;
using std::min;

struct ThreadIndex {
    struct X {
        operator unsigned() const { return static_cast<unsigned>(cuda_on_host::thread_index()); }
    } x;
};

inline ThreadIndex const threadIdx{};
inline dim3 blockIdx, blockDim, gridDim;

inline void __syncthreads() { cuda_on_host::wait_for_block(0); }
inline int __syncthreads_count(int holds) { return cuda_on_host::wait_for_block(holds != 0); }
inline int __syncthreads_or(int holds) { return cuda_on_host::wait_for_block(holds != 0) != 0; }
inline void __syncwarp(unsigned = 0xFFFFFFFFu) { cuda_on_host::wait_for_warp(); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

inline unsigned __shfl_sync(unsigned, unsigned value, int lane) {
    cuda_on_host::lane_value(cuda_on_host::thread_index() % cuda_on_host::kWarp) = value;
    __syncwarp();
    unsigned const result = cuda_on_host::lane_value(lane);
    __syncwarp();
    return result;
}

inline float __shfl_xor_sync(unsigned mask, float value, int lanes) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits = __shfl_sync(mask, bits, cuda_on_host::thread_index() % cuda_on_host::kWarp ^ lanes);
    std::memcpy(&value, &bits, sizeof bits);
    return value;
}

inline unsigned __ballot_sync(unsigned, int holds) {
    cuda_on_host::lane_value(cuda_on_host::thread_index() % cuda_on_host::kWarp) = holds != 0;
    __syncwarp();
    unsigned result = 0;
    for (int lane = 0; lane < cuda_on_host::kWarp; ++lane) result |= cuda_on_host::lane_value(lane) << lane;
    __syncwarp();
    return result;
}

// Atomics: what their own reads and writes are to the watch is said by `touch`.
#define CUDA_ON_HOST_ATOMIC template <typename T> [[gnu::no_sanitize("thread"), gnu::noinline]]

CUDA_ON_HOST_ATOMIC T atomicAdd(T* to, T value) {
    cuda_on_host::touch(to, sizeof(T), cuda_on_host::Access::kAtomic);
    T const before = *to;
    *to += value;
    return before;
}

CUDA_ON_HOST_ATOMIC T atomicMax(T* to, T value) {
    cuda_on_host::touch(to, sizeof(T), cuda_on_host::Access::kAtomic);
    T const before = *to;
    *to = std::max(before, value);
    return before;
}

CUDA_ON_HOST_ATOMIC T atomicOr(T* to, T value) {
    cuda_on_host::touch(to, sizeof(T), cuda_on_host::Access::kAtomic);
    T const before = *to;
    *to |= value;
    return before;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(cudaLaunchConfig_t const* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
    gridDim = config->gridDim;
    blockDim = config->blockDim;
    constexpr std::uint64_t kMostThreads = 1024, kMostBlocksAcross = (1ull << 31) - 1, kMostBlocksElse = 65535;
    std::uint64_t const threads = std::uint64_t{blockDim.x} * blockDim.y * blockDim.z;
    if (threads == 0 || threads > kMostThreads || gridDim.x > kMostBlocksAcross || gridDim.y > kMostBlocksElse ||
        gridDim.z > kMostBlocksElse)
        return cudaErrorInvalidConfiguration;
    cuda_on_host::SharedMemory const shared = cuda_on_host::shared_memory();
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
                shared.poison();
                cuda_on_host::watch_block(reinterpret_cast<void const*>(kernel));
                cuda_on_host::run_block(static_cast<int>(blockDim.x), [&] { kernel(arguments...); });
            }
    return cuda_on_host::found_fault() ? cudaErrorLaunchFailure : cudaSuccess;
}

inline cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}

// Every attribute that is asked for is the compute capability.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    *value = 8;
    return cudaSuccess;
}
