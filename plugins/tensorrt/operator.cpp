#include "operator.h"

#include <cstring>

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

constexpr char kNamedType = 'T';

std::string wanted(Type type, DataType values) {
    switch (type) {
        case Type::kFp32: return "fp32";
        case Type::kIndices: return "int64";
        default: return type_fits(Type::kValues, values, values) ? type_name(values) : "fp32, fp16 or bf16";
    }
}

}  // namespace

std::string number(std::int64_t value) { return std::to_string(value); }

float float_of(std::int32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

std::string described(Argument const& argument) {
    std::string text = std::string(argument.name) + " [";
    for (char const* letter = argument.shape; *letter != 0; ++letter)
        text += (letter == argument.shape ? "" : ", ") + std::string(1, *letter);
    return text + "]";
}

bool type_fits(Type type, DataType given, DataType values) {
    switch (type) {
        case Type::kFp32: return given == DataType::kFLOAT;
        case Type::kIndices: return given == DataType::kINT64;
        default:
            return given == values &&
                   (given == DataType::kFLOAT || given == DataType::kHALF || given == DataType::kBF16);
    }
}

std::optional<DataType> named_type(Operator const& op, std::vector<std::int32_t> const& attributes) {
    for (std::size_t i = 0; i < op.attributes.size(); ++i) {
        if (op.attributes[i].letter != kNamedType) continue;
        switch (attributes[i]) {
            case 1: return DataType::kFLOAT;
            case 10: return DataType::kHALF;
            case 16: return DataType::kBF16;
        }
    }
    return std::nullopt;
}

DataType values_type(Operator const& op, std::vector<std::int32_t> const& attributes, DataType const* types) {
    for (std::size_t i = 0; i < op.inputs.size(); ++i)
        if (op.inputs[i].type == Type::kValues) return types[i];
    return named_type(op, attributes).value_or(DataType::kFLOAT);
}

std::string type_fault(Operator const& op, std::vector<std::int32_t> const& attributes, DataType const* types,
                       int count) {
    if (count != static_cast<int>(op.inputs.size()))
        return "takes " + number(static_cast<std::int64_t>(op.inputs.size())) + " inputs, not " + number(count);
    DataType const values = values_type(op, attributes, types);
    for (int i = 0; i < count; ++i) {
        Argument const& input = op.inputs[static_cast<std::size_t>(i)];
        if (!type_fits(input.type, types[i], values))
            return std::string(input.name) + " must be " + wanted(input.type, values) + ", and is " +
                   type_name(types[i]);
    }
    for (std::size_t i = 0; i < op.attributes.size(); ++i)
        if (op.attributes[i].letter == kNamedType && !named_type(op, attributes))
            return std::string(op.attributes[i].name) + " must be 1 (fp32), 10 (fp16) or 16 (bf16), and is " +
                   number(attributes[i]);
    return "";
}

std::string bind(Operator const& op, Argument const& argument, nvinfer1::Dims const& dims, Sizes& sizes) {
    std::string_view const letters = argument.shape;
    if (dims.nbDims != static_cast<int>(letters.size()))
        return described(argument) + " has " + number(dims.nbDims) + " dimensions";
    for (std::size_t i = 0; i < letters.size(); ++i) {
        std::int64_t const given = dims.d[i];
        if (given < 0) continue;
        if (letters[i] == '1') {
            if (given == 1) continue;
            return described(argument) + " has " + number(given) + " where it must have 1";
        }
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
    for (std::size_t i = 0; i < op.attributes.size(); ++i)
        if (op.attributes[i].letter != kNoLetter) sizes[op.attributes[i].letter] = attributes[i];
    for (std::size_t i = 0; i < op.inputs.size(); ++i) {
        std::string const fault = bind(op, op.inputs[i], inputs[i], sizes);
        if (!fault.empty()) return fault;
    }
    return op.fault(sizes);
}

}  // namespace actvar
