// What the kernels on tokens share: values that travel together, and the way from a token to its place among the kept.

#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace actvar {

constexpr int kWarp = 32;
constexpr int kTokens = 8;  // of a row, per block that scatters: one per warp
constexpr int kThreads = kTokens * kWarp;

// Neighbouring values of a token, read or written by one instruction.
template <typename T, int count>
struct alignas(sizeof(T) * count) Pack {
    T values[count];
};

template <typename T, int count>
__device__ Pack<T, count>& pack(T* address) {
    return *reinterpret_cast<Pack<T, count>*>(address);
}
template <typename T, int count>
__device__ Pack<T, count> const& pack(T const* address) {
    return *reinterpret_cast<Pack<T, count> const*>(address);
}

// Of tokens first to first + kTokens - 1, the places in the row's `indices`, or -1. The whole block comes here.
__device__ inline void find_places(int (&places)[kTokens], std::int64_t const* indices, int keep, int first) {
    if (threadIdx.x < kTokens) places[threadIdx.x] = -1;
    __syncthreads();
    for (int k = static_cast<int>(threadIdx.x); k < keep; k += kThreads) {
        std::int64_t const offset = indices[k] - first;
        if (offset >= 0 && offset < kTokens) atomicMax(&places[offset], k);
    }
    __syncthreads();
}

inline bool aligned(void const* address) { return reinterpret_cast<std::uintptr_t>(address) % sizeof(uint4) == 0; }

}  // namespace actvar
