// The changed tokens back into their rows: what a sparse block ends with.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../dtype.h"
#include "../export.h"

// y = x, then y[r, indices[r, k]] = kept[r, k] + gamma[r] * change[r, k], in fp32 with one rounding
//
// x        [rows, length, width]  fp32, device
// indices  [rows, keep]           int64, in 0..length-1, in any order; any other is passed over, of equal ones the last
//                                 counts
// kept     [rows, keep, width]    fp32
// gamma    [rows, width]          fp32
// change   [rows, keep, width]    dtype
// y        [rows, length, width]  fp32; may be x, must not overlap the other inputs
//
// Deterministic; nothing is allocated; may be captured. cudaErrorInvalidValue for sizes that are negative, more than
// 2^31 - 1 tokens, or a dtype that is none.
ACTVAR_EXPORT cudaError_t actvarTokenScatterGated(float const* x, std::int64_t const* indices, float const* kept,
                                                  float const* gamma, void const* change, float* y, int rows,
                                                  int length, int keep, int width, ActvarDtype dtype,
                                                  cudaStream_t stream) noexcept;
