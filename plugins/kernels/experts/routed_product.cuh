// The two products of the routed FFN, tile by tile, without the experts that a tile's tokens do not use.
//
//   hidden:  h[slice place, e*de + j] = GELU(x * w1^T + b1) where the token uses expert e, and exactly 0 where not
//   output:  sums of h * w2 over the experts of a slice that the tile uses
//
// Both cut the places of a slice into the same tiles, so what the first leaves out the second does not read.

#pragma once

#include <cmath>

#include "../launch.cuh"
#include "expert_slice.cuh"
#include "tile.cuh"

namespace actvar {

// Everything that both products read and write; the letters are routed_ffn.h's.
template <typename T>
struct RoutedFfn {
    int tokens, width, hidden;
    ExpertSlices slices;
    std::uint32_t const* masks;  // [M]
    std::int32_t const* order;   // [slices, M], or null: place p holds token p
    T const *x, *w1, *b1, *w2, *b2;
    T* activations;   // [M, N * de], rows in the order of each expert's slice
    float* partials;  // [slices, M, C] where there are several slices
    T* y;

    __device__ int token_at(int slice, int place) const {
        if (place >= tokens) return -1;
        return order == nullptr ? place : order[static_cast<std::int64_t>(slice) * tokens + place];
    }
};

// A part of the summed dimension: `depth` values from `start` on.
struct Slab {
    int start, depth;
};

// The slabs of the first product: all of x's width.
class WidthSlabs {
public:
    __host__ __device__ explicit WidthSlabs(int width) : width_(width) {}

    __host__ __device__ bool next(Slab& slab) {
        if (start_ >= width_) return false;
        slab = {start_, min(kSlab, width_ - start_)};
        start_ += kSlab;
        return true;
    }

private:
    int width_, start_ = 0;
};

// The slabs of the second product: the hidden neurons of the experts in a mask, lowest first.
class ExpertSlabs {
public:
    __host__ __device__ ExpertSlabs(std::uint32_t experts, int hidden) : left_(experts), hidden_(hidden) { skip(); }

    __host__ __device__ bool next(Slab& slab) {
        if (left_ == 0) return false;
        slab = {expert_ * hidden_ + within_, min(kSlab, hidden_ - within_)};
        within_ += kSlab;
        if (within_ >= hidden_) {
            left_ &= ~(1u << expert_);
            within_ = 0;
            skip();
        }
        return true;
    }

private:
    __host__ __device__ void skip() {
        while (left_ != 0 && (left_ >> expert_ & 1) == 0) ++expert_;
    }

