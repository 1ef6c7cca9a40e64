// Route: one warp per token, one lane per expert. A lane counts the scores that come before its own; those that fewer
// than `active` precede are active, and one ballot is the mask.
//
// Order: a counting sort in chunks of 256 tokens. The first kernel counts the keys of every chunk; in the second every
// chunk adds up what lies before each of its keys and puts its tokens there, each after its equals before it.

#include "expert_route.h"

#include "../launch.cuh"
#include "../score_order.cuh"
#include "expert_slice.cuh"

namespace actvar {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kRouteTokens = 8;  // per block
constexpr int kChunk = 256;      // tokens that one block of the sort takes, one per thread
constexpr int kKeys = 1 << kSortedExperts;
static_assert(kKeys == kChunk, "a thread of the sort stands for one token and for one key");

__global__ void __launch_bounds__(kRouteTokens* kWarp)
    route_kernel(float const* scores, int tokens, int experts, int active, std::uint32_t* masks) {
    int const lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    std::int64_t const token = static_cast<std::int64_t>(blockIdx.x) * kRouteTokens + warp;
    if (token >= tokens) return;
    std::uint32_t const key = lane < experts ? score_key(scores[token * experts + lane]) : 0;
    int before = 0;
    for (int other = 0; other < experts; ++other)
        before += comes_before(__shfl_sync(kAllLanes, key, other), other, key, lane);
    unsigned const mask = __ballot_sync(kAllLanes, lane < experts && before < active);
    if (lane == 0) masks[token] = mask;
}

// counts [slices, chunks, kKeys]
__global__ void __launch_bounds__(kChunk)
    count_kernel(std::uint32_t const* masks, int tokens, ExpertSlices slices, std::int32_t* counts) {
    __shared__ int count[kKeys];
    int const slice = static_cast<int>(blockIdx.y), thread = static_cast<int>(threadIdx.x);
    std::int64_t const chunk = blockIdx.x, token = chunk * kChunk + thread;
    count[thread] = 0;
    __syncthreads();
    if (token < tokens) atomicAdd(&count[slices.sort_key(masks[token], slice)], 1);
    __syncthreads();
    counts[(slice * static_cast<std::int64_t>(gridDim.x) + chunk) * kKeys + thread] = count[thread];
}

__global__ void __launch_bounds__(kChunk)
    place_kernel(std::uint32_t const* masks, int tokens, ExpertSlices slices, std::int32_t const* counts,
                 std::int32_t* order) {
    __shared__ int start[kKeys];
    __shared__ int keys[kChunk];
    int const slice = static_cast<int>(blockIdx.y), thread = static_cast<int>(threadIdx.x);
    int const chunk = static_cast<int>(blockIdx.x), chunks = static_cast<int>(gridDim.x);
    std::int64_t const token = static_cast<std::int64_t>(chunk) * kChunk + thread;

    // This thread's key: how many tokens have it, in all chunks and in those before this one.
    int all = 0, before = 0;
    for (int other = 0; other < chunks; ++other) {
        int const count = counts[(static_cast<std::int64_t>(slice) * chunks + other) * kKeys + thread];
        all += count;
        if (other < chunk) before += count;
    }
    start[thread] = all;
    keys[thread] = token < tokens ? slices.sort_key(masks[token], slice) : -1;
    __syncthreads();
    for (int step = 1; step < kKeys; step *= 2) {  // the sum up to each key
        int const lower = thread >= step ? start[thread - step] : 0;
        __syncthreads();
        start[thread] += lower;
        __syncthreads();
    }
    int const first = start[thread] - all + before;
    __syncthreads();
    start[thread] = first;
    __syncthreads();

    if (token >= tokens) return;
    int const key = keys[thread];
    int place = start[key];
    for (int other = 0; other < thread; ++other) place += keys[other] == key;
    order[static_cast<std::int64_t>(slice) * tokens + place] = static_cast<std::int32_t>(token);
}

}  // namespace
}  // namespace actvar

cudaError_t actvarExpertRoute(float const* scores, int tokens, int experts, int active, std::uint32_t* masks,
                              cudaStream_t stream) noexcept {
    using namespace actvar;
    if (tokens < 0 || active < 1 || active > experts || experts > kMostExperts) return cudaErrorInvalidValue;
    auto const blocks = static_cast<unsigned>(groups_of(kRouteTokens, tokens));
    return launch(route_kernel, dim3(blocks), kRouteTokens * kWarp, stream, scores, tokens, experts, active, masks);
}

std::size_t actvarExpertOrderWorkspace(int tokens, int slices) noexcept {
    using namespace actvar;
    if (tokens < 0 || slices < 0) return 0;
    return sizeof(std::int32_t) * kKeys * static_cast<std::size_t>(slices) *
           static_cast<std::size_t>(groups_of(kChunk, tokens));
}

cudaError_t actvarExpertOrder(std::uint32_t const* masks, int tokens, int experts, int slices, std::int32_t* order,
                              void* workspace, cudaStream_t stream) noexcept {
    using namespace actvar;
    if (tokens < 0 || slices < 1 || slices > experts || experts > kMostExperts) return cudaErrorInvalidValue;
    dim3 const grid(static_cast<unsigned>(groups_of(kChunk, tokens)), static_cast<unsigned>(slices));
    ExpertSlices const cut{experts, slices};
    auto* const counts = static_cast<std::int32_t*>(workspace);
    cudaError_t const counted = launch(count_kernel, grid, kChunk, stream, masks, tokens, cut, counts);
    if (counted != cudaSuccess) return counted;
    return launch(place_kernel, grid, kChunk, stream, masks, tokens, cut, counts, order);
}
