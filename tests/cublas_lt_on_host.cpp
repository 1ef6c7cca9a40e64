// As much of cuBLASLt's C interface as benchmarks/kernels/cublas_lt.py uses, computed on the host, column by column as cuBLAS
// does. Declared from the manual, so that a wrong order of arguments, attribute or layout shows as a wrong result.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

struct Operation {
    std::int32_t transpose_a = 0;
    std::uint32_t epilogue = 1;
    _Float16 const* bias = nullptr;
};
struct Layout {
    int type;
    std::uint64_t rows, columns;
    std::int64_t lead;
};
struct Preference {
    std::size_t workspace = 0;
};
struct Heuristic {
    std::uint64_t algorithm[8];
    std::size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

constexpr int kInvalid = 7, kNotSupported = 15;
constexpr std::uint64_t kGoodAlgorithm = 42;

float gelu(float x) { return 0.5f * x * (1 + std::tanh(0.7978845608f * (x + 0.044715f * x * x * x))); }

}  // namespace

extern "C" {

int cublasLtCreate(void** handle) {
    *handle = new int(1);
    return 0;
}
int cublasLtDestroy(void* handle) {
    delete static_cast<int*>(handle);
    return 0;
}
int cublasLtMatmulDescCreate(Operation** operation, int compute, int scale) {
    if (compute != 68 || scale != 0) return kInvalid;
    *operation = new Operation;
    return 0;
}
int cublasLtMatmulDescDestroy(Operation* operation) {
    delete operation;
    return 0;
}
int cublasLtMatmulDescSetAttribute(Operation* operation, int attribute, void const* value, std::size_t size) {
    if (attribute == 3 && size == 4) std::memcpy(&operation->transpose_a, value, size);
    else if (attribute == 7 && size == 4) std::memcpy(&operation->epilogue, value, size);
    else if (attribute == 8 && size == 8) std::memcpy(&operation->bias, value, size);
    else return kInvalid;
    return 0;
}
int cublasLtMatrixLayoutCreate(Layout** layout, int type, std::uint64_t rows, std::uint64_t columns, std::int64_t lead) {
    if (type != 2) return kInvalid;
    *layout = new Layout{type, rows, columns, lead};
    return 0;
}
int cublasLtMatrixLayoutDestroy(Layout* layout) {
    delete layout;
    return 0;
}
int cublasLtMatmulPreferenceCreate(Preference** preference) {
    *preference = new Preference;
    return 0;
}
int cublasLtMatmulPreferenceDestroy(Preference* preference) {
    delete preference;
    return 0;
}
int cublasLtMatmulPreferenceSetAttribute(Preference* preference, int attribute, void const* value, std::size_t size) {
    if (attribute != 1 || size != 8) return kInvalid;
    std::memcpy(&preference->workspace, value, size);
    return 0;
}

// The second of three cannot be used, and the third needs more workspace than the first.
int cublasLtMatmulAlgoGetHeuristic(void* handle, Operation* operation, Layout* a, Layout* b, Layout* c, Layout* d,
                                   Preference* preference, int asked, Heuristic* found, int* count) {
    if (!handle || !operation || !a || !b || !c || !d || asked < 3) return kInvalid;
    if (preference->workspace == 0) return kNotSupported;
    for (int i = 0; i < 3; ++i) {
        found[i] = {};
        found[i].algorithm[7] = kGoodAlgorithm + static_cast<std::uint64_t>(i);
        found[i].workspace = i == 2 ? preference->workspace : 0;
        found[i].state = i == 1 ? kNotSupported : 0;
    }
    *count = 3;
    return 0;
}

int cublasLtMatmul(void* handle, Operation* operation, float const* alpha, _Float16 const* a, Layout* a_layout,
                   _Float16 const* b, Layout* b_layout, float const* beta, _Float16 const*, Layout*, _Float16* d,
                   Layout* d_layout, std::uint64_t const* algorithm, void* workspace, std::size_t workspace_bytes,
                   void* stream) {
    bool const known = algorithm[7] == kGoodAlgorithm || algorithm[7] == kGoodAlgorithm + 2;
    if (!handle || *alpha != 1 || *beta != 0 || !known || !workspace || !workspace_bytes || stream != nullptr)
        return kInvalid;
    bool const turned = operation->transpose_a == 1;
    std::uint64_t const rows = turned ? a_layout->columns : a_layout->rows;
    std::uint64_t const depth = turned ? a_layout->rows : a_layout->columns;
    if (rows != d_layout->rows || depth != b_layout->rows || b_layout->columns != d_layout->columns) return kInvalid;
    for (std::uint64_t column = 0; column < d_layout->columns; ++column)
        for (std::uint64_t row = 0; row < rows; ++row) {
            float sum = 0;
            for (std::uint64_t k = 0; k < depth; ++k) {
                std::uint64_t const lead = static_cast<std::uint64_t>(a_layout->lead);
                float const left = static_cast<float>(turned ? a[k + row * lead] : a[row + k * lead]);
                sum += left * static_cast<float>(b[k + column * static_cast<std::uint64_t>(b_layout->lead)]);
            }
            if (operation->epilogue & 4) sum += static_cast<float>(operation->bias[row]);
            if (operation->epilogue & 32) sum = gelu(sum);
            d[row + column * static_cast<std::uint64_t>(d_layout->lead)] = static_cast<_Float16>(sum);
        }
    return 0;
}

}  // extern "C"
