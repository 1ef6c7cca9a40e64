"""A plugin's life as TensorRT leads it, on the host: what reaches the kernels, and what comes back.

The real TensorRT-RTX builds with the plugins without a GPU (test_plugins.py) but runs none; here a small driver calls
them, linked to the kernels over the stand-in for CUDA, and the results are those of the operators' references.
"""

import ctypes
import os
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from import_tree import ROOT
from kernel_library import BFLOAT16, DTYPES, HostMemory, Kernels, Shape, host_library, toolkit_headers
from operator_references import REFERENCES
from plugin_build import tensorrt_headers

from actvar.export.operators.fused import ALL_OPERATORS

TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, BFLOAT16: 7, np.dtype(np.int64): 8}  # nvinfer1::DataType
ATTRIBUTES_STEP, TYPES_STEP, SHAPES_STEP, TACTIC_STEP = 2, 3, 6, 8  # of tests/plugin_driver.cpp


class Tensor(ctypes.Structure):
    """The driver's Tensor."""

    _fields_ = [("data", ctypes.c_void_p), ("type", ctypes.c_int), ("rank", ctypes.c_int), ("dims", ctypes.c_int64 * 8)]

    @staticmethod
    def of(array: np.ndarray) -> "Tensor":
        """Of an array that outlives it."""
        return Tensor(array.ctypes.data, TYPES[array.dtype], array.ndim, (ctypes.c_int64 * 8)(*array.shape))


