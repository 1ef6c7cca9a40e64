// The one plugin class, and its creator: TensorRT's interfaces around any Operator.
//
// Nothing here touches CUDA before enqueue. A plan holds an operator's attributes and nothing else.

#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <string>
#include <vector>

#include "operator.h"

namespace actvar {

constexpr char kNamespace[] = "actvar", kVersion[] = "1";

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
public:
    // `attributes` in the operator's order.
    Plugin(Operator const& op, std::vector<std::int32_t> attributes);
    Plugin(Plugin const& other);
    Plugin& operator=(Plugin const&) = delete;

    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    char const* getPluginName() const noexcept override { return op_.name; }
    char const* getPluginVersion() const noexcept override { return kVersion; }
    char const* getPluginNamespace() const noexcept override { return kNamespace; }

    std::int32_t getNbOutputs() const noexcept override { return static_cast<std::int32_t>(op_.outputs.size()); }
    std::int32_t getOutputDataTypes(nvinfer1::DataType* types, std::int32_t outputs, nvinfer1::DataType const* given,
                                    std::int32_t inputs) const noexcept override;
    std::int32_t getOutputShapes(nvinfer1::DimsExprs const* given, std::int32_t inputs,
                                 nvinfer1::DimsExprs const* shape_values, std::int32_t shape_inputs,
                                 nvinfer1::DimsExprs* shapes, std::int32_t outputs,
                                 nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(std::int32_t place, nvinfer1::DynamicPluginTensorDesc const* tensors,
                                   std::int32_t inputs, std::int32_t outputs) noexcept override;
    std::int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, std::int32_t inputs,
                                 nvinfer1::DynamicPluginTensorDesc const* out, std::int32_t outputs) noexcept override;
    std::size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* in, std::int32_t inputs,
                                 nvinfer1::DynamicPluginTensorDesc const* out,
                                 std::int32_t outputs) const noexcept override;
    char const* getTimingCacheID() noexcept override { return summary_.c_str(); }
    char const* getMetadataString() noexcept override { return summary_.c_str(); }

    std::int32_t setTactic(std::int32_t tactic) noexcept override;
    std::int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, std::int32_t inputs,
                               nvinfer1::PluginTensorDesc const* out, std::int32_t outputs) noexcept override;
    std::int32_t enqueue(nvinfer1::PluginTensorDesc const* in, nvinfer1::PluginTensorDesc const* out,
                         void const* const* inputs, void* const* outputs, void* workspace,
                         cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override { return &collection_; }

private:
    // What the shapes of one execution come to.
    struct Binding {
        std::vector<nvinfer1::Dims> shapes;  // of the inputs
        Sizes sizes;
        nvinfer1::DataType values{};
        std::size_t workspace_bytes = 0;

        bool is_of(nvinfer1::PluginTensorDesc const* in) const;
    };

    // Logs a fault under the operator's name; returns TensorRT's code for failure, or for success if there is none.
    std::int32_t report(std::string const& fault) const;

    // Whether there are as many tensors as the operator has; says so if not.
    bool counts(std::int32_t inputs, std::int32_t outputs) const;

    // Sets binding_; may allocate.
    std::int32_t bind_shapes(nvinfer1::PluginTensorDesc const* in);

    Operator const& op_;
    std::vector<std::int32_t> attributes_;
    std::vector<nvinfer1::PluginField> fields_;  // point into attributes_
    nvinfer1::PluginFieldCollection collection_;
    std::string summary_;  // "keep=192"
    Binding binding_;
};

class Creator final : public nvinfer1::IPluginCreatorV3One {
public:
    explicit Creator(Operator const& op);

    // Null, after a message, unless every attribute is there as one int32, or one float where it is one.
    nvinfer1::IPluginV3* createPlugin(char const* name, nvinfer1::PluginFieldCollection const* given,
                                      nvinfer1::TensorRTPhase phase) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return &collection_; }
    char const* getPluginName() const noexcept override { return op_.name; }
    char const* getPluginVersion() const noexcept override { return kVersion; }
    char const* getPluginNamespace() const noexcept override { return kNamespace; }

private:
    Operator const& op_;
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_;
};

}  // namespace actvar
