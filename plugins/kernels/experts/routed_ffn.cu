// Plans, workspace and launches of the routed FFN; routed_product.cuh holds the kernels.

#include "routed_ffn.h"

#include <atomic>
#include <climits>

#include "expert_route.h"
#include "routed_product.cuh"

namespace actvar {
namespace {

// Small tiles fill the GPU where there are few tokens; slices do too, and let more experts be skipped where there are
// many, at the price of adding them up. See NOTES.md for what each is expected to be good for.
constexpr ActvarRoutedFfnPlan kPlans[] = {
    {32, kMostExperts, 0}, {32, 4, 0}, {128, 4, 0}, {128, 1, 0}, {128, 1, 1}, {128, 2, 1}, {128, 4, 1},
};
static_assert(sizeof kPlans / sizeof *kPlans == kActvarRoutedFfnTactics);

// What slices add up is kept small: a plan that would need more rows takes fewer slices. Where they let no expert be
// skipped and only fill the GPU, few rows do that, and an engine reserves no more for them.
constexpr std::int64_t kMostSortedRows = 65536, kMostUnsortedRows = 8192;

bool valid(ActvarRoutedFfnShape const& shape) {
    return shape.tokens >= 0 && shape.width > 0 && shape.width % kRun == 0 && shape.hidden > 0 &&
           shape.hidden % kRun == 0 && shape.active >= 1 && shape.active <= shape.experts &&
           shape.experts <= kMostExperts && actvarBytes(shape.dtype) > 0;
}

// Up to these numbers of tokens the default is tactic 1, 3 and 7 or 5. Predicted, not measured: see NOTES.md.
constexpr int kFewTokens = 64, kSomeTokens = 1024, kManyTokens = 8192;

int default_tactic(ActvarRoutedFfnShape const& shape) {
    if (shape.tokens <= kFewTokens) return 1;
    if (shape.tokens <= kSomeTokens) return 3;
    if (2 * shape.active > shape.experts) return 5;
    return shape.tokens <= kManyTokens ? 7 : 6;
}

// A plan for one number of tokens, and the slices that fewer would have.
struct Cut {
    ActvarRoutedFfnPlan plan;
    int most_slices;
    std::int64_t most_rows;  // of all slices' sums, where there are several
};

bool make_cut(ActvarRoutedFfnShape const& shape, int tactic, Cut& cut) {
    if (!valid(shape) || tactic < 0 || tactic > kActvarRoutedFfnTactics) return false;
    cut.plan = kPlans[(tactic == 0 ? default_tactic(shape) : tactic) - 1];
    cut.most_slices = min(cut.plan.slices, shape.experts);
    cut.plan.slices = cut.most_slices;
    cut.most_rows = cut.plan.sorted ? kMostSortedRows : kMostUnsortedRows;
    while (cut.plan.slices > 1 && static_cast<std::int64_t>(cut.plan.slices) * shape.tokens > cut.most_rows)
        cut.plan.slices /= 2;
    if (shape.dtype == kActvarFp32) cut.plan.tile_rows = ScalarTile::kRows;
    return true;
}

// Where the parts of the workspace start, in bytes; each is aligned to 256. No part shrinks with more tokens.
struct Workspace {
    std::size_t masks, order, sort, activations, partials, end;

