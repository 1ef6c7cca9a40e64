// TensorRT's data types as the kernels name them.

#pragma once

#include <NvInferRuntime.h>

#include "../kernels/dtype.h"

namespace actvar {

// Of a kValues argument.
inline ActvarDtype kernel_dtype(nvinfer1::DataType type) {
    return type == nvinfer1::DataType::kFLOAT  ? kActvarFp32
           : type == nvinfer1::DataType::kHALF ? kActvarFp16
                                               : kActvarBf16;
}

}  // namespace actvar
