"""What an ONNX file is made of and which weights it reads, found without the onnx package and before an engine sees it.

Three reasons to look. All graphs of a bundle are to share one mapping of the weights, so it must be known where each
tensor lies. A graph's writer chose the file names in it: ONNX Runtime 1.32 refuses one that leads out of the folder,
but 1.23 reads it, and crashes on a name that stands for an address in memory. And whoever writes a graph could write
one that never ends, takes all memory or ends the engine's process: so only nodes that the exporter could have written
pass (`operators.py`), and numbers that shapes are made of are bounded.

Knows of ONNX the field numbers on the way to tensors and nodes.
Where the form allows two readings (a field given twice), all are looked at.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actvar.bundle.contract import ENCODER
from actvar.bundle.manifest import EXPORT_AGAIN
from actvar.bundle.operators import IN_BODIES, IN_DECODERS, IN_ENCODERS, IN_SCALES, MOST, check_node
from actvar.bundle.wire import fields, numbers, signed
from actvar.errors import BundleError, DamagedError, counted

# From message and field number to the message that the field holds, on every way from a model to a tensor (onnx.proto).
_WAYS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}
_INITIALIZER = (7, 5)  # the way to a weight of the graph itself
_FUNCTION = 25  # the way to the bodies of our own operators
_DIMS, _TYPE, _NAME, _EXTERNAL = 1, 2, 8, 13  # fields of Tensor
_INT64, _INT64_DATA, _RAW_DATA = 7, 7, 9  # a type, and two more fields
_KEY, _VALUE = 1, 2  # fields of an external tensor's entries
_TYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16"}
_MAX_DEPTH = 64
_OWN_RULES = {"decoder": IN_DECODERS, ENCODER: IN_ENCODERS}  # of graphs by their files' names


@dataclass(frozen=True)
class ExternalTensor:
    """A weight of a graph: its place in the weights file, `offset` in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def length(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def external_tensors(path: Path, weights: str) -> list[ExternalTensor]:
    """The weights that a graph reads from another file, when all in it has been found to be the exporter's.

    Args:
        path: the ONNX file.
        weights: the only file name that may stand in it.

    Raises:
        DamagedError: the file is no graph, another file is named, or it holds an operator, a constant or a tensor that
            no export writes.
    """
    try:
        parts = list(_parts(memoryview(path.read_bytes()), "Model", ()))
        tensors = [(way, part) for way, kind, part in parts if kind == "Tensor"]
        found = [_read(tensor, way, weights) for way, tensor in tensors if _is_external(tensor)]
        constants: dict[str, list[list[int]]] = {}
        for _, tensor in tensors:
            if not _is_external(tensor):
                name, values = _constant(tensor, may_be_empty=path.stem not in _OWN_RULES)
                constants.setdefault(name, []).append(values)
        own = _OWN_RULES.get(path.stem, IN_SCALES)
        for way, kind, part in parts:
            if kind == "Node":
                check_node(part, IN_BODIES if way[0] == _FUNCTION else own, lambda name: constants.get(name, []))
        return found
    except (IndexError, ValueError) as error:
        raise DamagedError(f"{path} is not a graph that can be used: {error}. {EXPORT_AGAIN}") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}.") from None


def _parts(message: memoryview, kind: str, way: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], str, memoryview]]:
    """Every node and every tensor in a message and below it, with the fields that led there."""
    if len(way) > _MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    for number, value in fields(message):
        held = _WAYS[kind].get(number)
        if held is None or isinstance(value, int):
            continue
        if held in ("Tensor", "Node"):
            yield (*way, number), held, value
        if held != "Tensor":
            yield from _parts(value, held, (*way, number))


def _constant(tensor: memoryview, may_be_empty: bool) -> tuple[str, list[int]]:
    """Name and whole numbers of a constant that has its values in the file, and of which a shape stays in bounds."""
    name, values, raw, count, dtype = "", list[int](), b"", 1, 0
    for number, value in fields(tensor):
        if number == _DIMS:
            for size in numbers(value):
                count *= size
        elif number == _TYPE and isinstance(value, int):
            dtype = value
        elif number == _INT64_DATA:
            values += numbers(value)
        elif number == _RAW_DATA and not isinstance(value, int):
            raw += bytes(value)
        elif number == _NAME and not isinstance(value, int):
            name = bytes(value).decode()
    if not count and not may_be_empty:
        raise ValueError("it holds a constant without a value, which no export writes there")
    if count > len(tensor):
        raise ValueError(f"it holds a constant of {counted(count, 'value')} in {len(tensor)} bytes")
    if dtype != _INT64:
        return name, []
    sizes = [*map(signed, values), *np.frombuffer(raw, np.int64).tolist()]
    if wrong := next((size for size in sizes if abs(size) > MOST), None):
        raise ValueError(f"it holds the constant {wrong}, by which no export shapes a tensor")
    return name, sizes


def _is_external(tensor: memoryview) -> bool:
    return any(number == _EXTERNAL for number, _ in fields(tensor))


def _read(tensor: memoryview, way: tuple[int, ...], weights: str) -> ExternalTensor:
    name, dtype, shape, where = "", "", list[int](), dict[str, str]()
    for number, value in fields(tensor):
        if number == _EXTERNAL and not isinstance(value, int):
            key, text = _entry(value)
            if key in where:
                raise ValueError(f"a tensor has two entries {key!r}")
            where[key] = text
        elif number == _DIMS:
            shape += numbers(value)
        elif number == _TYPE and isinstance(value, int):
            dtype = _TYPES.get(value, "")
        elif number == _NAME and not isinstance(value, int):
            name = bytes(value).decode()
    if where.get("location") != weights:
        raise ValueError(f"it reads the file {where.get('location', '')[:80]!r}, and may read {weights} alone")
    if way != _INITIALIZER or not dtype or not where.keys() >= {"offset", "length"}:
        raise ValueError(f"the tensor {name[:80]!r} is described in a way that no export uses")
    found = ExternalTensor(name, dtype, tuple(shape), int(where["offset"]))
    if 0 in shape or found.offset < 0 or found.length != int(where["length"]):
        raise ValueError(f"the tensor {name[:80]!r} of {found.length} bytes is said to have {where['length'][:20]}")
    return found


def _entry(message: memoryview) -> tuple[str, str]:
    """Key and value of an entry; of a field that is given twice the last counts, which is refused here."""
    texts = [(number, bytes(value).decode()) for number, value in fields(message) if not isinstance(value, int)]
    if sorted(number for number, _ in texts) != [_KEY, _VALUE]:
        raise ValueError("a tensor's entry is not one key and one value")
    by_number = dict(texts)
    return by_number[_KEY], by_number[_VALUE]
