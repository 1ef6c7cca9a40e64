"""ActVAR-TRT: ActVAR in PyTorch, exported scale by scale to ONNX, run by ONNX Runtime and TensorRT.

Importing this package imports nothing heavy: PyTorch is loaded by `actvar.models` and what builds on it.
"""

__version__ = "0.1.0"
