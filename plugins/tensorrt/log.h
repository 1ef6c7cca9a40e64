// Messages to the log of whichever builder, runtime or context is calling a plugin.

#pragma once

#include <NvInferRuntime.h>

#include <string>

namespace actvar {

// TensorRT hands the finder over once, when it loads the library, and keeps it alive.
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

// Must run in the thread that TensorRT called the plugin in. Silent where TensorRT gave no finder.
void log_error(std::string const& message) noexcept;

}  // namespace actvar
