// The feed-forward network of a token's active experts.
//
//   y[m] = b2 + sum over the active experts e of m:  GELU(x[m] * w1[e]^T + b1[e]) * w2[e]
//
// GELU is the tanh form. Sums are fp32; hidden values are rounded to dtype between the two products.

#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "../dtype.h"
#include "../export.h"

struct ActvarRoutedFfnShape {
    int tokens;   // M
    int width;    // C, a multiple of 8
    int hidden;   // de, hidden neurons of one expert, a multiple of 8
    int experts;  // N, at most 32
    int active;   // A, 1 to N
    ActvarDtype dtype;
};

// How the work is cut. A tactic names one; all give the same result but for the order of fp32 sums.
struct ActvarRoutedFfnPlan {
    int tile_rows;  // tokens whose experts are skipped together
    int slices;     // of the experts, each summed by itself
    int sorted;     // 1: every slice has its own order of the tokens, by the experts they use
};

// Tactics are 1 to this number; 0 chooses by the shape.
constexpr int kActvarRoutedFfnTactics = 7;

// The plan of a tactic. cudaErrorInvalidValue for a shape or a tactic that is none.
ACTVAR_EXPORT cudaError_t actvarRoutedFfnPlanOf(ActvarRoutedFfnShape const* shape, int tactic,
                                                ActvarRoutedFfnPlan* plan) noexcept;

// Bytes of workspace for this shape, or any with fewer tokens, by a tactic; 0 for a shape or a tactic that is none.
ACTVAR_EXPORT std::size_t actvarRoutedFfnWorkspace(ActvarRoutedFfnShape const* shape, int tactic) noexcept;

// x          [M, C]      dtype, device
// scores     [M, N]      fp32: the router's; equal scores: the lower expert wins; -0 = +0; NaN counts as highest
// w1         [N, de, C]  dtype: each expert's rows of fc1, [out, in]
// b1         [N, de]     dtype
// w2         [N, de, C]  dtype: each expert's columns of fc2, [in, out]; finite, as 0 * infinity is not 0
// b2         [C]         dtype
// y          [M, C]      dtype; must not overlap x
// workspace  of any content
//
// All addresses aligned to 16. Deterministic: no floating atomics; a token's result does not depend on the others.
// Allocates nothing; may be captured. cudaErrorInvalidValue for a shape that is none or a workspace that is too small,
// cudaErrorMisalignedAddress for an address that is not aligned, cudaErrorNotSupported for bf16 before compute
// capability 8.0.
ACTVAR_EXPORT cudaError_t actvarRoutedFfn(ActvarRoutedFfnShape const* shape, int tactic, void const* x,
                                          float const* scores, void const* w1, void const* b1, void const* w2,
                                          void const* b2, void* y, void* workspace, std::size_t workspace_bytes,
                                          cudaStream_t stream) noexcept;
