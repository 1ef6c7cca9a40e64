// The instructions of tensor cores by themselves, and a product of them with a fault in each part of it.

#include <cuda_runtime.h>

#include <cstdint>

#include "../../plugins/kernels/experts/mma.cuh"
#include "../../plugins/kernels/launch.cuh"

namespace {

constexpr int kWarp = 32, kSide = 16;

template <typename T, int kCount>
struct alignas(128) Values {
    T all[kCount];
};

enum Fault { kNone, kSwappedA, kSwappedB, kWrongTurn };

// pairs [32, 4]: what each lane gets of 32 rows of eight values. chosen [32]: the row whose address each lane gives.
template <bool kTurns>
__global__ void load_kernel(std::uint16_t const* values, int const* chosen, std::uint32_t* pairs) {
    __shared__ Values<std::uint16_t, kWarp * 8> rows;
    int const lane = static_cast<int>(threadIdx.x);
    for (int i = 0; i < 8; ++i) rows.all[lane * 8 + i] = values[lane * 8 + i];
    __syncthreads();
    std::uint32_t loaded[4];
    actvar::ldmatrix_x4<kTurns>(loaded, rows.all + chosen[lane] * 8);
    for (int i = 0; i < 4; ++i) pairs[lane * 4 + i] = loaded[i];
}

// a [32, 4], b [32, 2] and sums [32, 4] by lane.
template <typename T>
__global__ void multiply_kernel(std::uint32_t const* a, std::uint32_t const* b, float* sums) {
    auto const lane = static_cast<int>(threadIdx.x);
    std::uint32_t own_a[4];
    float own_sums[4];
    for (int i = 0; i < 4; ++i) own_a[i] = a[lane * 4 + i], own_sums[i] = sums[lane * 4 + i];
    actvar::mma_m16n8k16<T>(own_sums, own_a, b[lane * 2], b[lane * 2 + 1]);
    for (int i = 0; i < 4; ++i) sums[lane * 4 + i] = own_sums[i];
}

// c [16, 8] = a [16, 16] * b [16, 8], which lies as it is or turned, [8, 16]. Rows in shared memory are kStride apart.
template <int kStride>
__global__ void product_kernel(__half const* a, __half const* b, bool b_is_turned, Fault fault, float* c) {
    __shared__ Values<__half, kSide * kStride> a_rows, b_rows;
    int const lane = static_cast<int>(threadIdx.x), b_width = b_is_turned ? kSide : kSide / 2;
    for (int i = lane; i < kSide * kSide; i += kWarp) a_rows.all[i / kSide * kStride + i % kSide] = a[i];
    for (int i = lane; i < kSide * kSide / 2; i += kWarp) b_rows.all[i / b_width * kStride + i % b_width] = b[i];
    __syncthreads();

    std::uint32_t loaded[4], pairs[4];  // two of b's four matrices are the other two again
    actvar::ldmatrix_x4<false>(loaded, a_rows.all + lane % kSide * kStride + lane / kSide * 8);
    int const b_place = b_is_turned ? lane % 8 * kStride + lane / 8 % 2 * 8 : lane % kSide * kStride;
    if (b_is_turned == (fault == kWrongTurn))
        actvar::ldmatrix_x4<true>(pairs, b_rows.all + b_place);
    else
        actvar::ldmatrix_x4<false>(pairs, b_rows.all + b_place);
    int const swap_a = fault == kSwappedA, swap_b = fault == kSwappedB;
    std::uint32_t const own_a[4] = {loaded[swap_a], loaded[1 - swap_a], loaded[2 + swap_a], loaded[3 - swap_a]};
    float sums[4] = {};
    actvar::mma_m16n8k16<__half>(sums, own_a, pairs[swap_b], pairs[1 - swap_b]);
    for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
}

}  // namespace

extern "C" cudaError_t loadMatrices(int turned, std::uint16_t const* values, int const* chosen, std::uint32_t* pairs) {
    auto* const kernel = turned ? &load_kernel<true> : &load_kernel<false>;
    return actvar::launch(kernel, dim3(1), kWarp, nullptr, values, chosen, pairs);
}

extern "C" cudaError_t multiplyMatrices(int is_bf16, std::uint32_t const* a, std::uint32_t const* b, float* sums) {
    auto* const kernel = is_bf16 ? &multiply_kernel<__nv_bfloat16> : &multiply_kernel<__half>;
    return actvar::launch(kernel, dim3(1), kWarp, nullptr, a, b, sums);
}

// Rows of 48 bytes, or of 32, of which eight lie in four of the eight places that banks have for them.
extern "C" cudaError_t productOf(__half const* a, __half const* b, int b_is_turned, int fault, int same_banks,
                                 float* c) {
    auto* const kernel = same_banks ? &product_kernel<16> : &product_kernel<24>;
    return actvar::launch(kernel, dim3(1), kWarp, nullptr, a, b, b_is_turned != 0, static_cast<Fault>(fault), c);
}
