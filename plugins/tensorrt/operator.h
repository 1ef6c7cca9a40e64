// What an operator is: names, types, shapes, and the kernel behind it. Everything that differs between the plugins.
//
// Shapes are letters, as in export/operators/sparse.py: R rows, L tokens, K kept tokens, C width, N experts, E hidden neurons
// of an expert, A active experts; 1 is itself. A letter that appears twice is one number; an attribute may be a letter
// too, and the attribute T names the type of values that no input has, by ONNX's number. An attribute that is a float is
// no letter; it is kept by its bits.

#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace actvar {

// The numbers behind the letters; -1 where not known yet.
class Sizes {
public:
    Sizes() { values_.fill(-1); }
    std::int64_t& operator[](char letter) { return values_[static_cast<unsigned char>(letter) % values_.size()]; }
    std::int64_t operator[](char letter) const { return values_[static_cast<unsigned char>(letter) % values_.size()]; }
    bool known(char letter) const { return (*this)[letter] >= 0; }
    int number(char letter) const { return static_cast<int>((*this)[letter]); }

private:
    std::array<std::int64_t, 128> values_;
};

enum class Type {
    kFp32,     // whatever the others are
    kIndices,  // int64
    kValues,   // fp32, fp16 or bf16: the same for all of an operator
};

struct Argument {
    char const* name;
    char const* shape;  // one letter per dimension
    Type type;
};

struct Attribute {
    char const* name;
    char letter;
    bool is_float = false;

    nvinfer1::PluginFieldType type() const {
        return is_float ? nvinfer1::PluginFieldType::kFLOAT32 : nvinfer1::PluginFieldType::kINT32;
    }
};

constexpr char kNoLetter = 0;

// What the bits of an attribute mean.
float float_of(std::int32_t bits);

// One execution: tensors in the order of the operator's arguments.
struct Call {
    Sizes sizes;
    nvinfer1::DataType values;
    std::int32_t const* attributes;  // in the operator's order
    void const* const* inputs;
    void* const* outputs;
    void* workspace;
    std::size_t workspace_bytes;
    cudaStream_t stream;
};

struct Operator {
    char const* name;
    std::vector<Attribute> attributes;
    std::vector<Argument> inputs;
    std::vector<Argument> outputs;

    // What is wrong with the sizes that are known, beyond letters that disagree; empty if nothing is.
    std::string (*fault)(Sizes const& sizes);

    // For these sizes and any with fewer rows.
    std::size_t (*workspace)(Sizes const& sizes, nvinfer1::DataType values);

    cudaError_t (*launch)(Call const& call);
};

// All of them.
extern Operator const kTokenSelect, kTokenGather, kTokenScatter, kTokenGatherNorm, kTokenScatterGated, kRoutedFfn;

// "x [R, L, C]", for messages.
std::string described(Argument const& argument);

// The type that the attribute T names; none where an operator has no such attribute, or where it names another type.
std::optional<nvinfer1::DataType> named_type(Operator const& op, std::vector<std::int32_t> const& attributes);

// The type of an operator's values, given those of all inputs.
nvinfer1::DataType values_type(Operator const& op, std::vector<std::int32_t> const& attributes,
                               nvinfer1::DataType const* types);

// What is wrong with the types of all inputs, or with the one that is named; empty if nothing is.
std::string type_fault(Operator const& op, std::vector<std::int32_t> const& attributes,
                       nvinfer1::DataType const* types, int count);

// Whether an argument may have this type, given that of the operator's values.
bool type_fits(Type type, nvinfer1::DataType given, nvinfer1::DataType values);

// Fills in the letters of one shape. Returns what is wrong with it; empty if nothing is.
std::string bind(Operator const& op, Argument const& argument, nvinfer1::Dims const& dims, Sizes& sizes);

// The sizes of all inputs and attributes, of which each letter takes its first known value.
std::string bind_all(Operator const& op, std::vector<std::int32_t> const& attributes,
                     std::vector<nvinfer1::Dims> const& inputs, Sizes& sizes);

// A number in a message.
std::string number(std::int64_t value);

}  // namespace actvar
