"""A model as ONNX graphs over one weights file."""
