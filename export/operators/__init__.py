"""The project's own ONNX operators, and what becomes of them for each engine."""
