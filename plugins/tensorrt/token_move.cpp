// ActVarTokenGather and ActVarTokenScatter: the chosen tokens out of their rows, and back into them.

#include "../kernels/tokens/token_move.h"

#include "tokens.h"
#include "values.h"

namespace actvar {
namespace {

std::string nothing_wrong(Sizes const&) { return ""; }

cudaError_t gather(Call const& call) {
    return actvarTokenGather(call.inputs[0], static_cast<std::int64_t const*>(call.inputs[1]), call.outputs[0],
                             call.sizes.number('R'), call.sizes.number('L'), call.sizes.number('K'),
                             call.sizes.number('C'), kernel_dtype(call.values), call.stream);
}

cudaError_t scatter(Call const& call) {
    return actvarTokenScatter(call.inputs[0], static_cast<std::int64_t const*>(call.inputs[1]), call.inputs[2],
                              call.outputs[0], call.sizes.number('R'), call.sizes.number('L'), call.sizes.number('K'),
                              call.sizes.number('C'), kernel_dtype(call.values), call.stream);
}

}  // namespace

Operator const kTokenGather{
    "ActVarTokenGather",
    {},
    {{"x", "RLC", Type::kValues}, {"indices", "RK", Type::kIndices}},
    {{"kept", "RKC", Type::kValues}},
    nothing_wrong,
    no_workspace,
    gather,
};

Operator const kTokenScatter{
    "ActVarTokenScatter",
    {},
    {{"x", "RLC", Type::kValues}, {"indices", "RK", Type::kIndices}, {"updated", "RKC", Type::kValues}},
    {{"y", "RLC", Type::kValues}},
    scatter_fault,
    no_workspace,
    scatter,
};

}  // namespace actvar
