// One block's tile of a matrix product: rows of tokens times columns of weights, summed over slabs of 32.
//
// Knows how slabs come into shared memory and how they are multiplied; not which slabs there are, nor what becomes of
// the sums. Two kinds: tensor cores for fp16 and bf16, and plain fp32 arithmetic.

#pragma once

#include <cuda_pipeline.h>

#include <cstdint>
#include <type_traits>

#include "../number.cuh"
#include "mma.cuh"

namespace actvar {

constexpr int kThreads = 256;  // of every tile
constexpr int kWarp = 32;
constexpr int kSlab = 32;      // values of the summed dimension that are in shared memory together
constexpr int kPiece = 16;     // bytes that are copied together
constexpr int kSlabMemory = 47 << 10;  // bytes for slabs, of the 48 KB that a block has without asking
constexpr int kMostStages = 4;         // slabs in it: one is multiplied, the others are on their way

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

// Where a value of a slab lies in shared memory, in rows of kWidth values. A row's pieces change places from row to
// row, so that one piece of eight rows, which are read together, lies in eight different banks of 16 bytes; and so do
// eight pieces that follow one another, which are written together.
template <typename T, int kWidth>
__device__ constexpr int place(int row, int column) {
    constexpr int kValues = kPiece / static_cast<int>(sizeof(T)), kPieces = kWidth / kValues;
    constexpr unsigned kTurns = kPieces % 8 == 0 ? 8 : 4;
    static_assert(kPieces % kTurns == 0, "a row fills the banks, or half of them");
    unsigned const turn = static_cast<unsigned>(row) / (8 / kTurns) % kTurns;
    unsigned const piece = static_cast<unsigned>(column) / kValues ^ turn;
    return row * kWidth + static_cast<int>(piece) * kValues + column % kValues;
}

// The memory of a tile: as many slabs as there is room for.
template <typename T, int kRows, int kColumns>
struct TileMemory {
    struct Stage {
        alignas(128) T tokens[kRows * kSlab];
        alignas(128) T weights[kColumns * kSlab];
    };
    static constexpr int kRoom = kSlabMemory / static_cast<int>(sizeof(Stage));
    static constexpr int kStages = kRoom < kMostStages ? kRoom : kMostStages;
    static_assert(kStages >= 2, "one is copied while another is multiplied");
    Stage stages[kStages];
};

// Sums in the registers of tensor cores. Each warp holds kDown * kAcross squares of 16 by 16, each the sums of two mma.
template <typename T, int kRows_, int kColumns_, int kWarpsDown>
class TensorCoreTile {
public:
    using Element = T;
    static constexpr int kRows = kRows_, kColumns = kColumns_;
    using Memory = TileMemory<T, kRows, kColumns>;

    // Adds tokens [kRows, kSlab] * weights.
    template <Weights kOrder>
    __device__ void multiply(typename Memory::Stage const& slab) {
        if constexpr (kOnTensorCores<T>) {
#pragma unroll
            for (int k = 0; k < kSlab; k += kSquare) multiply_square<kOrder>(slab, k);
        }
    }

