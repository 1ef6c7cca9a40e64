"""What a pickle of torch.save holds, found by reading its opcodes, before anything is made of it.

`torch.load(weights_only=True)` runs no foreign code, but it does all else that a pickle says: `bytearray(10**9)` takes
the memory, as does a small list that is copied a million times; chosen keys make a dictionary slow for hours; a tensor
may be larger than its storage, and the storage then grows. This reader goes over the same opcodes first and refuses
every function but the few that tensors, numbers and texts in dictionaries need. It calls none of them, and it counts:
opcodes, bytes, copies, nesting. What it lets pass takes memory in proportion to the file.
"""

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from actvar.errors import shown

MAX_PICKLE_BYTES = 64 << 20
MAX_OPCODES = 1_000_000  # and values that are copied; a training state of VAR-d36 has some 150,000
MAX_NESTING = 100
_MAX_RANK = 64
_MAX_KEY = 1 << 63
_MAX_NAME = 200  # characters of a name in a message

STORAGES = {
    **{"DoubleStorage": ("float64", 8), "FloatStorage": ("float32", 4), "HalfStorage": ("float16", 2)},
    **{"BFloat16Storage": ("bfloat16", 2), "LongStorage": ("int64", 8), "IntStorage": ("int32", 4)},
    **{"ShortStorage": ("int16", 2), "CharStorage": ("int8", 1), "ByteStorage": ("uint8", 1)},
    **{"BoolStorage": ("bool", 1), "ComplexDoubleStorage": ("complex128", 16), "ComplexFloatStorage": ("complex64", 8)},
    **{"QInt8Storage": ("qint8", 1), "QUInt8Storage": ("quint8", 1), "QInt32Storage": ("qint32", 4)},
    **{"QUInt4x2Storage": ("quint4x2", 1), "QUInt2x4Storage": ("quint2x4", 1), "UntypedStorage": ("uint8", 1)},
}
"""PyTorch's classes of storages: the type of their values, and the bytes of one."""

