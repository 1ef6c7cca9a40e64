"""The ceiling of an engine: one large matrix product, in the precision of the graphs, as fast as it gets.

A picture's operations in a second are held against it. Each engine multiplies by itself, in the process that draws with
it, so that threads and libraries are the same.

Letters in shapes: M rows, K values into the product, N out of it.
"""

import time
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

M, K, N = 512, 1024, 4096  # the FFN's first product at d16's last scale, of one guided picture
OPERATIONS = 2 * M * K * N
_REPEATS = 3


def fastest(multiply: Callable[[], object]) -> float:
    """Operations in a second of the best of a few."""

    def seconds() -> float:
        began = time.perf_counter()
        multiply()
        return time.perf_counter() - began

    return OPERATIONS / min(seconds() for _ in range(_REPEATS))


def onnxruntime_product(precision: str, threads: int) -> float | None:
    """In ONNX Runtime on the CPU, with a matrix that is packed ahead; None where `onnx` is not installed."""
    if not find_spec("onnx"):
        return None
    session, x_MK = _session(precision, threads)
    return fastest(lambda: session.run(None, {"x": x_MK}))


@cache
def _session(precision: str, threads: int) -> tuple[Any, np.ndarray]:
    import onnxruntime

    from actvar.runtime.backends.ort import session_options

    options = session_options(threads, "cpu", packs=True)
    session = onnxruntime.InferenceSession(product_model(precision), options, providers=["CPUExecutionProvider"])
    return session, product_inputs(precision)


def product_inputs(precision: str) -> np.ndarray:
    """x, [M, K]."""
    return _values((M, K)).astype({"int8": np.uint8, "fp16": np.float16}.get(precision, np.float32))


def product_model(precision: str) -> bytes:
    """y = x W as an ONNX model; in int8 as the graphs have it (`actvar.export.graphs.int8`)."""
    from onnx import TensorProto, helper, numpy_helper

    matrix, made = _values((K, N)), "y"
    if precision == "int8":
        given = {"w": matrix.astype(np.int8), "x_scale": np.float32(1), "w_scale": np.ones(N, np.float32)}
        given["x_zero"] = np.uint8(128)
        node = helper.make_node("MatMulIntegerToFloat", ["x", *given], [made], domain="com.microsoft")
        types = TensorProto.UINT8, TensorProto.FLOAT
    else:
        half = precision == "fp16"
        given = {"w": matrix.astype(np.float16 if half else np.float32)}
        node = helper.make_node("MatMul", ["x", "w"], [made])
        types = (TensorProto.FLOAT16 if half else TensorProto.FLOAT,) * 2
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", types[0], [M, K])],
        [helper.make_tensor_value_info(made, types[1], [M, N])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in given.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def _values(shape: tuple[int, ...]) -> np.ndarray:
    """Whole numbers of a few bits, which every precision holds."""
    return np.random.default_rng(0).integers(0, 8, shape).astype(np.float32)
