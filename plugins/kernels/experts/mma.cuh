// A warp's matrices: ldmatrix, which loads them from shared memory, and mma, which multiplies them on tensor cores.
//
// A lane holds pairs of values, the lower address in the lower half of 32 bits. With g = lane / 4 and t = lane % 4, as
// the PTX ISA has it under "Matrix Fragments for mma.m16n8k16":
//
//   matrix [8, 8]   as loaded: row g, columns 2t and 2t + 1; turned: rows 2t and 2t + 1, column g
//   a      [16, 16] pair i: row g + 8 * (i % 2), columns 8 * (i / 2) + 2t and the next
//   b      [16, 8]  pair i: rows 8 * i + 2t and the next, column g
//   sums   [16, 8]  value i: row g + 8 * (i / 2), column 2t + i % 2
//
// All lanes of a warp call these together. bf16 needs compute capability 8.0.

#pragma once

#ifdef __CUDACC__

#include <cstdint>
#include <type_traits>

#include "../number.cuh"

namespace actvar {

// Loads four matrices. Lane 8 * m + r gives the address of row r of matrix m: eight values of 16 bits, aligned to 16.
template <bool kTurned>
__device__ void ldmatrix_x4(std::uint32_t (&pairs)[4], void const* row) {
    auto const address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
    if constexpr (kTurned)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
                     : "r"(address)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
                     : "r"(address)
                     : "memory");
}

// sums += a * b, whose values are of type T; b's pairs are b0 and b1.
template <typename T>
__device__ void mma_m16n8k16(float (&sums)[4], std::uint32_t const (&a)[4], std::uint32_t b0, std::uint32_t b1) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800  // Turing has half of it, for fp16
    static_assert(std::is_same_v<T, __half>);
    for (int half = 0; half < 2; ++half)
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
                     "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                     : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                     : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(half == 0 ? b0 : b1));
#else
    if constexpr (std::is_same_v<T, __half>)
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

}  // namespace actvar

#else
#include <mma_on_host.h>  // the tests', which does the same on a CPU
#endif