    Workspace(ActvarRoutedFfnShape const& shape, Cut const& cut) {
        auto const tokens = static_cast<std::size_t>(shape.tokens), width = static_cast<std::size_t>(shape.width);
        auto const slices = static_cast<std::size_t>(cut.most_slices);
        auto const neurons = static_cast<std::size_t>(shape.experts) * static_cast<std::size_t>(shape.hidden);
        auto const bytes = static_cast<std::size_t>(actvarBytes(shape.dtype));
        auto const rows = slices > 1 ? min(slices * tokens, static_cast<std::size_t>(cut.most_rows)) : 0;
        masks = 0;
        order = after(masks, tokens * sizeof(std::uint32_t));
        sort = after(order, cut.plan.sorted ? slices * tokens * sizeof(std::int32_t) : 0);
        activations = after(sort, cut.plan.sorted ? actvarExpertOrderWorkspace(shape.tokens, cut.most_slices) : 0);
        partials = after(activations, tokens * neurons * bytes);
        end = after(partials, rows * width * sizeof(float));
    }

private:
    static std::size_t after(std::size_t start, std::size_t bytes) {
        return groups_of<std::size_t>(256, start + bytes) * 256;
    }
};

template <typename Tile>
cudaError_t launch_hidden(RoutedFfn<typename Tile::Element> const& ffn, cudaStream_t stream) {
    dim3 const grid(static_cast<unsigned>(groups_of(Tile::kRows, ffn.tokens)),
                    static_cast<unsigned>(ffn.slices.experts * groups_of(Tile::kColumns, ffn.hidden)));
    return launch(hidden_kernel<Tile>, grid, kThreads, stream, ffn);
}

template <typename Tile>
cudaError_t launch_output(RoutedFfn<typename Tile::Element> const& ffn, cudaStream_t stream) {
    dim3 const grid(static_cast<unsigned>(groups_of(Tile::kRows, ffn.tokens)),
                    static_cast<unsigned>(groups_of(Tile::kColumns, ffn.width)),
                    static_cast<unsigned>(ffn.slices.slices));
    return launch(output_kernel<Tile>, grid, kThreads, stream, ffn);
}

// The widest tile among those that waste the fewest columns: experts of d20 have 320 neurons, those of d16 256.
int tile_columns(int columns) {
    int best = 160;
    for (int candidate : {128, 64})
        if (groups_of(candidate, columns) * candidate < groups_of(best, columns) * best) best = candidate;
    return best;
}

template <typename T>
using SmallTile = TensorCoreTile<T, 32, 64, 2>;
template <typename T>
using Tile64 = TensorCoreTile<T, 128, 64, 4>;
template <typename T>
using Tile128 = TensorCoreTile<T, 128, 128, 2>;
template <typename T>
using Tile160 = TensorCoreTile<T, 128, 160, 4>;

template <typename T>
cudaError_t launch_products(RoutedFfn<T> const& ffn, int tile_rows, cudaStream_t stream) {
    if (tile_rows == SmallTile<T>::kRows) {
        cudaError_t const error = launch_hidden<SmallTile<T>>(ffn, stream);
        return error != cudaSuccess ? error : launch_output<SmallTile<T>>(ffn, stream);
    }
    int const neurons = tile_columns(ffn.hidden), width = tile_columns(ffn.width);
    cudaError_t const error = neurons == 160   ? launch_hidden<Tile160<T>>(ffn, stream)
                              : neurons == 128 ? launch_hidden<Tile128<T>>(ffn, stream)
                                               : launch_hidden<Tile64<T>>(ffn, stream);
    if (error != cudaSuccess) return error;
    return width == 160   ? launch_output<Tile160<T>>(ffn, stream)
           : width == 128 ? launch_output<Tile128<T>>(ffn, stream)
                          : launch_output<Tile64<T>>(ffn, stream);
}

template <>
cudaError_t launch_products(RoutedFfn<float> const& ffn, int, cudaStream_t stream) {
    cudaError_t const error = launch_hidden<ScalarTile>(ffn, stream);
    return error != cudaSuccess ? error : launch_output<ScalarTile>(ffn, stream);
}

// The tensors of a call, of no type yet.
struct Tensors {
    void const* x;
    float const* scores;
    void const *w1, *b1, *w2, *b2;
    void* y;
    char* workspace;

