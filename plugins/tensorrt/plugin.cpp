#include "plugin.h"

#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstring>
#include <exception>
#include <utility>

#include "log.h"

namespace actvar {

using namespace nvinfer1;

namespace {

constexpr std::int32_t kSuccess = 0, kFailure = 1;

// A message may itself find no memory; then there is none.
void log_fault(char const* name, char const* what) noexcept {
    try {
        log_error(std::string(name) + ": " + what);
    } catch (...) {
        log_error(what);
    }
}

// Runs what may run out of memory; TensorRT's interfaces may not throw.
template <typename Result, typename Function>
Result guarded(char const* name, Result otherwise, Function function) noexcept {
    try {
        return function();
    } catch (std::exception const& error) {
        log_fault(name, error.what());
    } catch (...) {
        log_fault(name, "something was thrown that is no std::exception");
    }
    return otherwise;
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

std::string shown(Attribute const& attribute, std::int32_t bits) {
    if (!attribute.is_float) return number(bits);
    char text[32];
    std::snprintf(text, sizeof text, "%.9g", static_cast<double>(float_of(bits)));  // all of its digits
    return text;
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
        Attribute const& attribute = op_.attributes[i];
        fields_.emplace_back(attribute.name, &attributes_[i], attribute.type(), 1);
        summary_ += (i == 0 ? "" : " ") + std::string(attribute.name) + "=" + shown(attribute, attributes_[i]);
    }
    collection_ = {static_cast<std::int32_t>(fields_.size()), fields_.data()};
}

Plugin::Plugin(Plugin const& other) : Plugin(other.op_, other.attributes_) {}

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

bool Plugin::counts(std::int32_t inputs, std::int32_t outputs) const {
    auto const wanted_inputs = static_cast<std::int32_t>(op_.inputs.size()), wanted_outputs = getNbOutputs();
    if (inputs == wanted_inputs && outputs == wanted_outputs) return true;
    report("has " + number(wanted_inputs) + " inputs and " + number(wanted_outputs) + " outputs, and was given " +
           number(inputs) + " and " + number(outputs));
    return false;
}

std::int32_t Plugin::getOutputDataTypes(DataType* types, std::int32_t outputs, DataType const* given,
                                        std::int32_t inputs) const noexcept {
    return guarded<std::int32_t>(op_.name, kFailure, [&] {
        std::string const fault = type_fault(op_, attributes_, given, inputs);
        if (!fault.empty()) return report(fault);
        if (!counts(inputs, outputs)) return kFailure;
        for (std::int32_t i = 0; i < outputs; ++i) {
            Type const type = op_.outputs[static_cast<std::size_t>(i)].type;
            types[i] = type == Type::kIndices ? DataType::kINT64
                       : type == Type::kFp32  ? DataType::kFLOAT
                                              : values_type(op_, attributes_, given);
        }
        return kSuccess;
    });
}

std::int32_t Plugin::getOutputShapes(DimsExprs const* given, std::int32_t inputs, DimsExprs const*, std::int32_t,
                                     DimsExprs* shapes, std::int32_t outputs, IExprBuilder& builder) noexcept {
    return guarded<std::int32_t>(op_.name, kFailure, [&] {
        if (!counts(inputs, outputs)) return kFailure;
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
                                       std::int32_t outputs) noexcept {
    return guarded(op_.name, false, [&] {
        if (!counts(inputs, outputs) || place < 0 || place >= inputs + outputs) return false;
        PluginTensorDesc const& tensor = tensors[place].desc;
        Argument const& argument = place < inputs ? op_.inputs[static_cast<std::size_t>(place)]
                                                  : op_.outputs[static_cast<std::size_t>(place - inputs)];
        // Only what stands before `place` is set yet.
        DataType values = named_type(op_, attributes_).value_or(tensor.type);
        for (std::int32_t i = std::min(place, inputs) - 1; i >= 0; --i)
            if (op_.inputs[static_cast<std::size_t>(i)].type == Type::kValues) values = tensors[i].desc.type;
        return tensor.format == TensorFormat::kLINEAR && type_fits(argument.type, tensor.type, values);
    });
}

std::int32_t Plugin::configurePlugin(DynamicPluginTensorDesc const* in, std::int32_t inputs,
                                     DynamicPluginTensorDesc const*, std::int32_t outputs) noexcept {
    return guarded<std::int32_t>(op_.name, kFailure, [&] {
        if (!counts(inputs, outputs)) return kFailure;
        Sizes sizes;
        std::string const fault = bind_all(op_, attributes_, each(in, op_.inputs.size(), most_of), sizes);
        return report(fault.empty() ? range_fault(sizes, op_) : fault);
    });
}

std::size_t Plugin::getWorkspaceSize(DynamicPluginTensorDesc const* in, std::int32_t inputs,
                                     DynamicPluginTensorDesc const*, std::int32_t outputs) const noexcept {
    return guarded<std::size_t>(op_.name, 0, [&] {
        if (!counts(inputs, outputs)) return std::size_t{0};
        Sizes sizes;
        if (report(bind_all(op_, attributes_, each(in, op_.inputs.size(), most_of), sizes)) != kSuccess)
            return std::size_t{0};
        auto const types =
            each(in, op_.inputs.size(), [](DynamicPluginTensorDesc const& tensor) { return tensor.desc.type; });
        return op_.workspace(sizes, values_type(op_, attributes_, types.data()));
    });
}

std::int32_t Plugin::setTactic(std::int32_t tactic) noexcept {
    return guarded<std::int32_t>(op_.name, kFailure, [&] {
        return report(tactic == 0 ? "" : "has no tactic " + number(tactic));
    });
}

bool Plugin::Binding::is_of(PluginTensorDesc const* in) const {
    for (std::size_t i = 0; i < shapes.size(); ++i) {
        Dims const &known = shapes[i], &given = in[i].dims;
        if (known.nbDims != given.nbDims || !std::equal(known.d, known.d + known.nbDims, given.d)) return false;
    }
    return !shapes.empty();
}

std::int32_t Plugin::bind_shapes(PluginTensorDesc const* in) {
    Binding binding;
    binding.shapes = each(in, op_.inputs.size(), dims_of);
    std::string const fault = bind_all(op_, attributes_, binding.shapes, binding.sizes);
    if (!fault.empty()) return report(fault);
    std::string const too_large = range_fault(binding.sizes, op_);
    if (!too_large.empty()) return report(too_large);
    auto const types = each(in, op_.inputs.size(), [](PluginTensorDesc const& tensor) { return tensor.type; });
    binding.values = values_type(op_, attributes_, types.data());
    binding.workspace_bytes = op_.workspace(binding.sizes, binding.values);
    binding_ = std::move(binding);
    return kSuccess;
}

std::int32_t Plugin::onShapeChange(PluginTensorDesc const* in, std::int32_t inputs, PluginTensorDesc const*,
                                   std::int32_t outputs) noexcept {
    return guarded<std::int32_t>(op_.name, kFailure,
                                 [&] { return counts(inputs, outputs) ? bind_shapes(in) : kFailure; });
}

std::int32_t Plugin::enqueue(PluginTensorDesc const* in, PluginTensorDesc const*, void const* const* inputs,
                             void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
    return guarded<std::int32_t>(op_.name, kFailure, [&] {
        // onShapeChange has done it; a kernel must not run by other shapes all the same.
        if (!binding_.is_of(in) && bind_shapes(in) != kSuccess) return kFailure;
        cudaError_t const error = op_.launch(
            {binding_.sizes, binding_.values, attributes_.data(), inputs, outputs, workspace,
             binding_.workspace_bytes, stream});
        return error == cudaSuccess ? kSuccess : report("CUDA error " + number(error));
    });
}

Creator::Creator(Operator const& op) : op_(op) {
    for (Attribute const& attribute : op_.attributes)
        fields_.emplace_back(attribute.name, nullptr, attribute.type(), 1);
    collection_ = {static_cast<std::int32_t>(fields_.size()), fields_.data()};
}

IPluginV3* Creator::createPlugin(char const*, PluginFieldCollection const* given, TensorRTPhase) noexcept {
    return guarded<IPluginV3*>(op_.name, nullptr, [&]() -> IPluginV3* {
        std::vector<std::int32_t> attributes;
        for (Attribute const& attribute : op_.attributes) {
            PluginField const* found = nullptr;
            for (std::int32_t i = 0; given != nullptr && i < given->nbFields; ++i)
                if (std::string_view(given->fields[i].name) == attribute.name) found = &given->fields[i];
            if (found == nullptr || found->data == nullptr || found->type != attribute.type() || found->length != 1) {
                log_error(std::string(op_.name) + " needs the attribute " + attribute.name + ", one " +
                          (attribute.is_float ? "float." : "integer."));
                return nullptr;
            }
            std::int32_t bits;
            std::memcpy(&bits, found->data, sizeof bits);
            attributes.push_back(bits);
        }
        return new Plugin(op_, std::move(attributes));
    });
}

}  // namespace actvar
