"""Matrix products by cuBLASLt with bias and GELU in the same kernel: the dense FFN that the routed one must beat.

Knows the library's C interface, through ctypes, and where NVIDIA's packages put the library; no PyTorch. Products are
of fp16 with fp32 sums, of matrices that lie row by row.

cuBLAS thinks in columns: a row-major [M, k] is its column-major k x M. So y = x w + bias is written as
y^T [n x M] = w^T [n x k] x^T [k x M] + bias, and needs no transposition.
"""

import ctypes
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from actvar.errors import ActVARError, EngineError
from actvar.runtime.backends.memory import Block

# Of cublasLt.h and library_types.h.
_FP32, _FP16, _SUMS_IN_FP32 = 0, 2, 68
_TRANSPOSED = 1
_TRANSPOSE_A, _EPILOGUE, _BIAS_POINTER = 3, 7, 8
_MOST_WORKSPACE = 1
_NO_EPILOGUE, _BIAS, _GELU_BIAS = 1, 4, 36

_CANDIDATES = 8  # algorithms that cuBLASLt proposes, best guess first
_INT, _SIZE, _ADDRESS = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
_FUNCTIONS = {
    "cublasLtCreate": (_ADDRESS,),
    "cublasLtDestroy": (_ADDRESS,),
    "cublasLtMatmulDescCreate": (_ADDRESS, _INT, _INT),
    "cublasLtMatmulDescDestroy": (_ADDRESS,),
    "cublasLtMatmulDescSetAttribute": (_ADDRESS, _INT, _ADDRESS, _SIZE),
    "cublasLtMatrixLayoutCreate": (_ADDRESS, _INT, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64),
    "cublasLtMatrixLayoutDestroy": (_ADDRESS,),
    "cublasLtMatmulPreferenceCreate": (_ADDRESS,),
    "cublasLtMatmulPreferenceDestroy": (_ADDRESS,),
    "cublasLtMatmulPreferenceSetAttribute": (_ADDRESS, _INT, _ADDRESS, _SIZE),
    "cublasLtMatmulAlgoGetHeuristic": (*(_ADDRESS,) * 7, _INT, _ADDRESS, _ADDRESS),
    "cublasLtMatmul": (*(_ADDRESS,) * 14, _SIZE, _ADDRESS),
}

Launch = Callable[[int], object]
"""Puts one product on a stream, which is given by its handle."""


class _Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = [
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    ]


@dataclass(frozen=True)
class Product:
    """y = x w + bias, then perhaps GELU (tanh): x [rows, depth], y [rows, columns], bias [columns].

    Args:
        columns_first: w is [columns, depth], as fc1's weights lie; else [depth, columns], as fc2's do.
        gelu: applied to the sum; only with a bias.
    """

    rows: int
    depth: int
    columns: int
    columns_first: bool
    gelu: bool = False

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.rows * self.depth * self.columns


