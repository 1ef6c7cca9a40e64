// One graph of a bundle in C++: a plan, the bundle's weights on the GPU, and one run.
//
// The weights are uploaded once, as they lie in weights.bin, and serve the engines of all graphs: each weight's offset
// is in the bundle's manifest.json under weights.tensors, names, types and shapes of all else under graphs.<graph>.
// Reading JSON, and files after their SHA-256 was checked, is left to the program around this.

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

struct Input
{
    void* address;           // device
    nvinfer1::Dims shape;    // with the batch's number for B
};

class Graph
{
public:
    // offsets: of every weight in the weights file, which lies at `weights` on the device.
    Graph(nvinfer1::IRuntime& runtime, std::vector<char> const& plan, std::map<std::string, size_t> const& offsets,
        std::byte* weights)
        : mEngine{runtime.deserializeCudaEngine(plan.data(), plan.size())}
    {
        if (mEngine == nullptr)
        {
            throw std::runtime_error("not a plan for this GPU and version of TensorRT");
        }
        mContext.reset(mEngine->createExecutionContext());
        for (int i = 0; i < mEngine->getNbIOTensors(); ++i)
        {
            char const* const name = mEngine->getIOTensorName(i);
            auto const offset = offsets.find(name);
            if (offset != offsets.end() && !mContext->setTensorAddress(name, weights + offset->second))
            {
                throw std::runtime_error(std::string{"no such weight: "} + name);
            }
        }
    }

    // outputs: device memory for each, by the shapes of the manifest.
    void run(std::map<std::string, Input> const& inputs, std::map<std::string, void*> const& outputs, cudaStream_t stream)
    {
        bool right = true;
        for (auto const& [name, input] : inputs)
        {
            right = right && mContext->setInputShape(name.c_str(), input.shape);
            right = right && mContext->setTensorAddress(name.c_str(), input.address);
        }
        for (auto const& [name, address] : outputs)
        {
            right = right && mContext->setTensorAddress(name.c_str(), address);
        }
        if (!right || !mContext->enqueueV3(stream))
        {
            throw std::runtime_error("the graph cannot be run: the logger of the runtime says why");
        }
    }

private:
    std::unique_ptr<nvinfer1::ICudaEngine> mEngine;
    std::unique_ptr<nvinfer1::IExecutionContext> mContext;
};
