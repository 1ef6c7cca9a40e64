// One block's tile of a matrix product: rows of tokens times columns of weights, summed over slabs of 32.
//
// Knows how slabs come into shared memory and how they are multiplied; not which slabs there are, nor what becomes of
// the sums. Two kinds: tensor cores through WMMA for fp16 and bf16, and plain fp32 arithmetic.

#pragma once

#include <cuda_pipeline.h>
#include <mma.h>

#include <cstdint>
#include <type_traits>

#include "../number.cuh"

namespace actvar {

constexpr int kThreads = 256;  // of every tile
constexpr int kWarp = 32;
constexpr int kSlab = 32;      // values of the summed dimension that are in shared memory at a time
constexpr int kPiece = 16;     // bytes that are copied together

// Turing's tensor cores know no bf16; there its kernels are empty, and the launcher refuses.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
template <typename T>
constexpr bool kOnTensorCores = !std::is_same_v<T, __nv_bfloat16>;
#else
template <typename T>
constexpr bool kOnTensorCores = true;
#endif

// A slab of weights lies in shared memory as it does outside: w1 as [column, summed], w2 as [summed, column].
enum class Weights { kByColumn, kBySummed };

// The memory of a tile: two slabs, one being filled while the other is multiplied.
template <typename T, int kRows, int kColumns>
struct TileMemory {
    static constexpr int kPad = kPiece / static_cast<int>(sizeof(T));  // keeps rows on different banks
    static constexpr int kSlabStride = kSlab + kPad;
    static constexpr int kColumnStride = kColumns + kPad;
    static constexpr int kByColumn = kColumns * kSlabStride, kBySummed = kSlab * kColumnStride;

    alignas(32) T tokens[2][kRows * kSlabStride];
    alignas(32) T weights[2][kByColumn > kBySummed ? kByColumn : kBySummed];

    template <Weights kOrder>
    __host__ __device__ static constexpr int weights_stride() {
        return kOrder == Weights::kByColumn ? kSlabStride : kColumnStride;
    }
};

// Sums in the registers of tensor cores. Each warp holds kDown * kAcross squares of 16 by 16.
template <typename T, int kRows_, int kColumns_, int kWarpsDown>
class TensorCoreTile {
public:
    using Element = T;
    static constexpr int kRows = kRows_, kColumns = kColumns_;
    using Memory = TileMemory<T, kRows, kColumns>;

    __device__ TensorCoreTile() {
        for (auto& row : sums_)
            for (auto& sum : row) nvcuda::wmma::fill_fragment(sum, 0.0f);
    }

    // Adds tokens [kRows, kSlab] * weights.
    template <Weights kOrder>
    __device__ void multiply(T const* tokens, T const* weights) {
        if constexpr (kOnTensorCores<T>) {
            for (int k = 0; k < kSlab; k += kSquare) multiply_square<kOrder>(tokens, weights, k);
        }
    }

    // Calls write(row, column, values[kRun]) for the whole tile. All threads must be through with `memory`.
    template <typename Write>
    __device__ void drain(Memory& memory, Write write) {
        constexpr int kStride = kSquare + 4;
        static_assert(sizeof(Memory) >= kThreads / kWarp * kSquare * kStride * sizeof(float));
        float* const square = reinterpret_cast<float*>(&memory) + warp() * kSquare * kStride;
        int const lane = static_cast<int>(threadIdx.x) % kWarp;
        int const row = lane / 2, column = lane % 2 * kRun;
#pragma unroll
        for (int i = 0; i < kDown; ++i)
#pragma unroll
            for (int j = 0; j < kAcross; ++j) {
                nvcuda::wmma::store_matrix_sync(square, sums_[i][j], kStride, nvcuda::wmma::mem_row_major);
                __syncwarp();
                float values[kRun];
                for (int v = 0; v < kRun; ++v) values[v] = square[row * kStride + column + v];
                write(first_row() + i * kSquare + row, first_column() + j * kSquare + column, values);
                __syncwarp();
            }
    }

private:
    static constexpr int kSquare = 16;
    static constexpr int kWarpsAcross = kThreads / kWarp / kWarpsDown;
    static constexpr int kDown = kRows / kWarpsDown / kSquare, kAcross = kColumns / kWarpsAcross / kSquare;
    static_assert(kDown * kWarpsDown * kSquare == kRows && kAcross * kWarpsAcross * kSquare == kColumns);

