#include "operator.h"

namespace actvar {
namespace {

using nvinfer1::DataType;

std::string type_name(DataType type) {
    switch (type) {
        case DataType::kFLOAT: return "fp32";
        case DataType::kHALF: return "fp16";
        case DataType::kBF16: return "bf16";
        case DataType::kINT64: return "int64";
        case DataType::kINT32: return "int32";
        default: return "type " + number(static_cast<std::int64_t>(type));
    }
}

std::string wanted(Type type, DataType values) {
    switch (type) {
        case Type::kScores: return "fp32";
        case Type::kIndices: return "int64";
        default: return type_fits(Type::kValues, values, values) ? type_name(values) : "fp32, fp16 or bf16";
    }
}

}  // namespace

std::string number(std::int64_t value) { return std::to_string(value); }

std::string described(Argument const& argument) {
    std::string text = std::string(argument.name) + " [";
    for (char const* letter = argument.shape; *letter != 0; ++letter)
        text += (letter == argument.shape ? "" : ", ") + std::string(1, *letter);
    return text + "]";
}

bool type_fits(Type type, DataType given, DataType values) {
    switch (type) {
        case Type::kScores: return given == DataType::kFLOAT;
        case Type::kIndices: return given == DataType::kINT64;
        default:
            return given == values &&
                   (given == DataType::kFLOAT || given == DataType::kHALF || given == DataType::kBF16);
    }
}

std::string type_fault(Operator const& op, DataType const* types, int count) {
    if (count != static_cast<int>(op.inputs.size()))
        return "takes " + number(static_cast<std::int64_t>(op.inputs.size())) + " inputs, not " + number(count);
    DataType const* values = nullptr;
    for (int i = 0; i < count; ++i) {
        Argument const& input = op.inputs[static_cast<std::size_t>(i)];
        if (values == nullptr && input.type == Type::kValues) values = &types[i];
        DataType const like = values == nullptr ? types[i] : *values;
        if (!type_fits(input.type, types[i], like))
            return std::string(input.name) + " must be " + wanted(input.type, like) + ", and is " + type_name(types[i]);
    }
    return "";
}

std::string bind(Operator const& op, Argument const& argument, nvinfer1::Dims const& dims, Sizes& sizes) {
    std::string_view const letters = argument.shape;
    if (dims.nbDims != static_cast<int>(letters.size()))
        return described(argument) + " has " + number(dims.nbDims) + " dimensions";
    for (std::size_t i = 0; i < letters.size(); ++i) {
        std::int64_t const given = dims.d[i];
        if (given < 0) continue;
        std::int64_t& size = sizes[letters[i]];
        if (size >= 0 && size != given) {
            std::string known = number(size);
            for (Attribute const& attribute : op.attributes)
                if (attribute.letter == letters[i]) known = std::string(attribute.name) + " = " + known;
            return described(argument) + " has " + letters[i] + " = " + number(given) + ", and elsewhere it is " +
                   known;
        }
        size = given;
    }
    return "";
}

std::string bind_all(Operator const& op, std::vector<std::int32_t> const& attributes,
                     std::vector<nvinfer1::Dims> const& inputs, Sizes& sizes) {
    for (std::size_t i = 0; i < op.attributes.size(); ++i) sizes[op.attributes[i].letter] = attributes[i];
    for (std::size_t i = 0; i < op.inputs.size(); ++i) {
        std::string const fault = bind(op, op.inputs[i], inputs[i], sizes);
        if (!fault.empty()) return fault;
    }
    return op.fault(sizes);
}

}  // namespace actvar
