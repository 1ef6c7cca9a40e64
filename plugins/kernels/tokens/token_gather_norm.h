// The kept tokens out of their rows, as they are and normalised: what a sparse block begins with.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../dtype.h"
#include "../export.h"

// kept[r, k]   = x[r, indices[r, k]]
// normed[r, k] = (kept[r, k] - mean) / sqrt(variance + epsilon) * (1 + scale[r]) + shift[r], mean and variance over the
//                token's values, in fp32, and rounded once to dtype (LayerNorm without a factor, then AdaLN)
//
// x        [rows, length, width]  fp32, device
// indices  [rows, keep]           int64, in 0..length-1; for any other nothing is read, and the token is zeros
// scale    [rows, width]          fp32
// shift    [rows, width]          fp32
// kept     [rows, keep, width]    fp32; must not overlap the inputs
// normed   [rows, keep, width]    dtype; must not overlap the inputs
//
// Deterministic; nothing is allocated; may be captured. cudaErrorInvalidValue for sizes that are negative, a width
// above 8192, more than 2^31 - 1 kept tokens, or a dtype that is none.
ACTVAR_EXPORT cudaError_t actvarTokenGatherNorm(float const* x, std::int64_t const* indices, float const* scale,
                                                float const* shift, float* kept, void* normed, int rows, int length,
                                                int keep, int width, float epsilon, ActvarDtype dtype,
                                                cudaStream_t stream) noexcept;
