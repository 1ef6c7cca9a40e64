"""The CUDA kernels and TensorRT plugins, and their Python bindings."""
