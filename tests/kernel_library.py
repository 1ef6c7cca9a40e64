"""The kernels of plugins/kernels/ as Python calls on numpy arrays, on a GPU or on the host.

The host's library is the same sources over the stand-in for CUDA in tests/cuda_on_host/; it is built on first use, into
build/, and again when a source changes.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from import_tree import ROOT
from plugin_build import kernel_library_path

KERNELS, ON_HOST = ROOT / "plugins" / "kernels", ROOT / "tests" / "cuda_on_host"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, BFLOAT16: 2}
INVALID_VALUE, MISALIGNED_ADDRESS = 1, 716  # cudaErrorInvalidValue, cudaErrorMisalignedAddress
EPSILON = 1e-6  # the model's, under the root of LayerNorm
MARGIN, POISON = 256, 0xFF  # bytes before and after every tensor, and what they and all outputs hold: NaN, -1


class KernelError(Exception):
    """A kernel's launcher returned this error instead of success."""

    def __init__(self, code: int):
        super().__init__(f"CUDA error {code}")
        self.code = code


class Shape(ctypes.Structure):
    """ActvarRoutedFfnShape."""

    _fields_ = [(name, ctypes.c_int) for name in ("tokens", "width", "hidden", "experts", "active", "dtype")]


class Plan(ctypes.Structure):
    """ActvarRoutedFfnPlan."""

    _fields_ = [(name, ctypes.c_int) for name in ("tile_rows", "slices", "sorted")]


class HostMemory:
    """Buffers of the host, for the library over cuda_on_host."""

    def copy_in(self, content: np.ndarray) -> Any:
        """A buffer that holds these bytes, at an address that is a multiple of 16."""
        buffer = np.empty(len(content) + 16, np.uint8)
        start = -buffer.ctypes.data % 16
        buffer[start : start + len(content)] = content
        return buffer[start : start + len(content)]

    def address(self, buffer: Any) -> int:
        """Of its first byte."""
        return buffer.ctypes.data

    def copy_out(self, buffer: Any) -> np.ndarray:
        """What it holds now."""
        return buffer.copy()

    def free(self, buffer: Any) -> None:
        """Nothing to do: numpy's own."""

    def execute(self, call: Callable[[int], int], captured: bool) -> int:
        """Make a call, which takes a stream and returns an error or 0."""
        assert not captured, "only a GPU captures"
        return call(0)


class DeviceMemory:
    """Buffers of the first GPU."""

    def __init__(self):
        self.runtime = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")

    def checked(self, result: tuple) -> Any:
        """The value of a call of cuda-python."""
        if int(result[0]) != 0:
            raise KernelError(int(result[0]))
        return result[1] if len(result) > 1 else None

    def copy_in(self, content: np.ndarray) -> Any:
        """A buffer that holds these bytes."""
        pointer = self.checked(self.runtime.cudaMalloc(max(len(content), 1)))
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.checked(self.runtime.cudaMemcpy(pointer, content.ctypes.data, len(content), kind))
        return pointer, len(content)

    def address(self, buffer: Any) -> int:
        """Of its first byte."""
        return int(buffer[0])

    def copy_out(self, buffer: Any) -> np.ndarray:
        """What it holds when all kernels so far have ended."""
        self.checked(self.runtime.cudaDeviceSynchronize())
        content = np.empty(buffer[1], np.uint8)
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.checked(self.runtime.cudaMemcpy(content.ctypes.data, buffer[0], len(content), kind))
        return content

    def execute(self, call: Callable[[int], int], captured: bool) -> int:
        """Make a call, which takes a stream and returns an error or 0; captured, it runs when its graph is launched."""
        if not captured:
            return call(0)
        stream = self.checked(self.runtime.cudaStreamCreate())
        self.checked(
            self.runtime.cudaStreamBeginCapture(stream, self.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeGlobal)
        )
        code = call(int(stream))
        graph = self.checked(self.runtime.cudaStreamEndCapture(stream))
        self.checked(self.runtime.cudaGraphLaunch(self.checked(self.runtime.cudaGraphInstantiate(graph, 0)), stream))
        self.checked(self.runtime.cudaStreamSynchronize(stream))
        return code

    def free(self, buffer: Any) -> None:
        """Give it back."""
        self.checked(self.runtime.cudaFree(buffer[0]))