    std::uint32_t left_;
    int hidden_, expert_ = 0, within_ = 0;
};

// Sums a tile over all slabs: `load(slab, stage)` starts the copies of one. All but the one that is multiplied are
// on their way. Ends with the memory free.
template <Weights kOrder, typename Tile, typename Slabs, typename Load>
__device__ void sum_slabs(Tile& tile, typename Tile::Memory& memory, Slabs slabs, Load load) {
    constexpr int kStages = Tile::Memory::kStages;
    int started = 0;  // slabs whose copies have begun and that are not multiplied yet
    auto const start_next = [&](int stage) {
        Slab slab{};
        if (slabs.next(slab)) {
            load(slab, memory.stages[stage]);
            ++started;
        }
        __pipeline_commit();
    };
#pragma unroll 1
    for (int stage = 0; stage < kStages - 1; ++stage) start_next(stage);
    for (int stage = 0, vacant = kStages - 1; started > 0; --started) {
        __pipeline_wait_prior(kStages - 2);
        __syncthreads();  // the slab is here for all threads, and all are through with the one before it
        start_next(vacant);
        tile.template multiply<kOrder>(memory.stages[stage]);
        vacant = stage;
        stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    __syncthreads();
}

__device__ inline float gelu(float value) {
    constexpr float kRootOf2OverPi = 0.7978845608028654f;
    return 0.5f * value * (1.0f + tanhf(kRootOf2OverPi * (value + 0.044715f * value * value * value)));
}

// Blocks that a multiprocessor has registers for: left to itself the compiler takes more for the widest tile, which
// leaves room for one. Turing's tensor cores want more registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
template <typename Tile>
constexpr int kBlocksAtOnce = 1;
#else
template <typename Tile>
constexpr int kBlocksAtOnce = Tile::kColumns > 64 ? 2 : Tile::kRows > 32 ? 3 : 4;
#endif

// Grid: (tiles of places, experts * tiles of an expert's neurons).
template <typename Tile>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<Tile>) hidden_kernel(RoutedFfn<typename Tile::Element> ffn) {
    using T = typename Tile::Element;
    using Memory = typename Tile::Memory;
    __shared__ Memory memory;
    __shared__ int rows[Tile::kRows];  // the token of each row, or -1 if it does not use the expert
    int const tiles_per_expert = groups_of(Tile::kColumns, ffn.hidden);
    int const expert = static_cast<int>(blockIdx.y) / tiles_per_expert;
    int const first_neuron = static_cast<int>(blockIdx.y) % tiles_per_expert * Tile::kColumns;
    int const first_place = static_cast<int>(blockIdx.x) * Tile::kRows;

    bool used = false;
    for (int row = static_cast<int>(threadIdx.x); row < Tile::kRows; row += kThreads) {
        int const token = ffn.token_at(ffn.slices.slice_of(expert), first_place + row);
        rows[row] = token >= 0 && (ffn.masks[token] >> expert & 1) ? token : -1;
        used |= rows[row] >= 0;
    }
    if (!__syncthreads_or(used)) return;

    std::int64_t const first_weight = static_cast<std::int64_t>(expert) * ffn.hidden + first_neuron;
    T const* const weights = ffn.w1 + first_weight * ffn.width;
    Tile tile;
    sum_slabs<Weights::kByColumn>(tile, memory, WidthSlabs(ffn.width), [&](Slab slab, typename Memory::Stage& to) {
        copy_tokens<Tile::kRows>(to.tokens, ffn.x + slab.start, ffn.width, rows, slab.depth);
        copy_rectangle<Tile::kColumns, kSlab>(
            to.weights, Rectangle<T>{weights + slab.start, ffn.width, ffn.hidden - first_neuron, slab.depth});
    });
    tile.drain(memory, [&](int row, int column, float(&values)[kRun]) {
        if (first_place + row >= ffn.tokens || first_neuron + column >= ffn.hidden) return;
        for (int v = 0; v < kRun; ++v)
            values[v] = rows[row] < 0 ? 0.0f : gelu(values[v] + to_float(ffn.b1[first_weight + column + v]));
        std::int64_t const stride = static_cast<std::int64_t>(ffn.slices.experts) * ffn.hidden;
        write_run(ffn.activations + (first_place + row) * stride + first_weight + column, values);
    });
}

// Grid: (tiles of places, tiles of the width, slices). With one slice it adds b2 and writes y, else it writes partials.
template <typename Tile>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<Tile>) output_kernel(RoutedFfn<typename Tile::Element> ffn) {
    using T = typename Tile::Element;
    using Memory = typename Tile::Memory;
    __shared__ Memory memory;
    __shared__ int tokens[Tile::kRows];  // of each row, or -1 after the last
    __shared__ int places[Tile::kRows];  // the same rows in `activations`
    __shared__ unsigned used;            // the experts of all rows
    int const slice = static_cast<int>(blockIdx.z);
    int const first_column = static_cast<int>(blockIdx.y) * Tile::kColumns;
    int const first_place = static_cast<int>(blockIdx.x) * Tile::kRows;

    if (threadIdx.x == 0) used = 0;
    __syncthreads();
    for (int row = static_cast<int>(threadIdx.x); row < Tile::kRows; row += kThreads) {
        int const token = ffn.token_at(slice, first_place + row);
        tokens[row] = token;
        places[row] = token >= 0 ? first_place + row : -1;
        if (token >= 0) atomicOr(&used, ffn.masks[token]);
    }
    __syncthreads();

    std::int64_t const stride = static_cast<std::int64_t>(ffn.slices.experts) * ffn.hidden;
    ExpertSlabs const slabs(used & ffn.slices.bits(slice), ffn.hidden);
    Tile tile;
    sum_slabs<Weights::kBySummed>(tile, memory, slabs, [&](Slab slab, typename Memory::Stage& to) {
        copy_tokens<Tile::kRows>(to.tokens, ffn.activations + slab.start, stride, places, slab.depth);
        T const* const weights = ffn.w2 + static_cast<std::int64_t>(slab.start) * ffn.width + first_column;
        copy_rectangle<kSlab, Tile::kColumns>(
            to.weights, Rectangle<T>{weights, ffn.width, slab.depth, ffn.width - first_column});
    });
    tile.drain(memory, [&](int row, int column, float(&values)[kRun]) {
        if (tokens[row] < 0 || first_column + column >= ffn.width) return;
        std::int64_t const to = static_cast<std::int64_t>(tokens[row]) * ffn.width + first_column + column;
        if (ffn.slices.slices == 1) {
            for (int v = 0; v < kRun; ++v) values[v] += to_float(ffn.b2[first_column + column + v]);
            write_run(ffn.y + to, values);
        } else {
            write_run(ffn.partials + static_cast<std::int64_t>(slice) * ffn.tokens * ffn.width + to, values);
        }
    });
}

// One thread per run of y: the slices' sums, first to last, and b2.
template <typename T>
__global__ void __launch_bounds__(kThreads) add_slices_kernel(RoutedFfn<T> ffn) {
    std::int64_t const run = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    std::int64_t const values_in_all = static_cast<std::int64_t>(ffn.tokens) * ffn.width, first = run * kRun;
    if (first >= values_in_all) return;
    float sums[kRun] = {};
    for (int slice = 0; slice < ffn.slices.slices; ++slice)
        for (int v = 0; v < kRun; ++v) sums[v] += ffn.partials[slice * values_in_all + first + v];
    for (int v = 0; v < kRun; ++v) sums[v] += to_float(ffn.b2[first % ffn.width + v]);
    write_run(ffn.y + first, sums);
}

}  // namespace actvar
