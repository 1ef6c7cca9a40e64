// ActVarTokenSelect: scores to the places of the highest, ascending.

#include "../kernels/tokens/token_select.h"

#include "tokens.h"

namespace actvar {
namespace {

constexpr int kMostTokens = 1024;

std::string fault(Sizes const& sizes) {
    if (sizes['K'] < 1) return "keep must be at least 1, and is " + number(sizes['K']);
    if (sizes.known('L') && sizes['K'] > sizes['L'])
        return "keep is " + number(sizes['K']) + ", and a row has only " + number(sizes['L']) + " scores";
    if (sizes['L'] > kMostTokens)
        return "a row has " + number(sizes['L']) + " scores, and at most " + number(kMostTokens) + " are supported";
    return "";
}

cudaError_t launch(Call const& call) {
    return actvarTokenSelect(static_cast<float const*>(call.inputs[0]), call.sizes.number('R'), call.sizes.number('L'),
                             call.sizes.number('K'), static_cast<std::int64_t*>(call.outputs[0]), nullptr,
                             call.stream);
}

}  // namespace

Operator const kTokenSelect{
    "ActVarTokenSelect",
    {{"keep", 'K'}},
    {{"scores", "RL", Type::kFp32}},
    {{"indices", "RK", Type::kIndices}},
    fault,
    no_workspace,
    launch,
};

}  // namespace actvar
