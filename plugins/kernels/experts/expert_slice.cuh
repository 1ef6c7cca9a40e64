// A slice: experts that follow one another and share one order of the tokens. The one place that knows its bounds.

#pragma once

#include <cstdint>

namespace actvar {

constexpr int kMostExperts = 32;   // the bits of a mask
constexpr int kSortedExperts = 8;  // of a slice; more would need a second pass of the sort and would skip little more

struct ExpertSlices {
    int experts;
    int slices;

    __host__ __device__ int size() const { return (experts + slices - 1) / slices; }

    __host__ __device__ int slice_of(int expert) const { return expert / size(); }

    // The slice's experts as bits of a mask; none where the experts before it are all there are.
    __host__ __device__ std::uint32_t bits(int slice) const {
        return below((slice + 1) * size()) & ~below(slice * size());
    }

    // What the slice's tokens are sorted by, below 2^kSortedExperts: the place of its first experts' bits in the Gray
    // code, in which neighbours differ in one expert. A tile that spans two keys then needs one expert more, not many.
    __host__ __device__ int sort_key(std::uint32_t mask, int slice) const {
        int const first = slice * size();
        if (first >= experts) return 0;
        std::uint32_t key = (mask & bits(slice)) >> first & ((1u << kSortedExperts) - 1);
        for (int shift = 1; shift < kSortedExperts; shift *= 2) key ^= key >> shift;
        return static_cast<int>(key);
    }

private:
    // The bits of all experts under this one.
    __host__ __device__ std::uint32_t below(int expert) const {
        int const count = expert < experts ? expert : experts;
        return count >= kMostExperts ? 0xFFFFFFFFu : (1u << count) - 1;
    }
};

}  // namespace actvar