@cache
def driver() -> ctypes.CDLL:
    """The plugins and tests/plugin_driver.cpp, linked to the kernels on the host."""
    kernels, headers = Path(host_library()._name), tensorrt_headers()
    library = kernels.with_name(f"plugin_driver-{os.getpid()}.so")
    sources = [*sorted((ROOT / "plugins" / "tensorrt").glob("*.cpp")), ROOT / "tests" / "plugin_driver.cpp"]
    flags = [
        "-std=c++17",
        "-O1",
        "-fPIC",
        "-shared",
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-Wl,-rpath,{kernels.parent}",
        "-Wl,-Bsymbolic",
    ]
    includes = ["-isystem", str(headers), "-isystem", str(toolkit_headers())]
    command = [os.environ.get("CXX", "g++"), *flags, *includes, *map(str, sources), str(kernels), "-o", str(library)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    try:
        return ctypes.CDLL(str(library))
    finally:
        library.unlink()


def run(
    name: str, inputs: list[np.ndarray], output: np.ndarray, tactic: int = 0, **attributes: float
) -> tuple[int, str, np.ndarray]:
    """The step that failed or 0 (13: enqueue allocated), what was logged, and the output, which is poisoned before."""
    step, messages, results = run_all(name, inputs, [output], tactic, **attributes)
    return step, messages, results[0]


def run_all(
    name: str, inputs: list[np.ndarray], outputs: Sequence[np.ndarray], tactic: int = 0, **attributes: float
) -> tuple[int, str, list[np.ndarray]]:
    """As `run`, of any number of outputs."""
    inputs = [aligned(array) for array in inputs]
    results = [aligned(np.frombuffer(b"\xff" * o.nbytes, o.dtype).reshape(o.shape)) for o in outputs]
    messages = ctypes.create_string_buffer(4096)
    step = driver().runPlugin(
        name.encode(),
        len(attributes),
        (ctypes.c_char_p * max(len(attributes), 1))(*(key.encode() for key in attributes)),
        (ctypes.c_int32 * max(len(attributes), 1))(*map(bits, attributes.values())),
        tactic,
        len(inputs),
        len(results),
        (Tensor * (len(inputs) + len(results)))(*map(Tensor.of, [*inputs, *results])),
        0xFF,
        messages,
        ctypes.c_size_t(len(messages)),
    )
    return step, messages.value.decode(), results


def bits(value: float) -> int:
    """Of an attribute: a float's are those of an int32."""
    return value if isinstance(value, int) else int(np.float32(value).view(np.int32))


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy at an address that is a multiple of 16, as every engine has it."""
    buffer = np.empty(array.nbytes + 16, np.uint8)
    start = -buffer.ctypes.data % 16
    copy = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def random(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    """Normal values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def ffn_inputs(dtype: type = np.float32) -> list[np.ndarray]:
    """x, scores, w1, b1, w2, b2, for 16 experts of 8 neurons."""
    shapes = (2, 70, 24), (2, 70, 16), (16, 8, 24), (16, 8), (16, 8, 24), (24,)
    scales = 1, 1, 0.2, 0.5, 0.1, 0.5
    arrays = [random(*shape, seed=i) * scale for i, (shape, scale) in enumerate(zip(shapes, scales, strict=True))]
    return [a.astype(np.float32 if i == 1 else dtype) for i, a in enumerate(arrays)]


def test_select_gather_and_scatter_are_their_references():
    """Bitwise: each input arrives where the kernel expects it."""
    scores, x = random(3, 50), random(3, 50, 12, seed=1, dtype=np.float16)
    indices = REFERENCES["ActVarTokenSelect"](scores, keep=31)
    updated = random(3, 31, 12, seed=2, dtype=np.float16)
    cases = {
        "ActVarTokenSelect": ([scores], {"keep": 31}),
        "ActVarTokenGather": ([x, indices], {}),
        "ActVarTokenScatter": ([x, indices, updated], {}),
    }
    for name, (inputs, attributes) in cases.items():
        expected = REFERENCES[name](*inputs, **attributes)
        step, messages, result = run(name, inputs, expected, **attributes)
        assert (step, messages) == (0, "")
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(("dtype", "to", "atol"), [(np.float32, 1, 4e-6), (np.float16, 10, 4e-3), (BFLOAT16, 16, 0.04)])
@pytest.mark.parametrize("epsilon", [1e-6, 0.25])
def test_fused_gather_and_scatter_are_their_references(dtype, to, atol, epsilon):
    """Two outputs, of which one's type is an attribute; and an input whose type no other input has."""
    x, indices = random(3, 50, 12), np.sort(random(3, 50, seed=1).argsort(axis=1)[:, :31], axis=1)
    scale, shift = random(3, 1, 12, seed=2), random(3, 1, 12, seed=3)
    expected = REFERENCES["ActVarTokenGatherNorm"](x, indices, scale, shift, to=to, epsilon=epsilon)
    given = {"to": to, "epsilon": epsilon}
    step, messages, (kept, normed) = run_all("ActVarTokenGatherNorm", [x, indices, scale, shift], expected, **given)
    assert (step, messages) == (0, "")
    np.testing.assert_array_equal(kept, expected[0])
    np.testing.assert_allclose(normed.astype(np.float32), expected[1].astype(np.float32), rtol=0, atol=atol)

    inputs = [x, indices, kept, scale, normed]
    scattered = REFERENCES["ActVarTokenScatterGated"](*inputs)
    step, messages, result = run("ActVarTokenScatterGated", inputs, scattered)
    assert (step, messages) == (0, "")
    np.testing.assert_allclose(result, scattered, rtol=0, atol=2e-6)


def test_every_operator_of_ours_has_its_plugin_here():
    """An operator that the lowering may leave in a graph, and no plugin for it, would end a build."""
    for name, operator in ALL_OPERATORS.items():
        nothing = np.zeros(1, np.float32)
        step, messages, _ = run_all(
            name,
            [],
            [nothing] * len(operator.outputs),
            **{each: 1.0 if each in operator.floats else 1 for each in operator.attributes},
        )
        assert step == TYPES_STEP and f"{name}: takes {len(operator.inputs)} inputs, not 0." in messages


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_routed_ffn_is_its_reference_in_the_workspace_of_its_own_plan(dtype):
    """The plan is the shape's: TensorRT is offered no other, and reserves for no other."""
    inputs = ffn_inputs(dtype)
    exact = REFERENCES["ActVarRoutedFFN"](*(array.astype(np.float32) for array in inputs), experts=16, active=5)
    step, messages, result = run("ActVarRoutedFFN", inputs, exact.astype(dtype), experts=16, active=5)
    assert (step, messages) == (0, "")
    shape = Shape(tokens=140, width=24, hidden=8, experts=16, active=5, dtype=DTYPES[np.dtype(dtype)])
    needed = Kernels(host_library(), HostMemory()).workspace(shape, tactic=0)
    driver().workspaceBytes.restype = ctypes.c_size_t
    assert driver().workspaceBytes() == needed > 0
    np.testing.assert_allclose(result, exact, rtol=0, atol=1e-5 if dtype == np.float32 else 4e-3)


def test_faults_end_before_a_kernel_runs():
    """At the step where TensorRT would hear of them, each with its message."""
    inputs = ffn_inputs()
    step, messages, _ = run("ActVarRoutedFFN", inputs, inputs[0], experts=16)
    assert step == ATTRIBUTES_STEP and "needs the attribute active" in messages
    wrong = [*inputs[:2], inputs[2].astype(np.float16), *inputs[3:]]
    step, messages, _ = run("ActVarRoutedFFN", wrong, inputs[0], experts=16, active=5)
    assert step == TYPES_STEP and "w1 must be fp32, and is fp16" in messages
    step, messages, _ = run("ActVarRoutedFFN", inputs, inputs[0], experts=8, active=5)
    assert step == SHAPES_STEP and "has N = 16, and elsewhere it is experts = 8" in messages
    step, messages, _ = run("ActVarRoutedFFN", inputs, inputs[0], 1, experts=16, active=5)
    assert step == TACTIC_STEP and "has no tactic 1" in messages


# ---- the border to C++, which may not throw


def planted(kind: int, after: int = 0) -> tuple[int, str]:
    """How many of nine of a plugin's functions said that they failed, and what was logged."""
    messages = ctypes.create_string_buffer(8192)
    failed = driver().plantedFaults(kind, ctypes.c_long(after), messages, ctypes.c_size_t(len(messages)))
    return failed, messages.value.decode()


@pytest.mark.parametrize(("kind", "said"), [(1, "planted"), (2, "something was thrown that is no std::exception")])
def test_whatever_an_operator_throws_ends_at_the_border(kind: int, said: str):
    """Its checks, its workspace and its launch: each call that meets them fails, with a message, and nothing else does.

    Three others are called wrongly and say so by themselves; a plugin is copied and made without any of them.
    """
    failed, messages = planted(kind)
    assert failed == 7, messages
    assert messages.count(f"ActVarThrowing: {said}") == 4


def test_memory_that_ends_anywhere_ends_no_process():
    """At the first allocation of each call, and at every later one; with all of it only three calls are wrong."""
    counts = [planted(3, after)[0] for after in range(12)]
    assert counts[0] == 9 and counts[-1] == 3 and counts == sorted(counts, reverse=True)
    assert "std::bad_alloc" in planted(3)[1]


def test_an_enqueue_that_allocates_is_seen():
    """The driver's own check: shapes that onShapeChange was not told are bound in enqueue."""
    assert planted(4)[0] == 13
