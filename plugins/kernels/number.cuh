// Values of the three dtypes as fp32, and runs of eight of them in 16-byte pieces.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace actvar {

constexpr int kRun = 8;  // values that are written together; widths are multiples of it

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ T from_float(float value);
template <>
__device__ inline float from_float<float>(float value) {
    return value;
}
template <>
__device__ inline __half from_float<__half>(float value) {
    return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
    return __float2bfloat16_rn(value);
}

// Writes eight values to an address that is aligned to 16.
template <typename T>
__device__ void write_run(T* to, float const (&values)[kRun]) {
    alignas(16) T rounded[kRun];
    for (int i = 0; i < kRun; ++i) rounded[i] = from_float<T>(values[i]);
    constexpr int kPieces = kRun * sizeof(T) / sizeof(uint4);
    for (int piece = 0; piece < kPieces; ++piece)
        reinterpret_cast<uint4*>(to)[piece] = reinterpret_cast<uint4 const*>(rounded)[piece];
}

}  // namespace actvar