    // The part of the sum from k on. Unrolled, as sums that are indexed at run time would leave the registers.
    template <Weights kOrder>
    __device__ void multiply_square(T const* tokens, T const* weights, int k) {
        using namespace nvcuda::wmma;
        using Layout = std::conditional_t<kOrder == Weights::kByColumn, col_major, row_major>;
        constexpr int kStride = Memory::template weights_stride<kOrder>();
        fragment<matrix_a, kSquare, kSquare, kSquare, T, row_major> a[kDown];
#pragma unroll
        for (int i = 0; i < kDown; ++i)
            load_matrix_sync(a[i], tokens + (first_row() + i * kSquare) * Memory::kSlabStride + k,
                             Memory::kSlabStride);
#pragma unroll
        for (int j = 0; j < kAcross; ++j) {
            int const column = first_column() + j * kSquare;
            fragment<matrix_b, kSquare, kSquare, kSquare, T, Layout> b;
            int const place = kOrder == Weights::kByColumn ? column * kStride + k : k * kStride + column;
            load_matrix_sync(b, weights + place, kStride);
#pragma unroll
            for (int i = 0; i < kDown; ++i) mma_sync(sums_[i][j], a[i], b, sums_[i][j]);
        }
    }

    __device__ static int warp() { return static_cast<int>(threadIdx.x) / kWarp; }
    __device__ static int first_row() { return warp() / kWarpsAcross * kDown * kSquare; }
    __device__ static int first_column() { return warp() % kWarpsAcross * kAcross * kSquare; }

    nvcuda::wmma::fragment<nvcuda::wmma::accumulator, kSquare, kSquare, kSquare, float> sums_[kDown][kAcross];
};

// Sums in fp32 without tensor cores: each thread holds two runs, in rows 32 apart.
class ScalarTile {
public:
    using Element = float;
    static constexpr int kRows = 64, kColumns = 64;
    using Memory = TileMemory<float, kRows, kColumns>;

    template <Weights kOrder>
    __device__ void multiply(float const* tokens, float const* weights) {
        constexpr int kStride = Memory::weights_stride<kOrder>();
        for (int k = 0; k < kSlab; ++k)
            for (int v = 0; v < kRun; ++v) {
                int const column = first_column() + v;
                int const place = kOrder == Weights::kByColumn ? column * kStride + k : k * kStride + column;
                for (int i = 0; i < kDown; ++i)
                    sums_[i][v] += tokens[row(i) * Memory::kSlabStride + k] * weights[place];
            }
    }

    template <typename Write>
    __device__ void drain(Memory&, Write write) {
        for (int i = 0; i < kDown; ++i) write(row(i), first_column(), sums_[i]);
    }

private:
    static constexpr int kAcross = kColumns / kRun, kRowsApart = kThreads / kAcross, kDown = kRows / kRowsApart;

    __device__ static int row(int i) { return static_cast<int>(threadIdx.x) / kAcross + i * kRowsApart; }
    __device__ static int first_column() { return static_cast<int>(threadIdx.x) % kAcross * kRun; }

    float sums_[kDown][kRun] = {};
};

// A rectangle of a matrix outside: `rows` by `columns` values exist, the rest of what is asked for reads as zeros.
template <typename T>
struct Rectangle {
    T const* first;
    std::int64_t stride;
    int rows, columns;
};

// Starts copying 16 bytes, or zeros where `exists` is false; `any` is then some address that may be read.
template <typename T>
__device__ void copy_piece(T* to, T const* from, bool exists, T const* any) {
    __pipeline_memcpy_async(to, exists ? from : any, kPiece, exists ? 0 : kPiece);
}

// Calls copy(piece) for this thread's part of kPieces pieces: as often in every thread, but for the last time.
template <int kPieces, typename Copy>
__device__ void share_pieces(Copy copy) {
#pragma unroll
    for (int first = 0; first < kPieces; first += kThreads) {
        int const piece = first + static_cast<int>(threadIdx.x);
        if (first + kThreads <= kPieces || piece < kPieces) copy(piece);
    }
}

// Starts copying kHeight by kWidth values of a rectangle to rows that are kStride apart.
template <int kHeight, int kWidth, int kStride, typename T>
__device__ void copy_rectangle(T* to, Rectangle<T> from) {
    constexpr int kValues = kPiece / static_cast<int>(sizeof(T)), kPieces = kWidth / kValues;
    share_pieces<kHeight * kPieces>([&](int piece) {
        int const row = piece / kPieces, column = piece % kPieces * kValues;
        bool const exists = row < from.rows && column < from.columns;
        copy_piece(to + row * kStride + column, from.first + row * from.stride + column, exists, from.first);
    });
}

// Starts copying kSlab values, of which `depth` exist, of the tokens whose numbers are in `rows`; -1 reads as zeros.
template <int kRows, int kStride, typename T>
__device__ void copy_tokens(T* to, T const* first, std::int64_t stride, int const* rows, int depth) {
    constexpr int kValues = kPiece / static_cast<int>(sizeof(T)), kPieces = kSlab / kValues;
    share_pieces<kRows * kPieces>([&](int piece) {
        int const row = piece / kPieces, column = piece % kPieces * kValues;
        bool const exists = rows[row] >= 0 && column < depth;
        copy_piece(to + row * kStride + column, first + rows[row] * stride + column, exists, first);
    });
}

}  // namespace actvar
