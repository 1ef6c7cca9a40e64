// Which experts a token uses, and an order of the tokens in which neighbours use the same ones.

#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "../export.h"

// The active experts of every token: its `active` highest of `experts` scores.
//
// scores  [tokens, experts]  fp32, device; equal scores: the lower expert wins; -0 = +0; NaN counts as highest
// masks   [tokens]           uint32, bit e set where expert e is active
//
// Deterministic; allocates nothing; may be captured. cudaErrorInvalidValue unless 1 <= active <= experts <= 32.
ACTVAR_EXPORT cudaError_t actvarExpertRoute(float const* scores, int tokens, int experts, int active,
                                            std::uint32_t* masks, cudaStream_t stream) noexcept;

// The workspace of actvarExpertOrder in bytes.
ACTVAR_EXPORT std::size_t actvarExpertOrderWorkspace(int tokens, int slices) noexcept;

// The tokens in an order for each slice of the experts, in which neighbours use the same ones: sorted by the Gray code
// whose bit j is the use of the slice's expert j, for its first eight; stable.
//
// Slice s holds the experts from s * size to (s + 1) * size - 1, with size = experts / slices rounded up.
//
// masks      [tokens]          uint32, device
// order      [slices, tokens]  int32: order[s, p] is the token at place p
// workspace  actvarExpertOrderWorkspace bytes, device, of any content, aligned to 4
//
// Deterministic; allocates nothing; may be captured. cudaErrorInvalidValue unless 1 <= slices <= experts <= 32.
ACTVAR_EXPORT cudaError_t actvarExpertOrder(std::uint32_t const* masks, int tokens, int experts, int slices,
                                            std::int32_t* order, void* workspace, cudaStream_t stream) noexcept;