_WIDTHS = {"float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1}
_WIDTHS |= {"uint16": 2, "uint32": 4, "uint64": 8, "complex32": 4, "float4_e2m1fn_x2": 1} | dict(STORAGES.values())
_WIDTHS |= {f"{kind}{bits}": 1 for kind in ("int", "uint") for bits in range(1, 8)}

_PLAIN_CLASSES = {"collections.OrderedDict", "collections.Counter", "builtins.set", "torch.Size", "torch.device"}
_HARMLESS = {f"torch.{name}" for name in _WIDTHS} | {
    *(f"torch.{kind}" for kind in ("per_tensor_affine", "per_channel_affine", "per_channel_affine_float_qparams")),
    *("torch.Tensor", "torch.nn.parameter.Parameter", "torch.serialization._get_layout"),
}
_ODD_TENSORS = {
    "torch._utils._rebuild_qtensor": "quantised tensor",
    "torch._utils._rebuild_sparse_tensor": "sparse tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "meta tensor, which has no values",
    "torch._utils._rebuild_nested_tensor": "nested tensor",
    "torch._utils._rebuild_wrapper_subclass": "tensor of a sub-class",
    "torch._utils._rebuild_parameter_with_state": "tensor with attributes",
    "torch._tensor._rebuild_from_type_v2": "tensor of a sub-class or with attributes",
    "torch._utils._rebuild_device_tensor_from_numpy": "tensor of another device",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "tensor of another device",
}
_TENSORS = {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter"}
_NAMESPACE = "argparse.Namespace"
_ALLOWED = (
    {_NAMESPACE} | _PLAIN_CLASSES | _HARMLESS | _ODD_TENSORS.keys() | {f"torch._utils.{name}" for name in _TENSORS}
)
_TAKES_MEMORY = {"builtins.bytearray", "_codecs.encode", "builtins.complex"}  # which torch.load would call


class PickleError(ValueError):
    """A pickle is not one that is read; the text completes "is refused: …"."""


class OddTensorError(ValueError):
    """A tensor is not a plain one; `name` says where it stands, and the text completes "found …"."""

    def __init__(self, name: str, what: str):
        super().__init__(what)
        self.name = name


@dataclass(frozen=True, eq=False)
class Storage:
    """A piece of memory that tensors are views of."""

    dtype: str
    width: int  # bytes of one value
    nbytes: int


@dataclass(frozen=True, eq=False)
class _Function:
    name: str


@dataclass(frozen=True, eq=False)
class _Tensor:
    dtype: str
    odd: str = ""


class _Ordered(dict[Any, Any]):
    """What will be an OrderedDict, which may be given attributes: a module's state has `_metadata`."""


class _Namespace(dict[str, Any]):
    """What will be an argparse.Namespace: training scripts save their options beside the model."""


_CONTAINERS = (dict, list, tuple, set)


def read_pickle(stream: IO[bytes], storage_of: Callable[[tuple[Any, ...]], Storage]) -> Any:
    """Read one pickle.

    Args:
        stream: at the pickle's first byte; afterwards behind its last.
        storage_of: gives the storage that a persistent id names, whose first part, "storage", is left out.

    Returns: what it holds, of dictionaries, lists, tuples, numbers and texts; whatever else it has is not told.

    Raises:
        PickleError: it wants anything but tensors and plain values, is larger than any checkpoint's, or no pickle.
        OddTensorError: a tensor is sparse, quantised, of a sub-class, or has its values elsewhere.
    """
    content, odd = _Machine(storage_of).run(stream)
    _require_plain(content, odd)
    return content


class _Machine:
    """Pickle's machine, as far as torch.save uses it."""

    def __init__(self, storage_of: Callable[[tuple[Any, ...]], Storage]):
        self._storage_of = storage_of
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._work = 0
        self._odd: list[_Tensor] = []

    def run(self, stream: IO[bytes]) -> tuple[Any, list[_Tensor]]:
        """Go over the opcodes up to STOP. Returns what is left on the stack, and the tensors that are not plain."""
        start = None
        try:
            for opcode, argument, place in pickletools.genops(stream):
                start = place if start is None else start
                if place - start > MAX_PICKLE_BYTES:  # type: ignore[operator]  # both are numbers where a stream tells
                    raise PickleError(f"its pickle is larger than {MAX_PICKLE_BYTES} bytes, which no checkpoint's is")
                self._spend(1)
                if opcode.name == "STOP":
                    return self._stack.pop(), self._odd
                self._step(opcode.name, argument)
        except PickleError:
            raise
        except (ValueError, IndexError, KeyError, TypeError) as error:
            raise PickleError(f"its pickle is damaged ({shown(error, 80)})") from None
        raise PickleError("its pickle is cut short")

    def _spend(self, work: int) -> None:
        self._work += work
        if self._work > MAX_OPCODES:
            raise PickleError(f"its pickle has more than {MAX_OPCODES} steps, which no checkpoint's has")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _VALUES:
            make = _VALUES[name]
            stack.append(make() if make else argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            if len(self._marked) >= MAX_NESTING:
                raise PickleError(f"its pickle is nested more than {MAX_NESTING} times")
            self._marked.append(stack)
            self._stack = []
        elif name == "TUPLE":
            made = tuple(self._pop_mark())
            self._stack.append(made)
        elif name in _TUPLES:
            count = _TUPLES[name]
            if len(stack) < count:
                raise IndexError("a tuple of values that are not there")
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._pop_mark()
            self._top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else self._pop_mark()
            target = self._top(dict)
            target.update((_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(_Function(_allowed(argument)))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack[-1] = self._result(stack[-1], arguments)
        elif name == "NEWOBJ":
            arguments, function = stack.pop(), stack.pop()
            if not isinstance(function, _Function) or function.name != _NAMESPACE or arguments != ():
                raise PickleError("its pickle makes an object, which torch.save of tensors does not")
            stack.append(_Namespace())
        elif name == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], _Ordered | _Namespace) or not _is_attributes(state):
                raise PickleError("its pickle gives attributes to what has none")
            self._spend(len(state))
            if isinstance(stack[-1], _Namespace):
                stack[-1].update(state)
        elif name == "BINPERSID":
            stack[-1] = self._storage(stack[-1])
        elif name != "PROTO":
            raise PickleError(f"its pickle has the opcode {name}, which torch.save does not write")
        elif argument != 2:
            raise PickleError(f"it is a pickle of protocol {argument}, and torch.save writes 2")

    def _pop_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _top(self, kind: type) -> Any:
        top = self._stack[-1]
        if not isinstance(top, kind):
            raise PickleError("its pickle puts items into what is no list or dictionary")
        return top

    def _storage(self, name: Any) -> Storage:
        if not isinstance(name, tuple) or name[:1] != ("storage",):
            raise PickleError("its pickle refers to something outside that is no storage")
        return self._storage_of(tuple(part.name if isinstance(part, _Function) else part for part in name[1:]))

    def _result(self, function: Any, arguments: Any) -> Any:
        """What a function would give for these arguments; copies are counted, as each could be made again and again."""
        if not isinstance(function, _Function) or not isinstance(arguments, tuple):
            raise PickleError("its pickle calls what is no function")
        name = function.name.rpartition(".")[2]
        if function.name in _ODD_TENSORS:
            self._odd.append(_odd_tensor(function.name, arguments))
            return self._odd[-1]
        if name in _TENSORS:
            return _tensor(name, arguments)
        if name == "_get_layout" and len(arguments) == 1 and isinstance(arguments[0], str):
            return arguments[0]
        if name == "device" and 1 <= len(arguments) <= 2 and isinstance(arguments[0], str) and len(arguments[0]) < 40:
            return arguments[0]
        if function.name not in _PLAIN_CLASSES or len(arguments) > 1 or name == "device":
            raise PickleError(f"its pickle calls {function.name} in a way that torch.save does not")
        items = arguments[0] if arguments else ()
        if not isinstance(items, _CONTAINERS):
            raise PickleError(f"its pickle calls {function.name} in a way that torch.save does not")
        self._spend(len(items))
        if name == "OrderedDict":  # of pairs, as Python 2 wrote it
            return _Ordered((_key(pair[0]), pair[1]) for pair in items if _is_pair(pair))
        if name == "Counter" and isinstance(items, dict):
            return dict(items)
        if name == "set":
            return {_key(item) for item in items}
        if name == "Size" and isinstance(items, tuple) and all(type(item) is int for item in items):
            return items
        raise PickleError(f"its pickle calls {function.name} in a way that torch.save does not")


_VALUES: dict[str, Callable[[], Any] | None] = {
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
    **{"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set},
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING")),
}
"""What makes an opcode's value; None where its argument is the value."""

_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _allowed(argument: str) -> str:
    """The function that a GLOBAL names, as module.name."""
    module, _, name = argument.partition(" ")
    function = f"{'builtins' if module == '__builtin__' else module}.{name}"
    storage = function.removeprefix("torch.storage." if name == "UntypedStorage" else "torch.")
    if function in _ALLOWED or storage in STORAGES:
        return function
    danger = "take any memory" if function in _TAKES_MEMORY else "run code"
    raise PickleError(f"beside tensors it asks for {shown(function)}, which could {danger}")


def _key(key: Any) -> Any:
    """A key that no file can choose to be slow: texts are hashed at random, and numbers of 64 bits differ enough."""
    if isinstance(key, str) or key is None or (isinstance(key, int) and -_MAX_KEY < key < _MAX_KEY):
        return key
    raise PickleError("its pickle has a key that is neither a text nor a number")


def _is_pair(pair: Any) -> bool:
    if isinstance(pair, (list, tuple)) and len(pair) == 2:
        return True
    raise PickleError("its pickle makes a dictionary of what are no pairs")


def _is_attributes(state: Any) -> bool:
    """Whether these can be given to an OrderedDict without hiding one of its methods."""
    return isinstance(state, dict) and all(isinstance(key, str) and not hasattr(OrderedDict, key) for key in state)


def _tensor(function: str, arguments: tuple[Any, ...]) -> _Tensor:
    """A tensor of these arguments, which must lie within its storage: PyTorch would enlarge it."""
    if function == "_rebuild_parameter":
        data, needs_grad, hooks = arguments
        if not isinstance(data, _Tensor) or not isinstance(needs_grad, bool) or hooks:
            raise PickleError("its pickle has a parameter that is no tensor")
        return data
    storage, offset, size, stride, *flags = arguments
    dtype, width = (storage.dtype, storage.width) if isinstance(storage, Storage) else ("", 0)
    if function == "_rebuild_tensor_v3" and len(flags) > 2 and isinstance(flags[2], _Function):
        dtype = flags.pop(2).name.rpartition(".")[2]
        width = _WIDTHS.get(dtype, 0)
    if not width or not _are_flags(*flags):
        raise PickleError("its pickle has a tensor in a form that torch.save does not write")
    numbers = (offset, *size, *stride) if isinstance(size, tuple) and isinstance(stride, tuple) else (-1,)
    if len(numbers) > 2 * _MAX_RANK or any(type(n) is not int or not 0 <= n < _MAX_KEY for n in numbers):
        raise PickleError("its pickle has a tensor with sizes that are none")
    last = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and (offset + last + 1) * width > storage.nbytes:
        raise PickleError("its pickle has a tensor that is larger than its storage")
    return _Tensor(dtype)


def _are_flags(needs_grad: Any = False, hooks: Any = None, bits: Any = None, *more: Any) -> bool:
    """Whether the rest of a tensor's arguments is what torch.save writes: no hooks, and no bits but its own two."""
    known = not bits or (isinstance(bits, dict) and bits.keys() <= {"conj", "neg"})
    return isinstance(needs_grad, bool) and not hooks and known and not more


def _odd_tensor(function: str, arguments: tuple[Any, ...]) -> _Tensor:
    """What a message says of a tensor that is not plain, as far as its arguments tell."""
    if function.endswith("_rebuild_sparse_tensor") and len(arguments) == 2 and isinstance(arguments[0], str):
        layout, data = arguments
        parts = [part for part in data if isinstance(part, _Tensor)] if isinstance(data, tuple) else []
        shape = next((part for part in data[2:] if _is_shape(part)), ()) if isinstance(data, tuple) else ()
        if parts:
            layout = shown(layout.removeprefix("torch."), 20)
            return _Tensor("", f"{parts[-1].dtype} {layout} of the shape {shown(list(shape), 100)}")
    return _Tensor("", f"a {_ODD_TENSORS[function]}")


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= _MAX_RANK and all(type(n) is int for n in value)


def _require_plain(content: Any, odd: list[_Tensor]) -> None:
    """Refuse what is nested too deeply, and tensors that are not plain, by their names."""
    for name, value in _walk(content):
        if isinstance(value, _Tensor) and value.odd:
            raise OddTensorError(name, value.odd)
    if odd:
        raise OddTensorError("a tensor", odd[0].odd)


def _walk(content: Any) -> Iterator[tuple[str, Any]]:
    """Everything that the content holds, once, with its dotted name; whatever is nearest comes first."""
    seen: set[int] = set()
    level: list[tuple[str, Any]] = [("", content)]
    for _ in range(MAX_NESTING):
        below: list[tuple[str, Any]] = []
        for name, value in level:
            if not isinstance(value, _CONTAINERS):
                yield name, value
            elif id(value) not in seen:
                seen.add(id(value))
                items = value.items() if isinstance(value, dict) else enumerate(value)
                prefix = f"{name[:_MAX_NAME]}." if name else ""
                below += [(f"{prefix}{str(key)[:_MAX_NAME]}", item) for key, item in items]
        level = below
    if level:
        raise PickleError(f"what it holds is nested more than {MAX_NESTING} times")
