// Takes a plugin through what TensorRT does with one: create, serialise, create again, attach, ask, enqueue.
//
// For tests of the plugins on the host, linked to the kernels over cuda_on_host; see test_plugin_calls.py.

#include <NvInferRuntime.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count);
extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder* finder);

namespace {

using namespace nvinfer1;

std::size_t allocations = 0, workspace_bytes = 0;

class Log : public ILogger, public ILoggerFinder {
public:
    void log(Severity, char const* message) noexcept override { text += std::string(message) + "\n"; }
    ILogger* findLogger() override { return this; }
    std::string text;
};

Log the_log;

IPluginCreatorV3One* find(char const* name) {
    std::int32_t count = 0;
    IPluginCreatorInterface* const* const creators = getCreators(count);
    for (std::int32_t i = 0; i < count; ++i) {
        auto* const creator = static_cast<IPluginCreatorV3One*>(creators[i]);
        if (std::strcmp(creator->getPluginName(), name) == 0) return creator;
    }
    return nullptr;
}

template <typename Capability>
Capability* as(IPluginV3& plugin, PluginCapabilityType type) {
    return static_cast<Capability*>(plugin.getCapabilityInterface(type));
}

}  // namespace

// For this library, plugins included: it is linked so that its own calls come here.
void* operator new(std::size_t size) {
    ++allocations;
    if (void* const memory = std::malloc(size > 0 ? size : 1)) return memory;
    throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

// Of the last plugin that was run.
extern "C" std::size_t workspaceBytes() { return workspace_bytes; }

struct Tensor {
    void* data;
    int type;  // nvinfer1::DataType
    int rank;
    std::int64_t dims[8];
};

// `tensors` are the inputs, then the outputs. The plugin's workspace gets `poison` in every byte. Returns the number of
// the step that failed, 0 for none; what was logged is in `messages`, of `size` bytes.
extern "C" int runPlugin(char const* name, int attributes, char const* const* names, std::int32_t const* values,
                         int tactic, int inputs, int outputs, Tensor const* tensors, int poison, char* messages,
                         std::size_t size) {
    setLoggerFinder(&the_log);
    the_log.text.clear();
    auto const finish = [&](int step) {
        std::strncpy(messages, the_log.text.c_str(), size - 1);
        return step;
    };
    std::vector<PluginField> fields;
    for (int i = 0; i < attributes; ++i) fields.emplace_back(names[i], &values[i], PluginFieldType::kINT32, 1);
    PluginFieldCollection const given{static_cast<std::int32_t>(fields.size()), fields.data()};
    IPluginCreatorV3One* const creator = find(name);
    if (creator == nullptr) return finish(1);
    std::unique_ptr<IPluginV3> const built(creator->createPlugin("built", &given, TensorRTPhase::kBUILD));
    if (built == nullptr) return finish(2);

    std::vector<DataType> types;
    std::vector<PluginTensorDesc> descriptions;
    std::vector<DynamicPluginTensorDesc> bounds;
    std::vector<void*> addresses;
    for (int i = 0; i < inputs + outputs; ++i) {
        Tensor const& tensor = tensors[i];
        Dims dims{};
        dims.nbDims = tensor.rank;
        std::memcpy(dims.d, tensor.dims, sizeof tensor.dims);
        descriptions.push_back({dims, static_cast<DataType>(tensor.type), TensorFormat::kLINEAR, 1.0f});
        bounds.push_back({descriptions.back(), dims, dims, dims});
        types.push_back(static_cast<DataType>(tensor.type));
        addresses.push_back(tensor.data);
    }
    auto* const build = as<IPluginV3OneBuild>(*built, PluginCapabilityType::kBUILD);
    std::vector<DataType> output_types(static_cast<std::size_t>(outputs));
    if (build->getNbOutputs() != outputs ||
        build->getOutputDataTypes(output_types.data(), outputs, types.data(), inputs) != 0)
        return finish(3);
    if (!std::equal(output_types.begin(), output_types.end(), types.begin() + inputs)) return finish(4);
    if (build->getNbTactics() != 0) return finish(11);
    if (build->supportsFormatCombination(0, bounds.data(), inputs - 1, outputs + 1)) return finish(12);
    the_log.text.clear();
    for (int i = 0; i < inputs + outputs; ++i)
        if (!build->supportsFormatCombination(i, bounds.data(), inputs, outputs)) return finish(5);
    if (build->configurePlugin(bounds.data(), inputs, &bounds[inputs], outputs) != 0) return finish(6);
    workspace_bytes = build->getWorkspaceSize(bounds.data(), inputs, &bounds[inputs], outputs);
    std::vector<char> workspace(workspace_bytes + 512, static_cast<char>(poison));
    auto const start = reinterpret_cast<std::uintptr_t>(workspace.data());
    auto* const aligned = reinterpret_cast<void*>((start + 255) / 256 * 256);

    auto* const planned = as<IPluginV3OneRuntime>(*built, PluginCapabilityType::kRUNTIME);
    PluginFieldCollection const* const serialised = planned->getFieldsToSerialize();
    std::unique_ptr<IPluginV3> const loaded(creator->createPlugin("loaded", serialised, TensorRTPhase::kRUNTIME));
    if (loaded == nullptr) return finish(7);
    std::unique_ptr<IPluginV3> const attached(
        as<IPluginV3OneRuntime>(*loaded, PluginCapabilityType::kRUNTIME)->attachToContext(nullptr));
    auto* const run = as<IPluginV3OneRuntime>(*attached, PluginCapabilityType::kRUNTIME);
    if (run->setTactic(tactic) != 0) return finish(8);
    if (run->onShapeChange(descriptions.data(), inputs, &descriptions[inputs], outputs) != 0) return finish(9);
    std::size_t const before = allocations;
    if (run->enqueue(descriptions.data(), &descriptions[inputs], addresses.data(), &addresses[inputs], aligned,
                     nullptr) != 0)
        return finish(10);
    return finish(allocations == before ? 0 : 13);
}
