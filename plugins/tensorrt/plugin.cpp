#include "plugin.h"

#include <algorithm>
#include <climits>
#include <exception>
#include <utility>

#include "log.h"

namespace actvar {

using namespace nvinfer1;

namespace {

constexpr std::int32_t kSuccess = 0, kFailure = 1;

// Runs what may run out of memory; TensorRT's interfaces may not throw.
template <typename Result, typename Function>
Result guarded(char const* name, Result otherwise, Function function) noexcept {
    try {
        return function();
    } catch (std::exception const& error) {
        log_error(std::string(name) + ": " + error.what());
        return otherwise;
    }
}

// get(description) of each.
template <typename Descriptions, typename Get>
auto each(Descriptions const* descriptions, std::size_t count, Get get) {
    std::vector<decltype(get(descriptions[0]))> values;
    for (std::size_t i = 0; i < count; ++i) values.push_back(get(descriptions[i]));
    return values;
}

Dims dims_of(PluginTensorDesc const& tensor) { return tensor.dims; }
Dims most_of(DynamicPluginTensorDesc const& tensor) { return tensor.max; }

Dims known_dims(DimsExprs const& given) {
    Dims dims{};
    dims.nbDims = given.nbDims;
    for (std::int32_t i = 0; i < given.nbDims; ++i)
        dims.d[i] = given.d[i]->isConstant() ? given.d[i]->getConstantValue() : -1;
    return dims;
}

// The kernels count in int.
std::string range_fault(Sizes const& sizes, Operator const& op) {
    for (Argument const& input : op.inputs)
        for (char const* letter = input.shape; *letter != 0; ++letter)
            if (sizes[*letter] > INT_MAX) return described(input) + " has a dimension of more than " + number(INT_MAX);
    return "";
}

}  // namespace

Plugin::Plugin(Operator const& op, std::vector<std::int32_t> attributes) : op_(op), attributes_(std::move(attributes)) {
    for (std::size_t i = 0; i < attributes_.size(); ++i) {
        char const* const name = op_.attributes[i].name;
        fields_.emplace_back(name, &attributes_[i], PluginFieldType::kINT32, 1);
        summary_ += (i == 0 ? "" : " ") + std::string(name) + "=" + number(attributes_[i]);
    }
    collection_ = {static_cast<std::int32_t>(fields_.size()), fields_.data()};
}

Plugin::Plugin(Plugin const& other) : Plugin(other.op_, other.attributes_) { tactic_ = other.tactic_; }

IPluginCapability* Plugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
    switch (type) {
        case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
        case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
        case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

IPluginV3* Plugin::clone() noexcept {
    return guarded<IPluginV3*>(op_.name, nullptr, [&] { return new Plugin(*this); });
}

std::int32_t Plugin::report(std::string const& fault) const {
    if (fault.empty()) return kSuccess;
    log_error(std::string(op_.name) + ": " + fault + ".");
    return kFailure;
}

std::int32_t Plugin::getOutputDataTypes(DataType* types, std::int32_t outputs, DataType const* given,
                                        std::int32_t inputs) const noexcept {
    return guarded<std::int32_t>(op_.name, kFailure, [&] {
        std::string const fault = type_fault(op_, attributes_, given, inputs);
        if (!fault.empty()) return report(fault);
        for (std::int32_t i = 0; i < outputs; ++i) {
            Type const type = op_.outputs[static_cast<std::size_t>(i)].type;
            types[i] = type == Type::kIndices ? DataType::kINT64
                       : type == Type::kFp32  ? DataType::kFLOAT
                                              : values_type(op_, attributes_, given);
        }
        return kSuccess;
    });
}

std::int32_t Plugin::getOutputShapes(DimsExprs const* given, std::int32_t, DimsExprs const*, std::int32_t,
                                     DimsExprs* shapes, std::int32_t outputs, IExprBuilder& builder) noexcept {
    return guarded<std::int32_t>(op_.name, kFailure, [&] {
        Sizes sizes;
        std::string const fault = bind_all(op_, attributes_, each(given, op_.inputs.size(), known_dims), sizes);
        if (!fault.empty()) return report(fault);
        auto const size = [&](char letter) {
            if (sizes.known(letter)) return builder.constant(sizes[letter]);
            IDimensionExpr const* expression = nullptr;
            for (std::size_t i = 0; i < op_.inputs.size(); ++i) {
                std::size_t const found = std::string_view(op_.inputs[i].shape).find(letter);
                if (found != std::string_view::npos) expression = given[i].d[found];
            }
            return expression;
        };
        for (std::int32_t i = 0; i < outputs; ++i) {
            std::string_view const letters = op_.outputs[static_cast<std::size_t>(i)].shape;
            shapes[i].nbDims = static_cast<std::int32_t>(letters.size());
            for (std::size_t place = 0; place < letters.size(); ++place) shapes[i].d[place] = size(letters[place]);
        }
        return kSuccess;
    });
}

bool Plugin::supportsFormatCombination(std::int32_t place, DynamicPluginTensorDesc const* tensors, std::int32_t inputs,
                                       std::int32_t) noexcept {
    PluginTensorDesc const& tensor = tensors[place].desc;
    Argument const& argument = place < inputs ? op_.inputs[static_cast<std::size_t>(place)]
                                              : op_.outputs[static_cast<std::size_t>(place - inputs)];
    // Only what stands before `place` is set yet.
    DataType values = named_type(op_, attributes_).value_or(tensor.type);
    for (std::int32_t i = std::min(place, inputs) - 1; i >= 0; --i)
        if (op_.inputs[static_cast<std::size_t>(i)].type == Type::kValues) values = tensors[i].desc.type;
    return tensor.format == TensorFormat::kLINEAR && type_fits(argument.type, tensor.type, values);
}

std::int32_t Plugin::configurePlugin(DynamicPluginTensorDesc const* in, std::int32_t, DynamicPluginTensorDesc const*,
                                     std::int32_t) noexcept {
    return guarded<std::int32_t>(op_.name, kFailure, [&] {
        Sizes sizes;
        std::string const fault = bind_all(op_, attributes_, each(in, op_.inputs.size(), most_of), sizes);
        return report(fault.empty() ? range_fault(sizes, op_) : fault);
    });
}

std::size_t Plugin::getWorkspaceSize(DynamicPluginTensorDesc const* in, std::int32_t, DynamicPluginTensorDesc const*,
                                     std::int32_t) const noexcept {
    return guarded<std::size_t>(op_.name, 0, [&] {
        Sizes sizes;
        std::size_t const count = op_.inputs.size();
        if (report(bind_all(op_, attributes_, each(in, count, most_of), sizes)) != kSuccess) return std::size_t{0};
        auto const types = each(in, count, [](DynamicPluginTensorDesc const& tensor) { return tensor.desc.type; });
        DataType const values = values_type(op_, attributes_, types.data());
        std::size_t most = 0;
        for (int tactic = 1; tactic <= op_.tactics; ++tactic)
            most = std::max(most, op_.workspace(sizes, values, tactic));
        return most;
    });
}

std::int32_t Plugin::getValidTactics(std::int32_t* tactics, std::int32_t count) noexcept {
    for (std::int32_t i = 0; i < count; ++i) tactics[i] = i + 1;
    return kSuccess;
}

std::int32_t Plugin::setTactic(std::int32_t tactic) noexcept {
    if (tactic < 0 || tactic > op_.tactics) return report("has no tactic " + number(tactic));
    tactic_ = tactic;
    return kSuccess;
}

std::int32_t Plugin::onShapeChange(PluginTensorDesc const* in, std::int32_t, PluginTensorDesc const*,
                                   std::int32_t) noexcept {
    return guarded<std::int32_t>(op_.name, kFailure, [&] {
        Sizes sizes;
        std::string const fault = bind_all(op_, attributes_, each(in, op_.inputs.size(), dims_of), sizes);
        return report(fault.empty() ? range_fault(sizes, op_) : fault);
    });
}

std::int32_t Plugin::enqueue(PluginTensorDesc const* in, PluginTensorDesc const*, void const* const* inputs,
                             void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
    return guarded<std::int32_t>(op_.name, kFailure, [&] {
        Sizes sizes;
        std::string const fault = bind_all(op_, attributes_, each(in, op_.inputs.size(), dims_of), sizes);
        if (!fault.empty()) return report(fault);
        auto const types = each(in, op_.inputs.size(), [](PluginTensorDesc const& tensor) { return tensor.type; });
        DataType const values = values_type(op_, attributes_, types.data());
        std::size_t const bytes = op_.workspace(sizes, values, tactic_);
        cudaError_t const error = op_.launch({sizes, values, tactic_, inputs, outputs, workspace, bytes, stream});
        return report(error == cudaSuccess ? "" : "CUDA error " + number(error));
    });
}

Creator::Creator(Operator const& op) : op_(op) {
    for (Attribute const& attribute : op_.attributes)
        fields_.emplace_back(attribute.name, nullptr, PluginFieldType::kINT32, 1);
    collection_ = {static_cast<std::int32_t>(fields_.size()), fields_.data()};
}

IPluginV3* Creator::createPlugin(char const*, PluginFieldCollection const* given, TensorRTPhase) noexcept {
    return guarded<IPluginV3*>(op_.name, nullptr, [&]() -> IPluginV3* {
        std::vector<std::int32_t> attributes;
        for (Attribute const& attribute : op_.attributes) {
            PluginField const* found = nullptr;
            for (std::int32_t i = 0; given != nullptr && i < given->nbFields; ++i)
                if (std::string_view(given->fields[i].name) == attribute.name) found = &given->fields[i];
            if (found == nullptr || found->data == nullptr || found->type != PluginFieldType::kINT32 ||
                found->length != 1) {
                log_error(std::string(op_.name) + " needs the attribute " + attribute.name + ", one integer.");
                return nullptr;
            }
            attributes.push_back(*static_cast<std::int32_t const*>(found->data));
        }
        return new Plugin(op_, std::move(attributes));
    });
}

}  // namespace actvar
