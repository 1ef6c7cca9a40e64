// Moving whole tokens: the kept ones out of their rows, and back into them.
//
// Every byte is read and written once. Tokens are copied 16 bytes at a time where their size and the addresses allow
// it. Deterministic; nothing is allocated; both may be captured. cudaErrorInvalidValue for sizes that are negative,
// more than 2^31 - 1 tokens, a token of 2 GiB or more, or a dtype that is none.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../dtype.h"
#include "../export.h"

// kept[r, k] = x[r, indices[r, k]]
//
// x        [rows, length, width]  dtype, device
// indices  [rows, keep]           int64, in 0..length-1; for any other nothing is read, and the token is zeros
// kept     [rows, keep, width]    dtype; must not overlap x
ACTVAR_EXPORT cudaError_t actvarTokenGather(void const* x, std::int64_t const* indices, void* kept, int rows,
                                            int length, int keep, int width, ActvarDtype dtype,
                                            cudaStream_t stream) noexcept;

// y = x, then y[r, indices[r, k]] = updated[r, k]
//
// x        [rows, length, width]  dtype, device
// indices  [rows, keep]           int64, in 0..length-1, in any order; any other is passed over, of equal ones the last
//                                 counts
// updated  [rows, keep, width]    dtype
// y        [rows, length, width]  dtype; may be x, must not overlap `updated`
ACTVAR_EXPORT cudaError_t actvarTokenScatter(void const* x, std::int64_t const* indices, void const* updated, void* y,
                                             int rows, int length, int keep, int width, ActvarDtype dtype,
                                             cudaStream_t stream) noexcept;
