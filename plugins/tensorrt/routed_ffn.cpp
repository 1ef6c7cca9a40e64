// ActVarRoutedFFN: the sum of each token's best experts. The kernels choose their plan by the shape. TensorRT is
// offered no choice: it would time on buffers of its own, whose equal scores send every token to the same experts.

#include "../kernels/experts/routed_ffn.h"

#include <climits>

#include "operator.h"
#include "values.h"

namespace actvar {
namespace {

constexpr int kMostExperts = 32, kMultiple = 8;

std::string fault(Sizes const& sizes) {
    if (sizes['N'] < 1 || sizes['N'] > kMostExperts)
        return "experts must be 1 to " + number(kMostExperts) + ", and is " + number(sizes['N']);
    if (sizes['A'] < 1 || sizes['A'] > sizes['N'])
        return "active must be 1 to experts = " + number(sizes['N']) + ", and is " + number(sizes['A']);
    for (char const letter : {'C', 'E'})
        if (sizes.known(letter) && (sizes[letter] == 0 || sizes[letter] % kMultiple != 0))
            return (letter == 'C' ? "the width is " : "an expert's number of hidden neurons is ") +
                   number(sizes[letter]) + ", and must be a multiple of " + number(kMultiple);
    if (sizes.known('R') && sizes.known('K') && sizes['K'] > 0 && sizes['R'] > INT_MAX / sizes['K'])
        return "there are more tokens than " + number(INT_MAX);
    return "";
}

ActvarRoutedFfnShape shape_of(Sizes const& sizes, nvinfer1::DataType values) {
    return {sizes.number('R') * sizes.number('K'), sizes.number('C'), sizes.number('E'),
            sizes.number('N'), sizes.number('A'), kernel_dtype(values)};
}

constexpr int kByShape = 0;  // of the kernels' tactics

std::size_t workspace(Sizes const& sizes, nvinfer1::DataType values) {
    ActvarRoutedFfnShape const shape = shape_of(sizes, values);
    return actvarRoutedFfnWorkspace(&shape, kByShape);
}

cudaError_t launch(Call const& call) {
    ActvarRoutedFfnShape const shape = shape_of(call.sizes, call.values);
    return actvarRoutedFfn(&shape, kByShape, call.inputs[0], static_cast<float const*>(call.inputs[1]),
                           call.inputs[2], call.inputs[3], call.inputs[4], call.inputs[5], call.outputs[0],
                           call.workspace, call.workspace_bytes, call.stream);
}

}  // namespace

Operator const kRoutedFfn{
    "ActVarRoutedFFN",
    {{"experts", 'N'}, {"active", 'A'}},
    {{"x", "RKC", Type::kValues},
     {"scores", "RKN", Type::kFp32},
     {"w1", "NEC", Type::kValues},
     {"b1", "NE", Type::kValues},
     {"w2", "NEC", Type::kValues},
     {"b2", "C", Type::kValues}},
    {{"y", "RKC", Type::kValues}},
    fault,
    workspace,
    launch,
};

}  // namespace actvar
