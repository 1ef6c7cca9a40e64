"""The kernels as operators of PyTorch."""
