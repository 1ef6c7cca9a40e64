// A slice: experts that follow one another and share one order of the tokens. The one place that knows its bounds.

#pragma once

#include <cstdint>

namespace actvar {

constexpr int kMostExperts = 32;  // the bits of a mask
constexpr int kSortedExperts = 8;  // of a slice; more would need a second pass of the sort

struct ExpertSlices {
    int experts;
    int slices;

    __host__ __device__ int size() const { return (experts + slices - 1) / slices; }

    __host__ __device__ int slice_of(int expert) const { return expert / size(); }

    // The slice's experts as bits of a mask; none where the experts before it are all there are.
    __host__ __device__ std::uint32_t bits(int slice) const { return below((slice + 1) * size()) & ~below(slice * size()); }

    // What the slice's tokens are sorted by: the bits of its first experts, below 2^kSortedExperts.
    __host__ __device__ int sort_key(std::uint32_t mask, int slice) const {
        int const first = slice * size();
        if (first >= experts) return 0;
        return static_cast<int>((mask & bits(slice)) >> first & ((1u << kSortedExperts) - 1));
    }

private:
    // The bits of all experts under this one.
    __host__ __device__ std::uint32_t below(int expert) const {
        int const count = expert < experts ? expert : experts;
        return count >= kMostExperts ? 0xFFFFFFFFu : (1u << count) - 1;
    }
};

}  // namespace actvar
