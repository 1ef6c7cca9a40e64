// The order of scores: one rule for the tokens that are kept and for the experts that are active.
//
// Of equal scores the lower index comes first; -0 equals +0; NaN is above everything, as torch sorts it.

#pragma once

#include <cstdint>
#include <cstring>

namespace actvar {

// An integer that is larger for a higher score and equal for equal ones. Never 0: that is below every score.
__host__ __device__ inline std::uint32_t score_key(float score) {
    std::uint32_t bits;
    std::memcpy(&bits, &score, sizeof bits);
    std::uint32_t const magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return 0xFFFFFFFFu;  // NaN of either sign
    if (magnitude == 0) return 0x80000000u;
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Whether score a at place i comes before score b at place j.
__host__ __device__ inline bool comes_before(std::uint32_t a, int i, std::uint32_t b, int j) {
    return a > b || (a == b && i < j);
}

}  // namespace actvar