@dataclass
class Kernels:
    """The calls. Inputs are arrays; every output is a new array, poisoned before the kernel runs.

    After each call the margins of every tensor must be as they were.
    """

    library: ctypes.CDLL
    memory: HostMemory | DeviceMemory
    captured: bool = False  # every call goes into a CUDA graph of its own

    def set_order(self, seed: int) -> None:
        """On the host: which order the threads of a block run in."""
        if isinstance(self.memory, HostMemory):
            self.library.cudaOnHostSetOrder(seed)

    def run(self, function: str, arguments: list[Any], outputs: dict[int, tuple[tuple[int, ...], Any]]) -> list:
        """Call a function, whose last argument is the stream, with arrays in place of addresses.

        Args:
            arguments: in the function's order, arrays for tensors; None at the outputs.
            outputs: shape and dtype by place among the arguments.

        Returns: the outputs.
        """
        buffers, values = {}, list(arguments)
        for place in [i for i, a in enumerate(arguments) if isinstance(a, np.ndarray)] + list(outputs):
            if place in outputs:
                shape, dtype = outputs[place]
                content = np.full(int(np.prod(shape)) * np.dtype(dtype).itemsize, POISON, np.uint8)
            else:
                content = np.ascontiguousarray(arguments[place]).reshape(-1).view(np.uint8)
            margin = np.full(MARGIN, POISON, np.uint8)
            buffers[place] = self.memory.copy_in(np.concatenate([margin, content, margin]))
            values[place] = ctypes.c_void_p(self.memory.address(buffers[place]) + MARGIN)
        call = getattr(self.library, function)
        call.restype = ctypes.c_int
        try:
            code = self.memory.execute(lambda stream: call(*values, ctypes.c_void_p(stream)), self.captured)
            if code:
                raise KernelError(code)
            contents = {place: self.memory.copy_out(buffer) for place, buffer in buffers.items()}
        finally:
            for buffer in buffers.values():
                self.memory.free(buffer)
        for content in contents.values():
            assert (content[:MARGIN] == POISON).all() and (content[-MARGIN:] == POISON).all(), "wrote out of bounds"
        return [contents[place][MARGIN:-MARGIN].view(dtype).reshape(shape) for place, (shape, dtype) in outputs.items()]

    def select(self, scores: np.ndarray, keep: int) -> tuple[np.ndarray, np.ndarray]:
        """Kept indices and inverse."""
        rows, length = scores.shape
        outputs = {4: ((rows, keep), np.int64), 5: ((rows, length), np.int32)}
        indices, inverse = self.run("actvarTokenSelect", [scores, rows, length, keep, None, None], outputs)
        return indices, inverse

    def gather(self, x: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """The chosen tokens."""
        (rows, length, width), keep = x.shape, indices.shape[1]
        arguments = [x, indices, None, rows, length, keep, width, DTYPES[x.dtype]]
        return self.run("actvarTokenGather", arguments, {2: ((rows, keep, width), x.dtype)})[0]

    def scatter(self, x: np.ndarray, indices: np.ndarray, updated: np.ndarray) -> np.ndarray:
        """x with the chosen tokens replaced."""
        (rows, length, width), keep = x.shape, indices.shape[1]
        arguments = [x, indices, updated, None, rows, length, keep, width, DTYPES[x.dtype]]
        return self.run("actvarTokenScatter", arguments, {3: (x.shape, x.dtype)})[0]

    def gather_norm(
        self, x: np.ndarray, indices: np.ndarray, scale: np.ndarray, shift: np.ndarray, dtype: np.dtype
    ) -> tuple[np.ndarray, np.ndarray]:
        """The chosen tokens, and what modulated LayerNorm makes of them, of this dtype."""
        (rows, length, width), keep = x.shape, indices.shape[1]
        sizes = [rows, length, keep, width, ctypes.c_float(EPSILON), DTYPES[dtype]]
        outputs = {4: ((rows, keep, width), x.dtype), 5: ((rows, keep, width), dtype)}
        kept, normed = self.run("actvarTokenGatherNorm", [x, indices, scale, shift, None, None, *sizes], outputs)
        return kept, normed

    def scatter_gated(
        self, x: np.ndarray, indices: np.ndarray, kept: np.ndarray, gamma: np.ndarray, change: np.ndarray
    ) -> np.ndarray:
        """x with the chosen tokens replaced by kept + gamma * change."""
        (rows, length, width), keep = x.shape, indices.shape[1]
        sizes = [rows, length, keep, width, DTYPES[change.dtype]]
        arguments = [x, indices, kept, gamma, change, None, *sizes]
        return self.run("actvarTokenScatterGated", arguments, {5: (x.shape, x.dtype)})[0]

    def route(self, scores: np.ndarray, active: int) -> np.ndarray:
        """Masks."""
        tokens, experts = scores.shape
        return self.run("actvarExpertRoute", [scores, tokens, experts, active, None], {4: ((tokens,), np.uint32)})[0]

    def order(self, masks: np.ndarray, experts: int, slices: int) -> np.ndarray:
        """An order of the tokens for each slice."""
        self.library.actvarExpertOrderWorkspace.restype = ctypes.c_size_t
        workspace = self.library.actvarExpertOrderWorkspace(len(masks), slices)
        outputs = {4: ((slices, len(masks)), np.int32), 5: ((workspace,), np.uint8)}
        return self.run("actvarExpertOrder", [masks, len(masks), experts, slices, None, None], outputs)[0]

    def plan(self, shape: Shape, tactic: int) -> Plan:
        """How a tactic cuts the work."""
        plan = Plan()
        code = self.library.actvarRoutedFfnPlanOf(ctypes.byref(shape), tactic, ctypes.byref(plan))
        if code:
            raise KernelError(code)
        return plan

    def workspace(self, shape: Shape, tactic: int) -> int:
        """Bytes."""
        self.library.actvarRoutedFfnWorkspace.restype = ctypes.c_size_t
        return self.library.actvarRoutedFfnWorkspace(ctypes.byref(shape), tactic)

    def routed_ffn(self, x, scores, w1, b1, w2, b2, active: int, tactic: int = 0) -> np.ndarray:
        """The sum of each token's active experts: x [M, C], scores [M, N]."""
        (tokens, width), (experts, hidden) = x.shape, b1.shape
        shape = Shape(tokens, width, hidden, experts, active, DTYPES[x.dtype])
        size = self.workspace(shape, tactic)
        arguments = [ctypes.byref(shape), tactic, x, scores, w1, b1, w2, b2, None, None, ctypes.c_size_t(size)]
        return self.run("actvarRoutedFfn", arguments, {8: (x.shape, x.dtype), 9: ((size,), np.uint8)})[0]


def toolkit_headers() -> Path | None:
    """The include folder of the CUDA toolkit, or None."""
    nvcc = shutil.which("nvcc")
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    roots += [str(Path(nvcc).resolve().parent.parent)] if nvcc else []
    for root in filter(None, roots):
        if (Path(root) / "include" / "cuda_fp16.h").is_file():
            return Path(root) / "include"
    return None


@cache
def host_library() -> ctypes.CDLL:
    """The kernels over the stand-in for CUDA."""
    return build_on_host("kernels", KERNELS)


@cache
def watched_library(name: str = "kernels", folder_of_sources: Path = KERNELS) -> ctypes.CDLL:
    """The same with every access to shared memory watched: a race, or an overrun, is an error of the launch."""
    library = build_on_host(name, folder_of_sources, watched=True)
    variables = shared_variables(Path(library._name))
    names = (ctypes.c_char_p * len(variables))(*(variable.name.encode() for variable in variables))
    numbers = [
        (ctypes.c_size_t * len(variables))(*(getattr(variable, field) for variable in variables))
        for field in ("start", "end", "kernel")
    ]
    library.cudaOnHostSetVariables(len(variables), names, *numbers)
    return library


@dataclass(frozen=True)
class SharedVariable:
    """One of a kernel's, by its symbol: where it lies in shared memory, and the kernel in the library."""

    name: str
    start: int
    end: int
    kernel: int


def shared_variables(library: Path) -> list[SharedVariable]:
    """Those of all kernels in a library that was built on the host; no guards."""
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    command = ["nm", "--print-size", "--defined-only", str(library)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    symbols = [line.split() for line in lines if len(line.split()) == 4]
    functions = [(name.removeprefix("_Z"), at) for at, _, kind, name in symbols if kind in "tTwW"]
    kernels = {name: int(at, 16) for name, at in functions if "_kernel" in name and not name.startswith("Z")}
    found = []
    for at, size, kind, name in symbols:
        inside = name.removeprefix("_ZZ")
        if kind not in "BbDdVuWw" or inside == name or "guard_" in name:
            continue
        kernel = max((each for each in kernels if inside.startswith(f"{each}E")), key=len, default=None)
        if kernel is not None:
            found.append(SharedVariable(name, int(at, 16), int(at, 16) + int(size, 16), kernels[kernel]))
    return found


def build_on_host(name: str, folder_of_sources: Path, watched: bool = False) -> ctypes.CDLL:
    """All sources of a folder over the stand-in for CUDA, as one library; kernels may be compiled to be watched."""
    headers, compiler = toolkit_headers(), shutil.which(os.environ.get("CXX", "g++"))
    if headers is None or compiler is None:
        pytest.skip("needs a C++ compiler and the headers of the CUDA toolkit")
    files = sorted(
        p
        for folder in (folder_of_sources, ON_HOST)
        for p in folder.rglob("*")
        if p.suffix in {".cu", ".cuh", ".cpp", ".h"}
    )
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()[:12]
    folder = ROOT / "build" / f"{name}-on-host-{'watched-' if watched else ''}{digest}"
    library = folder / f"libactvar_{name}_on_host.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        flags = ["-std=c++17", "-O2", "-fPIC", "-fno-gnu-unique", "-Wall", "-Wextra", "-Werror"]
        flags.append("-Wno-unknown-pragmas")
        fresh = folder / f"{os.getpid()}.so"
        places = ["-I", str(ON_HOST), "-isystem", str(headers)]
        objects = []
        for source in (p for suffix in (".cu", ".cpp") for p in files if p.suffix == suffix):
            objects.append(folder / f"{os.getpid()}-{source.stem}.o")
            watch = ["-fsanitize=thread", "-DCUDA_ON_HOST_WATCHED"] if watched and source.suffix == ".cu" else []
            run([compiler, *flags, *watch, *places, "-x", "c++", "-c", str(source), "-o", str(objects[-1])])
        run([compiler, "-shared", *map(str, objects), "-o", str(fresh), "-ldl"])
        for each in objects:
            each.unlink()
        fresh.replace(library)
    return ctypes.CDLL(str(library))


def run(command: list[str]) -> None:
    """A compiler's or a linker's command."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def kernels_on(where: str) -> Kernels:
    """The kernels on the "host" or on the "gpu"; skips where they cannot be built."""
    if where == "host":
        return Kernels(host_library(), HostMemory())
    return Kernels(ctypes.CDLL(str(kernel_library_path())), DeviceMemory())
