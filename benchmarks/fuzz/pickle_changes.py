"""Seeded changes to a pickle of torch.save's: its opcodes, its functions, what it calls them with. Plain Python."""

import pickletools
import random
import struct
from collections.abc import Callable
from itertools import pairwise

_FUNCTIONS = (
    *(
        "argparse Namespace",
        "posix system",
        "builtins eval",
        "builtins bytearray",
        "builtins set",
        "builtins complex",
        "_codecs encode",
    ),
    *("collections OrderedDict", "collections Counter", "torch Size", "torch Tensor", "torch device", "torch float32"),
    *("torch FloatStorage", "torch.storage UntypedStorage", "torch.storage TypedStorage", "torch ComplexFloatStorage"),
    *("torch.nn.parameter Parameter", "torch.serialization _get_layout", "torch._tensor _rebuild_from_type_v2"),
    *("torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3"),
    *("torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state", "torch.sparse FloatTensor"),
    *("torch._utils _rebuild_qtensor", "torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_nested_tensor"),
    *("torch._utils _rebuild_meta_tensor_no_storage", "torch._utils _rebuild_wrapper_subclass", "torch quint8"),
    *("torch._utils _rebuild_device_tensor_from_cpu_tensor", "torch per_tensor_affine", "torch sparse_coo"),
)


