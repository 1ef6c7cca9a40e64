"""How fast the CUDA kernels are, beside what they cannot beat: `actvar-trt bench kernels`."""
