// ActVarTokenGatherNorm and ActVarTokenScatterGated: a sparse block's two ends, with the arithmetic that meets there.

#include "../kernels/tokens/token_gather_norm.h"
#include "../kernels/tokens/token_scatter_gated.h"

#include "tokens.h"
#include "values.h"

namespace actvar {
namespace {

constexpr int kEpsilon = 1;  // of the attributes
constexpr int kMostWidth = 8192;

std::string gather_fault(Sizes const& sizes) {
    if (sizes['C'] > kMostWidth)
        return "a token has " + number(sizes['C']) + " values, and at most " + number(kMostWidth) + " are supported";
    return "";
}

float const* fp32(void const* input) { return static_cast<float const*>(input); }

cudaError_t gather_norm(Call const& call) {
    return actvarTokenGatherNorm(fp32(call.inputs[0]), static_cast<std::int64_t const*>(call.inputs[1]),
                                 fp32(call.inputs[2]), fp32(call.inputs[3]), static_cast<float*>(call.outputs[0]),
                                 call.outputs[1], call.sizes.number('R'), call.sizes.number('L'),
                                 call.sizes.number('K'), call.sizes.number('C'), float_of(call.attributes[kEpsilon]),
                                 kernel_dtype(call.values), call.stream);
}

cudaError_t scatter_gated(Call const& call) {
    return actvarTokenScatterGated(fp32(call.inputs[0]), static_cast<std::int64_t const*>(call.inputs[1]),
                                   fp32(call.inputs[2]), fp32(call.inputs[3]), call.inputs[4],
                                   static_cast<float*>(call.outputs[0]), call.sizes.number('R'),
                                   call.sizes.number('L'), call.sizes.number('K'), call.sizes.number('C'),
                                   kernel_dtype(call.values), call.stream);
}

}  // namespace

Operator const kTokenGatherNorm{
    "ActVarTokenGatherNorm",
    {{"to", 'T'}, {"epsilon", kNoLetter, true}},
    {{"x", "RLC", Type::kFp32},
     {"indices", "RK", Type::kIndices},
     {"scale", "R1C", Type::kFp32},
     {"shift", "R1C", Type::kFp32}},
    {{"kept", "RKC", Type::kFp32}, {"normed", "RKC", Type::kValues}},
    gather_fault,
    no_workspace,
    gather_norm,
};

Operator const kTokenScatterGated{
    "ActVarTokenScatterGated",
    {},
    {{"x", "RLC", Type::kFp32},
     {"indices", "RK", Type::kIndices},
     {"kept", "RKC", Type::kFp32},
     {"gamma", "R1C", Type::kFp32},
     {"change", "RKC", Type::kValues}},
    {{"y", "RLC", Type::kFp32}},
    scatter_fault,
    no_workspace,
    scatter_gated,
};

}  // namespace actvar
