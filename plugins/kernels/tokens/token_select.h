// Keeping the best tokens of every row.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../export.h"

// Keeps the `keep` highest of `length` scores per row.
//
// scores   [rows, length]  fp32, device
// indices  [rows, keep]    int64, ascending; equal scores: the lower index wins; -0 = +0; NaN counts as highest
// inverse  [rows, length]  int32, place in `indices`, or -1; may be null
//
// Deterministic; allocates nothing; may be captured. cudaErrorInvalidValue unless 1 <= keep <= length <= 1024.
ACTVAR_EXPORT cudaError_t actvarTokenSelect(float const* scores, int rows, int length, int keep, std::int64_t* indices,
                                            std::int32_t* inverse, cudaStream_t stream) noexcept;