    // Calls write(row, column, values[kRun]) for the whole tile. All threads must be through with `memory`.
    template <typename Write>
    __device__ void drain(Memory& memory, Write write) const {
        constexpr int kStride = kSquare + 4;
        static_assert(sizeof(Memory) >= kThreads / kWarp * kSquare * kStride * sizeof(float));
        float* const square = reinterpret_cast<float*>(&memory) + warp() * kSquare * kStride;
        int const row = lane() / 2, column = lane() % 2 * kRun;
#pragma unroll
        for (int i = 0; i < kDown; ++i)
#pragma unroll
            for (int j = 0; j < kAcross; ++j) {
                for (int side = 0; side < 2; ++side)
                    for (int v = 0; v < 4; ++v)  // see mma.cuh for the places
                        square[(lane() / 4 + v / 2 * 8) * kStride + side * 8 + lane() % 4 * 2 + v % 2] =
                            sums_[i][j][side][v];
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
    __device__ void multiply_square(typename Memory::Stage const& slab, int k) {
        std::uint32_t a[kDown][4];
#pragma unroll
        for (int i = 0; i < kDown; ++i) {
            int const row = first_row() + i * kSquare;
            ldmatrix_x4<false>(a[i], row_of_square<kSlab, true>(slab.tokens, row, k));
        }
#pragma unroll
        for (int j = 0; j < kAcross; ++j) {
            int const column = first_column() + j * kSquare;
            std::uint32_t b[4];  // of the square's left eight columns, and of its right ones
            if constexpr (kOrder == Weights::kByColumn)
                ldmatrix_x4<false>(b, row_of_square<kSlab, false>(slab.weights, column, k));
            else
                ldmatrix_x4<true>(b, row_of_square<kColumns, true>(slab.weights, k, column));
#pragma unroll
            for (int i = 0; i < kDown; ++i) {
                mma_m16n8k16<T>(sums_[i][j][0], a[i], b[0], b[1]);
                mma_m16n8k16<T>(sums_[i][j][1], a[i], b[2], b[3]);
            }
        }
    }

    // The address that this lane gives for the four matrices of the square at a row and a column, multiples of 16. They
    // are loaded in the order down, then across, or across, then down.
    template <int kWidth, bool kDownFirst>
    __device__ static T const* row_of_square(T const* slab, int row, int column) {
        int const first = lane() / 8 % 2 * 8, second = lane() / kSquare * 8;
        int const down = kDownFirst ? first : second, across = kDownFirst ? second : first;
        return slab + row * kWidth + place<T, kWidth>(lane() % 8 + down, column + across);
    }

    __device__ static int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
    __device__ static int warp() { return static_cast<int>(threadIdx.x) / kWarp; }
    __device__ static int first_row() { return warp() / kWarpsAcross * kDown * kSquare; }
    __device__ static int first_column() { return warp() % kWarpsAcross * kAcross * kSquare; }

    float sums_[kDown][kAcross][2][4] = {};
};

// Sums in fp32 without tensor cores: each thread holds two runs, in rows 32 apart.
class ScalarTile {
public:
    using Element = float;
    static constexpr int kRows = 64, kColumns = 64;
    using Memory = TileMemory<float, kRows, kColumns>;

    template <Weights kOrder>
    __device__ void multiply(Memory::Stage const& slab) {
        for (int k = 0; k < kSlab; ++k)
            for (int v = 0; v < kRun; ++v) {
                int const column = first_column() + v;
                float const weight = slab.weights[kOrder == Weights::kByColumn ? place<float, kSlab>(column, k)
                                                                               : place<float, kColumns>(k, column)];
                for (int i = 0; i < kDown; ++i) sums_[i][v] += slab.tokens[place<float, kSlab>(row(i), k)] * weight;
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

// Starts copying 16 bytes, or zeros where `exists` is false: then nothing is read, whatever the address.
template <typename T>
__device__ void copy_piece(T* to, T const* from, bool exists) {
    __pipeline_memcpy_async(to, from, kPiece, exists ? 0 : kPiece);
}

// Calls copy(row, piece) for this thread's part of kHeight rows of kPieces pieces. Up to eight threads share a row, and
// keep their place in it from row to row.
template <int kHeight, int kPieces, typename Copy>
__device__ void share_pieces(Copy copy) {
    constexpr int kAcross = kPieces < 8 ? kPieces : 8, kDown = kThreads / kAcross;
    int const thread = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int down = 0; down < kHeight; down += kDown)
#pragma unroll
        for (int across = 0; across < kPieces; across += kAcross) {
            int const row = down + thread / kAcross, piece = across + thread % kAcross;
            bool const all = down + kDown <= kHeight && across + kAcross <= kPieces;
            if (all || (row < kHeight && piece < kPieces)) copy(row, piece);
        }
}

// Starts copying kHeight by kWidth values of a rectangle.
template <int kHeight, int kWidth, typename T>
__device__ void copy_rectangle(T* to, Rectangle<T> from) {
    constexpr int kValues = kPiece / static_cast<int>(sizeof(T)), kPieces = kWidth / kValues;
    share_pieces<kHeight, kPieces>([&](int row, int piece) {
        int const column = piece * kValues;
        bool const exists = row < from.rows && column < from.columns;
        copy_piece(to + place<T, kWidth>(row, column), from.first + row * from.stride + column, exists);
    });
}

// Starts copying kSlab values, of which `depth` exist, of the tokens whose numbers are in `rows`; -1 reads as zeros.
template <int kRows, typename T>
__device__ void copy_tokens(T* to, T const* first, std::int64_t stride, int const* rows, int depth) {
    constexpr int kValues = kPiece / static_cast<int>(sizeof(T)), kPieces = kSlab / kValues;
    share_pieces<kRows, kPieces>([&](int row, int piece) {
        int const column = piece * kValues;
        bool const exists = rows[row] >= 0 && column < depth;
        copy_piece(to + place<T, kSlab>(row, column), first + rows[row] * stride + column, exists);
    });
}

}  // namespace actvar