def changed_pickle(data: bytes, rng: random.Random) -> bytes:
    """The first pickle in the data with one to three changes; what follows it stays."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = _change(data, rng)
    return data


def _change(data: bytes, rng: random.Random) -> bytes:
    try:
        places = [place for _, _, place in pickletools.genops(data) if place is not None]
    except ValueError:  # an earlier change left no pickle
        return changed_bytes(data, rng)
    end = places[-1]
    at = rng.choice(places)
    kind = rng.randrange(10)
    if kind == 0:
        return changed_bytes(data[: end + 1], rng) + data[end + 1 :]
    if kind <= 2:  # an item more of a dictionary or a tuple, so that the rest is still read
        operations = pickletools.genops(data)
        marks = [place + 1 for opcode, _, place in operations if opcode.name == "MARK" and place is not None]
        at = rng.choice(marks or places)
        return data[:at] + _text("more") * rng.choice((0, 1, 1)) + _fragment(rng) + data[at:]
    if kind == 3:
        return data[:at] + _fragment(rng) + data[at:]
    start, stop = rng.choice(list(pairwise(places)) or [(0, end)])
    if kind == 4:
        return data[:start] + data[stop:]
    if kind == 5:
        return data[:stop] + data[start:stop] * rng.choice((1, 2, 1000)) + data[stop:]
    if kind == 6:
        return data[:start] + _value(rng) + data[stop:]
    if kind == 7:
        return data[:at] + data[rng.choice(places) : end] + data[at:]
    return _other_argument(data, rng, functions=kind == 8)


def _other_argument(data: bytes, rng: random.Random, functions: bool) -> bytes:
    """Another function where one is named, or another number where one stands."""
    names = ("GLOBAL",) if functions else ("BININT", "BININT1", "BININT2", "LONG1", "NEWFALSE", "NEWTRUE", "NONE")
    operations = list(pickletools.genops(data))
    found = [i for i, (opcode, _, _) in enumerate(operations[:-1]) if opcode.name in names]
    if not found:
        return data
    i = rng.choice(found)
    start, stop = operations[i][2], operations[i + 1][2]
    return data[:start] + (_function(rng.choice(_FUNCTIONS)) if functions else _value(rng)) + data[stop:]


def _function(name: str) -> bytes:
    module, _, name = name.partition(" ")
    return f"c{module}\n{name}\n".encode()


def _number(value: int) -> bytes:
    if 0 <= value < 1 << 16:
        return b"M" + struct.pack("<H", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def _text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def _value(rng: random.Random) -> bytes:
    numbers = (0, 1, 7, -1, 64, 1 << 31, 1 << 40, 1 << 62, 1 << 63, 1 << 64, -(1 << 63), 1 << 1000)
    texts = ("", "0", "1", "cpu", "cuda:0", "meta", "storage", "module", "../../x", "\ud800", "\x1b[2J", "x" * 5000)
    makers: tuple[Callable[[], bytes], ...] = (
        lambda: _number(rng.choice(numbers)),
        lambda: _text(rng.choice(texts)),
        lambda: rng.choice((b"N", b"\x88", b"\x89", b")", b"]", b"}", b"\x8f")),
        lambda: b"G" + rng.choice((b"\x7f\xf8", b"\x7f\xf0", b"\x3f\xf0")) + bytes(6),
        lambda: _function(rng.choice(_FUNCTIONS)),
    )
    return rng.choice(makers)()


def _fragment(rng: random.Random) -> bytes:
    """Opcodes that an attacker would put in; most of them leave one value."""
    makers: tuple[Callable[[], bytes], ...] = (
        lambda: _value(rng),
        lambda: _function("builtins bytearray") + _number(rng.choice((10**9, 10**12))) + b"\x85R",
        lambda: _function("_codecs encode") + _text("y" * 10_000) + _text("latin1") + b"\x86R",
        lambda: _function(rng.choice(_FUNCTIONS)) + _values(rng, 8) + b"tR",
        lambda: _function(rng.choice(_FUNCTIONS)) + _values(rng, 2) + b"tR",
        lambda: _function(rng.choice(_FUNCTIONS)) + b")R",
        lambda: _function(rng.choice(_FUNCTIONS)) + b")\x81",
        lambda: b"(" * rng.choice((10, 2000)),
        lambda: b"]" * rng.choice((10, 2000)) + b"a" * rng.choice((9, 1999)),
        lambda: rng.choice((b")", b"N")) + b"\x85" * rng.choice((50, 200, 100_000)),
        lambda: b"r" + struct.pack("<I", rng.choice((0, 5, 0xFFFFFFFF))),
        lambda: b"h" + rng.randbytes(1),
        lambda: _values(rng, 7) + b"tQ",
        lambda: _function("collections OrderedDict") + b")R}" + _text(rng.choice(("_metadata", "items"))) + b"]sb",
        lambda: b"}" + _value(rng) + _value(rng) + b"s",
        lambda: b"X" + struct.pack("<I", rng.choice((0xFFFFFFFF, 1 << 30))),
        lambda: b"\x8b" + struct.pack("<i", 1 << 30),
        lambda: b"\x80" + bytes([rng.randrange(6)]),
        lambda: b".",
        lambda: b"0",
        lambda: _copies(rng),
    )
    return rng.choice(makers)()


def _values(rng: random.Random, most: int) -> bytes:
    return b"(" + b"".join(_value(rng) for _ in range(rng.randrange(most + 1)))


def _copies(rng: random.Random) -> bytes:
    """A list of the copies that a function makes of one value of the file."""
    function = rng.choice(("collections OrderedDict", "builtins set", "torch Size"))
    pair = b"](" + _text("a") + b"K\x01e"
    items = {"builtins set": b"](" + b"K\x01" * 3000 + b"e", "torch Size": b"(" + b"K\x01" * 3000 + b"t"}
    made = items.get(function, b"](" + pair * 300 + b"e")
    copy = _function(function) + b"j\xff\xff\x00\x00\x85R"
    return b"](" + made + b"r\xff\xff\x00\x00" + copy * rng.choice((3, 3000)) + b"e"


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """Data with a few bytes changed, cut out, doubled, or grown."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(len(content) + 1)
        end = min(len(content), place + rng.choice((1, 2, 4, 8, 64)))
        kind = rng.randrange(5)
        if kind == 0 and place < len(content):
            content[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[place:end] = rng.randbytes(end - place)
        elif kind == 2:
            del content[place:end]
        elif kind == 3:
            content[place:place] = content[place:end]
        else:
            content[place:end] = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * (end - place)
    return bytes(content)
