// Takes a plugin through what TensorRT does with one: create, serialise, create again, attach, ask, enqueue.
//
// For tests of the plugins on the host, linked to the kernels over cuda_on_host; see test_plugin_calls.py.

#include <NvInferRuntime.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "../plugins/tensorrt/plugin.h"

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count);
extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder* finder);

namespace {

using namespace nvinfer1;

std::size_t allocations = 0, workspace_bytes = 0;
long left = -1;  // allocations that succeed before one fails; negative: all do

class Log : public ILogger, public ILoggerFinder {
public:
    void log(Severity, char const* message) noexcept override {
        long const planted = left;
        left = -1;  // this is TensorRT's own, and has its memory
        text += std::string(message) + "\n";
        left = planted;
    }
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
    if (left == 0) throw std::bad_alloc();
    if (left > 0) --left;
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
    for (int i = 0; i < attributes; ++i)
        fields.emplace_back(names[i], &values[i],
                            std::strcmp(names[i], "epsilon") == 0 ? PluginFieldType::kFLOAT32 : PluginFieldType::kINT32,
                            1);
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

// Calls every function of a plugin whose own parts throw, or whose memory ends after some allocations. Returns how many
// of the calls have said that they failed; an exception that comes through ends the process.
namespace {

int thrown = 0;  // 1: a std::exception, 2: something else

std::string throwing_fault(actvar::Sizes const&) {
    if (thrown == 1) throw std::runtime_error("planted");
    if (thrown == 2) throw 7;
    return "";
}

std::size_t throwing_workspace(actvar::Sizes const& sizes, DataType) {
    throwing_fault(sizes);
    return 256;
}

cudaError_t throwing_launch(actvar::Call const& call) {
    throwing_fault(call.sizes);
    return cudaSuccess;
}

actvar::Operator const kThrowing{
    "ActVarThrowing",
    {{"keep", 'K'}},
    {{"x", "RLC", actvar::Type::kValues}},
    {{"y", "RKC", actvar::Type::kValues}},
    throwing_fault,
    throwing_workspace,
    throwing_launch,
};

}  // namespace

// `kind`: 1 and 2 throw as `thrown` says; 3: the memory ends after `after` allocations of each call; 4: shapes that
// onShapeChange has not seen, whose enqueue returns 10, or 13 if it has allocated.
extern "C" int plantedFaults(int kind, long after, char* messages, std::size_t size) {
    setLoggerFinder(&the_log);
    the_log.text.clear();
    actvar::Creator creator(kThrowing);
    std::int32_t keep = 2;
    PluginField const field("keep", &keep, PluginFieldType::kINT32, 1);
    PluginFieldCollection const given{1, &field};
    std::unique_ptr<IPluginV3> const plugin(creator.createPlugin("planted", &given, TensorRTPhase::kBUILD));
    auto* const build = as<IPluginV3OneBuild>(*plugin, PluginCapabilityType::kBUILD);
    auto* const run = as<IPluginV3OneRuntime>(*plugin, PluginCapabilityType::kRUNTIME);

    Dims const dims{3, {1, 4, 8}}, kept{3, {1, 2, 8}}, more{3, {2, 4, 8}};
    PluginTensorDesc const in{dims, DataType::kFLOAT, TensorFormat::kLINEAR, 1.0f};
    PluginTensorDesc const out{kept, DataType::kFLOAT, TensorFormat::kLINEAR, 1.0f};
    PluginTensorDesc const other{more, DataType::kFLOAT, TensorFormat::kLINEAR, 1.0f};
    DynamicPluginTensorDesc const bounds[] = {{in, dims, dims, dims}, {out, kept, kept, kept}};
    DataType const types[] = {DataType::kFLOAT};
    DataType found[1];
    float x[64]{}, y[64]{};
    void const* const inputs[] = {x};
    void* const outputs[] = {y};

    if (kind == 4) {
        if (run->onShapeChange(&in, 1, &out, 1) != 0) return -1;
        std::size_t const before = allocations;
        int const code = run->enqueue(&other, &out, inputs, outputs, nullptr, nullptr);
        return code != 0 ? 10 : allocations == before ? 0 : 13;
    }
    if (kind != 3 && run->onShapeChange(&in, 1, &out, 1) != 0) return -1;
    thrown = kind;
    std::function<bool()> const calls[] = {
        [&] { return plugin->clone() == nullptr; },
        [&] { return creator.createPlugin("again", &given, TensorRTPhase::kRUNTIME) == nullptr; },
        [&] { return build->getOutputDataTypes(found, 1, types, 2) != 0; },
        [&] { return !build->supportsFormatCombination(0, bounds, 2, 1); },
        [&] { return build->configurePlugin(bounds, 1, &bounds[1], 1) != 0; },
        [&] { return build->getWorkspaceSize(bounds, 1, &bounds[1], 1) == 0; },
        [&] { return run->setTactic(3) != 0; },
        [&] { return run->onShapeChange(&in, 1, &out, 1) != 0; },
        [&] { return run->enqueue(kind == 3 ? &other : &in, &out, inputs, outputs, nullptr, nullptr) != 0; },
    };
    int failed = 0;
    for (auto const& call : calls) {
        left = kind == 3 ? after : -1;
        bool const said = call();
        left = -1;
        failed += said;
    }
    thrown = 0;
    std::strncpy(messages, the_log.text.c_str(), size - 1);
    return failed;
}