    bool aligned() const {
        for (void const* address : {x, w1, b1, w2, b2, static_cast<void const*>(scores), static_cast<void const*>(y),
                                    static_cast<void const*>(workspace)})
            if (reinterpret_cast<std::uintptr_t>(address) % kPiece != 0) return false;
        return true;
    }
};

template <typename T>
cudaError_t run(ActvarRoutedFfnShape const& shape, Cut const& cut, Tensors const& tensors, cudaStream_t stream) {
    Workspace const parts(shape, cut);
    ActvarRoutedFfnPlan const& plan = cut.plan;
    auto* const masks = reinterpret_cast<std::uint32_t*>(tensors.workspace + parts.masks);
    auto* const order = plan.sorted ? reinterpret_cast<std::int32_t*>(tensors.workspace + parts.order) : nullptr;
    cudaError_t error = actvarExpertRoute(tensors.scores, shape.tokens, shape.experts, shape.active, masks, stream);
    if (error == cudaSuccess && plan.sorted)
        error = actvarExpertOrder(masks, shape.tokens, shape.experts, plan.slices, order,
                                  tensors.workspace + parts.sort, stream);
    if (error != cudaSuccess) return error;

    RoutedFfn<T> const ffn{shape.tokens,
                           shape.width,
                           shape.hidden,
                           {shape.experts, plan.slices},
                           masks,
                           order,
                           static_cast<T const*>(tensors.x),
                           static_cast<T const*>(tensors.w1),
                           static_cast<T const*>(tensors.b1),
                           static_cast<T const*>(tensors.w2),
                           static_cast<T const*>(tensors.b2),
                           reinterpret_cast<T*>(tensors.workspace + parts.activations),
                           reinterpret_cast<float*>(tensors.workspace + parts.partials),
                           static_cast<T*>(tensors.y)};
    error = launch_products(ffn, plan.tile_rows, stream);
    if (error != cudaSuccess || plan.slices == 1) return error;
    std::int64_t const runs = static_cast<std::int64_t>(shape.tokens) * shape.width / kRun;
    auto const blocks = static_cast<unsigned>(groups_of<std::int64_t>(kThreads, runs));
    return launch(add_slices_kernel<T>, dim3(blocks), kThreads, stream, ffn);
}

// The major number of the current device's compute capability; asked for once per device, as a launch is timed.
cudaError_t capability_major(int& major) {
    constexpr int kRemembered = 64;                   // devices; further ones are asked each time
    static std::atomic<int> majors[kRemembered] = {};  // 0 where it was not asked for yet
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error != cudaSuccess) return error;
    if (device < kRemembered) major = majors[device].load(std::memory_order_relaxed);
    if (device < kRemembered && major != 0) return cudaSuccess;
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (error == cudaSuccess && device < kRemembered) majors[device].store(major, std::memory_order_relaxed);
    return error;
}

// Turing's tensor cores know no bf16.
cudaError_t check_bf16() {
    int major = 0;
    cudaError_t const error = capability_major(major);
    return error != cudaSuccess ? error : major < 8 ? cudaErrorNotSupported : cudaSuccess;
}

}  // namespace
}  // namespace actvar

cudaError_t actvarRoutedFfnPlanOf(ActvarRoutedFfnShape const* shape, int tactic, ActvarRoutedFfnPlan* plan) noexcept {
    actvar::Cut cut{};
    if (!actvar::make_cut(*shape, tactic, cut)) return cudaErrorInvalidValue;
    *plan = cut.plan;
    return cudaSuccess;
}

std::size_t actvarRoutedFfnWorkspace(ActvarRoutedFfnShape const* shape, int tactic) noexcept {
    using namespace actvar;
    std::size_t most = 0;
    for (int last : {kFewTokens, kSomeTokens, kManyTokens, INT_MAX}) {  // the default of fewer tokens may need more
        ActvarRoutedFfnShape fewer = *shape;
        fewer.tokens = min(last, shape->tokens);
        Cut cut{};
        if (!make_cut(fewer, tactic, cut)) return 0;
        most = max(most, Workspace(fewer, cut).end);
    }
    return most;
}

cudaError_t actvarRoutedFfn(ActvarRoutedFfnShape const* shape, int tactic, void const* x, float const* scores,
                            void const* w1, void const* b1, void const* w2, void const* b2, void* y, void* workspace,
                            std::size_t workspace_bytes, cudaStream_t stream) noexcept {
    using namespace actvar;
    Cut cut{};
    if (!make_cut(*shape, tactic, cut) || workspace_bytes < Workspace(*shape, cut).end) return cudaErrorInvalidValue;
    Tensors const tensors{x, scores, w1, b1, w2, b2, y, static_cast<char*>(workspace)};
    if (!tensors.aligned()) return cudaErrorMisalignedAddress;
    if (shape->dtype == kActvarFp32) return run<float>(*shape, cut, tensors, stream);
    if (shape->dtype == kActvarFp16) return run<__half>(*shape, cut, tensors, stream);
    cudaError_t const error = check_bf16();
    return error != cudaSuccess ? error : run<__nv_bfloat16>(*shape, cut, tensors, stream);
}
