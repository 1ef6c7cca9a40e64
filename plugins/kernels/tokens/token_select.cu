// One block per row, one thread per score.
//
// The keep-th highest key is found bit by bit: 32 votes of the block, whatever the scores are. Kept are the keys above
// it and, of those equal to it, as many of the first as are still missing. A token's place is the number of kept ones
// before it, which two ballots per warp give for both kinds at once.

#include "token_select.h"

#include "../launch.cuh"
#include "../score_order.cuh"

namespace actvar {
namespace {

constexpr int kMostScores = 1024;
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

__global__ void __launch_bounds__(kMostScores)
    select_kernel(float const* scores, int length, int keep, std::int64_t* indices, std::int32_t* inverse) {
    __shared__ int above_in_warp[kMostScores / kWarp];
    __shared__ int ties_in_warp[kMostScores / kWarp];
    std::int64_t const row = blockIdx.x;
    int const token = static_cast<int>(threadIdx.x);
    int const lane = token % kWarp, warp = token / kWarp, warps = static_cast<int>(blockDim.x) / kWarp;
    std::uint32_t const key = token < length ? score_key(scores[row * length + token]) : 0;

    std::uint32_t threshold = 0;
    for (int bit = 31; bit >= 0; --bit) {
        std::uint32_t const candidate = threshold | 1u << bit;
        if (__syncthreads_count(key >= candidate) >= keep) threshold = candidate;
    }

    bool const above = key > threshold, tie = key == threshold;
    unsigned const above_lanes = __ballot_sync(kAllLanes, above), tie_lanes = __ballot_sync(kAllLanes, tie);
    if (lane == 0) {
        above_in_warp[warp] = __popc(above_lanes);
        ties_in_warp[warp] = __popc(tie_lanes);
    }
    __syncthreads();

    unsigned const lower_lanes = (1u << lane) - 1;
    int above_before = __popc(above_lanes & lower_lanes), ties_before = __popc(tie_lanes & lower_lanes), all_above = 0;
    for (int other = 0; other < warps; ++other) {
        all_above += above_in_warp[other];
        if (other < warp) {
            above_before += above_in_warp[other];
            ties_before += ties_in_warp[other];
        }
    }
    int const ties_kept = keep - all_above;
    bool const kept = above || (tie && ties_before < ties_kept);
    int const place = above_before + min(ties_before, ties_kept);
    if (kept) indices[row * keep + place] = token;
    if (inverse != nullptr && token < length) inverse[row * length + token] = kept ? place : -1;
}

}  // namespace
}  // namespace actvar

cudaError_t actvarTokenSelect(float const* scores, int rows, int length, int keep, std::int64_t* indices,
                              std::int32_t* inverse, cudaStream_t stream) noexcept {
    using namespace actvar;
    if (rows < 0 || keep < 1 || keep > length || length > kMostScores) return cudaErrorInvalidValue;
    int const threads = groups_of(kWarp, length) * kWarp;
    return launch(select_kernel, dim3(static_cast<unsigned>(rows)), threads, stream, scores, length, keep, indices,
                  inverse);
}
