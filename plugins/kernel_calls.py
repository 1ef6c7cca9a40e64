"""The CUDA kernels of plugins/kernels/ as Python calls: addresses, sizes and a stream, as their C interface has them.

Knows the C interface and nothing of who owns the memory: the PyTorch operators and the kernels' benchmark both call
through here. What each function computes, and what it asks of its arguments, is said in the headers.
"""

import ctypes
from dataclasses import dataclass
from pathlib import Path

from actvar.errors import ActVARError, EngineError
from actvar.plugins.library import PLUGIN_VARIABLE, kernel_library

DTYPE_CODES = {"float32": 0, "float16": 1, "bfloat16": 2}
"""ActvarDtype by name."""

TACTICS = range(1, 8)
"""Of the routed FFN; 0 chooses one by the shape."""

_INT, _FLOAT, _SIZE, _ADDRESS = ctypes.c_int, ctypes.c_float, ctypes.c_size_t, ctypes.c_void_p
_LAUNCHERS = {
    "actvarTokenSelect": (_ADDRESS, _INT, _INT, _INT, _ADDRESS, _ADDRESS, _ADDRESS),
    "actvarTokenGather": (*(_ADDRESS,) * 3, *(_INT,) * 5, _ADDRESS),
    "actvarTokenScatter": (*(_ADDRESS,) * 4, *(_INT,) * 5, _ADDRESS),
    "actvarTokenGatherNorm": (*(_ADDRESS,) * 6, *(_INT,) * 4, _FLOAT, _INT, _ADDRESS),
    "actvarTokenScatterGated": (*(_ADDRESS,) * 6, *(_INT,) * 5, _ADDRESS),
    "actvarExpertRoute": (_ADDRESS, _INT, _INT, _INT, _ADDRESS, _ADDRESS),
    "actvarExpertOrder": (_ADDRESS, _INT, _INT, _INT, _ADDRESS, _ADDRESS, _ADDRESS),
    "actvarRoutedFfnPlanOf": (_ADDRESS, _INT, _ADDRESS),
    "actvarRoutedFfn": (_ADDRESS, _INT, *(_ADDRESS,) * 8, _SIZE, _ADDRESS),
}
_SIZES = {
    "actvarExpertOrderWorkspace": (_INT, _INT),
    "actvarRoutedFfnWorkspace": (_ADDRESS, _INT),
}
# Of cudaError_t, those that a user can do something about.
_MEANINGS = {
    1: "invalid value: a size is not one that the kernel takes",
    35: "the driver is older than the CUDA that the library was built with: update the driver",
    100: "there is no NVIDIA GPU",
    209: "the library has no code for this GPU: build it for this architecture",
    716: "an address is not aligned to 16 bytes",
    801: "not supported by this GPU: bf16 needs compute capability 8.0",
}


class RoutedFfnShape(ctypes.Structure):
    """ActvarRoutedFfnShape: M tokens, width C, hidden neurons of an expert, N experts, active experts, dtype."""

    _fields_ = [(name, ctypes.c_int) for name in ("tokens", "width", "hidden", "experts", "active", "dtype")]


class RoutedFfnPlan(ctypes.Structure):
    """ActvarRoutedFfnPlan: how a tactic cuts the work."""

    _fields_ = [(name, ctypes.c_int) for name in ("tile_rows", "slices", "sorted")]


@dataclass(frozen=True)
class Kernels:
    """A loaded library; see `open_kernels`. Every call puts its work on a stream and does not wait for it."""

    library: ctypes.CDLL

    def launch(self, function: str, *arguments: object) -> None:
        """Call a function whose last argument is the stream, with arguments as its header has them.

        Raises:
            EngineError: CUDA refused it; sizes and addresses are the caller's to have checked.
        """
        code = getattr(self.library, function)(*arguments)
        if code:
            meaning = _MEANINGS.get(code, "see cudaError_t in CUDA's documentation")
            raise EngineError(f"The kernel {function} failed with CUDA error {code}: {meaning}.")

    def routed_ffn_workspace(self, shape: RoutedFfnShape, tactic: int = 0) -> int:
        """Bytes that the routed FFN needs."""
        return self.library.actvarRoutedFfnWorkspace(ctypes.byref(shape), tactic)

    def expert_order_workspace(self, tokens: int, slices: int) -> int:
        """Bytes that the ordering of tokens needs."""
        return self.library.actvarExpertOrderWorkspace(tokens, slices)

    def routed_ffn_plan(self, shape: RoutedFfnShape, tactic: int) -> RoutedFfnPlan:
        """How a tactic cuts the work of a shape.

        Raises:
            EngineError: there is no such shape or tactic.
        """
        plan = RoutedFfnPlan()
        self.launch("actvarRoutedFfnPlanOf", ctypes.byref(shape), tactic, ctypes.byref(plan))
        return plan


def open_kernels(path: Path | None = None) -> Kernels:
    """Load the kernels.

    Args:
        path: the library; None looks for it.

    Raises:
        ActVARError: there is none.
        EngineError: it cannot be loaded, or is no library of these kernels.
    """
    found = path or kernel_library()
    if found is None:
        raise ActVARError(
            "The CUDA kernels are not built here. Build them with: cmake -S . -B build && cmake --build build, "
            f"or name the library in {PLUGIN_VARIABLE}."
        )
    try:
        library = ctypes.CDLL(str(found))
        for functions, result in ((_LAUNCHERS, _INT), (_SIZES, _SIZE)):
            for name, arguments in functions.items():
                function = getattr(library, name)
                function.argtypes, function.restype = arguments, result
    except (OSError, AttributeError) as error:
        raise EngineError(f"{found} cannot be used: {error}. Build it anew.") from None
    return Kernels(library)