@dataclass(frozen=True)
class CublasLt:
    """The loaded library; see `open_cublas_lt`."""

    library: ctypes.CDLL
    handle: ctypes.c_void_p

    def candidates(self, product: Product, x: int, w: int, bias: int | None, y: int, scratch: Block) -> list[Launch]:
        """Launches of one product by the algorithms that the library proposes; to be timed, as its order is a guess.

        Args:
            product: sizes.
            x, w, bias, y: addresses on the GPU; without a bias nothing follows the sum.
            scratch: memory that the algorithms may use.

        Raises:
            EngineError: the library has no algorithm, or fails.
        """
        epilogue = _NO_EPILOGUE if bias is None else _GELU_BIAS if product.gelu else _BIAS
        operation = self._made("cublasLtMatmulDesc", _SUMS_IN_FP32, _FP32)
        self._set(operation, "cublasLtMatmulDesc", _EPILOGUE, _INT(epilogue))
        if product.columns_first:
            self._set(operation, "cublasLtMatmulDesc", _TRANSPOSE_A, _INT(_TRANSPOSED))
        if bias is not None:
            self._set(operation, "cublasLtMatmulDesc", _BIAS_POINTER, _ADDRESS(bias))
        first, second = (product.depth, product.columns) if product.columns_first else (product.columns, product.depth)
        layouts = [
            self._made("cublasLtMatrixLayout", _FP16, rows, columns, rows)
            for rows, columns in ((first, second), (product.depth, product.rows), (product.columns, product.rows))
        ]
        found = self._heuristics(operation, layouts, scratch)
        return [self._launch(operation, layouts, (w, x, y), heuristic, scratch) for heuristic in found]

    def _heuristics(self, operation: "_Object", layouts: list["_Object"], scratch: Block) -> list[_Heuristic]:
        preference = self._made("cublasLtMatmulPreference")
        self._set(preference, "cublasLtMatmulPreference", _MOST_WORKSPACE, _SIZE(scratch.bytes))
        found, count = (_Heuristic * _CANDIDATES)(), _INT()
        a, b, y = (layout.pointer for layout in layouts)
        given = self.handle, operation.pointer, a, b, y, y, preference.pointer
        self._call("cublasLtMatmulAlgoGetHeuristic", *given, _CANDIDATES, found, ctypes.byref(count))
        right = [heuristic for heuristic in found[: count.value] if heuristic.state == 0]
        if not right:
            raise EngineError("cuBLASLt has no algorithm for a product of fp16 on this GPU. Use another GPU.")
        return right

    def _launch(
        self,
        operation: "_Object",
        layouts: list["_Object"],
        addresses: tuple[int, int, int],
        heuristic: _Heuristic,
        scratch: Block,
    ) -> Launch:
        one, zero = ctypes.c_float(1), ctypes.c_float(0)
        (a, b, y), (w, x, result) = layouts, addresses

        def launch(stream: int) -> None:
            self._call(
                "cublasLtMatmul",
                *(self.handle, operation.pointer, ctypes.byref(one)),
                *(w, a.pointer, x, b.pointer, ctypes.byref(zero)),
                *(result, y.pointer, result, y.pointer),
                *(ctypes.byref(heuristic.algorithm), scratch.address, scratch.bytes, stream),
            )

        return launch

    def _made(self, kind: str, *arguments: int) -> "_Object":
        pointer = ctypes.c_void_p()
        self._call(f"{kind}Create", ctypes.byref(pointer), *arguments)
        made = _Object(pointer)
        weakref.finalize(made, getattr(self.library, f"{kind}Destroy"), pointer).atexit = False
        return made

    def _set(self, item: "_Object", kind: str, attribute: int, value: Any) -> None:
        self._call(f"{kind}SetAttribute", item.pointer, attribute, ctypes.byref(value), ctypes.sizeof(value))

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self.library, function)(*arguments)
        if status:
            raise EngineError(f"{function} of cuBLASLt failed with status {status}. See cublasStatus_t in its manual.")


@dataclass(frozen=True, eq=False)
class _Object:
    """One of the library's own; destroyed with this."""

    pointer: ctypes.c_void_p


def open_cublas_lt() -> CublasLt:
    """Load cuBLASLt from NVIDIA's packages, PyTorch's among them, or from the CUDA toolkit.

    Raises:
        ActVARError: it is not there.
        EngineError: it cannot be used, as where there is no GPU.
    """
    from cuda import pathfinder

    try:
        path = pathfinder.load_nvidia_dynamic_lib("cublasLt").abs_path
    except RuntimeError:  # of all that it raises, the base
        raise ActVARError(
            "There is no cuBLASLt here, by which the dense FFN is computed. Install it with: pip install nvidia-cublas."
        ) from None
    library = ctypes.CDLL(path)
    for name, arguments in _FUNCTIONS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, _INT
    lt = CublasLt(library, ctypes.c_void_p())
    lt._call("cublasLtCreate", ctypes.byref(lt.handle))
    return lt
