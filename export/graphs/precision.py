"""What the name of a precision means: the types in which the parts of a graph compute.

What is not named here is fp32 in every precision: the residual stream, norms, softmax, selector and router, head,
sampling, f_hat.
"""

BLOCKS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "float32", "fp16-weights": "float32"}
"""The matrices and attention of the transformer's blocks, with the KV cache. In int8 the matrices are whole numbers
(`int8.py`), and what goes into them and comes out is fp32, as attention is."""

DECODER = {"fp32": "float32", "fp16": "float16", "bf16": "float16", "int8": "float32", "fp16-weights": "float32"}
"""The decoder's convolutions and attention. In opset 20 `Conv` has no bfloat16, so those of a bf16 bundle are fp16: its
activations are bounded by the norms before them, and do not need bfloat16's range as a transformer's may."""

MATRICES_HELD = {"fp16-weights": "float16"}
"""What the blocks' matrices are held in where it is not what they are multiplied in: the graphs widen them."""

SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
"""What people call the types."""
