"""PyTorch's files as an attacker would write them: pickles that take memory or time, and archives that lie."""

import pickle
import struct
import tarfile
import time
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_checkpoints import official_files, refused, tiny_var

from actvar.checkpoint import pickled


class Call:
    """Written as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


@pytest.fixture(params=["zip", "old"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], Path]:
    """Saves in each of PyTorch's two forms."""

    def save(content: Any) -> Path:
        path = tmp_path / f"{request.param}.pth"
        torch.save(content, path, _use_new_zipfile_serialization=request.param == "zip")
        return path

    return save


# ---- pickles


def test_a_call_that_takes_any_memory_is_refused(save):
    """`weights_only` lets it pass."""
    refused(
        r"beside tensors it asks for builtins\.bytearray, which could take any memory",
        save({"x": Call(bytearray, 1 << 40)}),
    )
    refused(r"it asks for _codecs\.encode, which could take any memory", save({"x": b"bytes"}))


@pytest.mark.parametrize(
    ("function", "items"),
    [
        (OrderedDict, [(str(i), i) for i in range(5000)]),
        (Counter, {str(i): i for i in range(5000)}),
        (set, list(range(5000))),
        (torch.Size, tuple(range(5000))),
    ],
    ids=["OrderedDict", "Counter", "set", "Size"],
)
def test_copies_of_one_value_are_counted(save, function, items):
    """A thousand calls for one list of the file: 10 MB of file would be 100 GB."""
    few, many = save({"x": [Call(function, items) for _ in range(3)]}), None
    refused("holds no VAR", few)
    many = save({"x": [Call(function, items) for _ in range(1000)]})
    refused("its pickle has more than 1000000 steps", many)


@pytest.mark.parametrize(
    "key", [1 << 64, -(1 << 63), 0.5, (1, 2), 1j], ids=["large", "small", "float", "tuple", "complex"]
)
def test_keys_that_could_collide_are_refused(save, key):
    """Hashes of numbers and tuples can be chosen, and a dictionary of equal ones takes the square of its size."""
    refused("has a key that is neither a text nor a number|asks for builtins.complex", save({"x": {key: 1}}))


def nested(make: Callable[[Any], Any], depth: int) -> Any:
    content: Any = 1
    for _ in range(depth):
        content = make(content)
    return content


@pytest.mark.parametrize(
    "make",
    [lambda x: [x], lambda x: (x,), lambda x: {"x": x}, lambda x: OrderedDict(x=x)],
    ids=["list", "tuple", "dict", "od"],
)
def test_deep_nesting_is_refused(save, make):
    refused("holds no VAR", save({"x": nested(make, 50)}))
    refused("nested more than 100 times", save({"x": nested(make, 150)}))


def raw(path: Path, code: bytes) -> Path:
    """A file whose archive holds this pickle."""
    torch.save({}, path)
    return repacked(path, {"data.pkl": b"\x80\x02" + code + b"."})


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (b"", "its pickle is damaged"),
        (b"}q\x00h\x07", "its pickle is damaged"),  # from a place of the memo that is empty
        (b"}R", "its pickle is damaged"),
        (b"K\x01)R", "calls what is no function"),
        (b"ccollections\nOrderedDict\nK\x01R", "calls what is no function"),
        (b"ccollections\nOrderedDict\n)\x81", "makes an object, which torch.save of tensors does not"),
        (b"cargparse\nNamespace\nK\x01\x85\x81", "makes an object"),
        (b"cargparse\nNamespace\nK\x01\x85R", "calls argparse.Namespace in a way"),
        (b"cargparse\nNamespace\n)\x81K\x01b", "gives attributes to what has none"),
        (b"cargparse\nNamespace\n)\x81}K\x01K\x02sb", "gives attributes to what has none"),
        (b"cargparse\nNamespace\n)\x81}X\x01\x00\x00\x00xK\x01sb", "holds Namespace where a checkpoint"),
        (b"ctorch\nTensor\nK\x09\x85R", "calls torch.Tensor in a way"),
        (b"ctorch.nn.parameter\nParameter\n)R", "calls torch.nn.parameter.Parameter in a way"),
        (b"ctorch\nFloatStorage\nJ\xff\xff\xff\x7f\x85R", "calls torch.FloatStorage in a way"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "its pickle is damaged"),
        (b"ctorch.serialization\n_get_layout\nX\x01\x00\x00\x00x\x85R", "cut short, damaged, or something else"),
        (b"}(K\x01K\x02K\x03u", "its pickle is damaged"),
        (b"K\x01K\x02K\x03s", "puts items into what is no list or dictionary"),
        (b"}K\x02a", "puts items into what is no list or dictionary"),
        (b"}}b", "gives attributes to what has none"),
        (b"ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb", "gives attributes to what has none"),
        (b"(" * 200 + b"}", "is nested more than 100 times"),
        (b"X\xff\xff\xff\xff}", "its pickle is damaged"),
        (b"\x8b\xff\xff\xff\x7f", "its pickle is damaged"),
        (b"X\x07\x00\x00\x00storageQ", "refers to something outside that is no storage"),
        (b"K\x07Q", "refers to something outside that is no storage"),
        (b"(X\x06\x00\x00\x00modulet" + b"Q", "refers to something outside that is no storage"),
        (b"(X\x07\x00\x00\x00storageK\x01K\x02K\x03K\x04tQ", "names a storage in a form"),
        (b"I1\n", "has the opcode INT"),
        (b"\x8c\x01a", "has the opcode SHORT_BINUNICODE"),
        (b"\x80\x04}", "it is a pickle of protocol 4"),
        (b"csys\nmodules\n", "asks for sys.modules, which could run code"),
        (b"c__builtin__\neval\n", "asks for builtins.eval, which could run code"),
        (b"ctorch\n\x1b[31m\n", r"asks for torch.\\x1b\[31m, which could run code"),
        (b"N" * 1_100_000, "its pickle has more than 1000000 steps"),
    ],
)
def test_a_pickle_is_held_to_what_torch_save_writes(tmp_path, code, message):
    refused(message, raw(tmp_path / "raw.pth", code))


def test_numbers_that_collide_are_few(tmp_path):
    """Numbers with equal hashes, of 64 bits at most: there are eight of each, and reading them takes no time."""
    pickle_of = b"".join(b"\x8a\x08" + struct.pack("<q", i * ((1 << 61) - 1) % (1 << 62)) + b"N" for i in range(40_000))
    start = time.monotonic()
    refused("tensors by name", raw(tmp_path / "keys.pth", b"}(" + pickle_of + b"u"))
    assert time.monotonic() - start < 10


def test_a_pickle_of_torch_save_s_is_all_that_is_read(tmp_path):
    """Of protocol 2, and begun as the older form begins."""
    path = tmp_path / "plain.pth"
    path.write_bytes(pickle.dumps({"head.bias": 1}, protocol=2))
    refused("it is a pickle of something else, not of torch.save's", path)
    torch.save({}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(pickle.dumps(1001, protocol=2), pickle.dumps(1002, protocol=2)))
    refused("written by another version of torch.save", path)


def test_a_text_of_gigabytes_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(pickled, "MAX_PICKLE_BYTES", 1 << 16)
    torch.save({"x": ["y" * 40_000, "z" * 40_000]}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    refused("its pickle is larger than", tmp_path / "x.pth")


# ---- the older form's storages


def old_file(path: Path) -> bytes:
    torch.save({"a": torch.arange(7.0), "b": torch.arange(5)}, path, _use_new_zipfile_serialization=False)
    return path.read_bytes()


@pytest.mark.parametrize("cut", [1, 8, 40, 60])
def test_values_that_are_cut_short_are_refused(tmp_path, cut):
    path = tmp_path / "old.pth"
    path.write_bytes(old_file(path)[:-cut])
    refused("its values are cut short|larger than the file", path)


def test_a_storage_that_claims_more_than_the_file_takes_no_memory(tmp_path):
    """The pickle says how many values there are, and PyTorch takes the memory before it looks."""
    path = tmp_path / "old.pth"
    seven = b"K\x07N"  # the number of values, and no view
    content = old_file(path)
    assert content.count(seven) == 1
    path.write_bytes(content.replace(seven, b"\x8a\x05\x00\x00\x00\x00\x10N"))
    refused("names storages that are larger than the file", path)


def test_a_storage_whose_number_of_values_differs_from_the_pickle_is_refused(tmp_path):
    path = tmp_path / "old.pth"
    content = old_file(path)
    values = struct.pack("<q7f", 7, *range(7))
    assert content.count(values) == 1
    path.write_bytes(content.replace(values, struct.pack("<q7f", 1 << 40, *range(7))))
    refused("its values are cut short", path)


def test_an_older_tar_archive_in_disguise_is_refused(tmp_path):
    """PyTorch looks for a tar archive first, and would unpack it; it may begin with the bytes of a pickle."""
    path = tmp_path / "old.pth"
    content = old_file(path)
    assert content[4:].find(b".") < 100  # the first pickle lies within the field of the name
    block = bytearray(content[:512])
    block[100:157] = b"0000644\0" + b"0000000\0" * 2 + b"00000000000\0" * 2 + b" " * 8 + b"0"
    block[329:345] = b"0000000\0" * 2
    block[148:156] = b"%06o\0 " % sum(block)
    path.write_bytes(bytes(block) + content[512:] + bytes(1024))
    assert tarfile.is_tarfile(path)
    refused("it is a pickle of something else", path)


# ---- archives


def repacked(path: Path, changes: dict[str, bytes | None], method: int = zipfile.ZIP_STORED) -> Path:
    """The archive with some members replaced, or left out."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    folder = next(iter(members)).partition("/")[0]
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in (members | {f"{folder}/{name}": content for name, content in changes.items()}).items():
            if content is not None:
                archive.writestr(name, content)
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return official_files(tmp_path)


def test_an_archive_that_another_tool_packed_again_is_read(files):
    repacked(files[0], {})
    refused("holds a VAR without its VQVAE", files[0])


def test_compressed_members_are_refused(files):
    """A bomb: 10 MB of zeros, packed, are 10 kB."""
    repacked(files[0], {"data/0": bytes(10_000_000)}, zipfile.ZIP_DEFLATED)
    refused("it has compressed or encrypted members, which torch.save does not write", *files)


@pytest.mark.parametrize("content", [None, b"", b"short", bytes(10_000_000)])
def test_a_storage_that_the_archive_has_in_another_size_is_refused(files, content):
    repacked(files[0], {"data/0": content})
    refused("names a storage that the archive does not have in that size", *files)


def test_a_large_pickle_is_not_read(files, monkeypatch):
    from actvar.checkpoint import torch_file

    monkeypatch.setattr(torch_file, "MAX_PICKLE_BYTES", 100)
    refused("its pickle is larger than 100 bytes", *files)


def test_two_members_of_one_name_are_refused(files):
    """PyTorch's reader might take the other one; it looks at no difference of upper and lower case."""
    for name in ("var_d1/data.pkl", "var_d1/DATA.pkl"):
        torch.save(tiny_var(), files[0])
        with warnings.catch_warnings(), zipfile.ZipFile(files[0], "a") as archive:
            warnings.simplefilter("ignore")  # of the name
            archive.writestr(name, b"\x80\x02}.")
        refused("it has two members of the same name", *files)


def test_members_in_several_folders_are_refused(files):
    with zipfile.ZipFile(files[0], "a") as archive:
        archive.writestr("other/data.pkl", b"\x80\x02}.")
    refused("it has members in several folders", *files)


def entries(content: bytes) -> list[int]:
    """Where the entries of an archive's directory lie."""
    start, found = struct.unpack_from("<I", content, len(content) - 6)[0], []
    while content[start : start + 4] == b"PK\x01\x02":
        found.append(start)
        start += 46 + sum(struct.unpack_from("<3H", content, start + 28))
    return found


def test_members_that_overlap_are_refused(files):
    """A thousand storages of the same bytes: as large as one might wish."""
    repacked(files[0], {})
    content = bytearray(files[0].read_bytes())
    places = entries(content)
    first, second = places[-2:]
    content[second + 42 : second + 46] = content[first + 42 : first + 46]
    files[0].write_bytes(content)
    refused("it is a damaged zip archive|it has members that overlap", *files)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (8, struct.pack("<H", 1)),  # encrypted
        (10, struct.pack("<H", 8)),  # deflated
        (20, struct.pack("<I", 3)),  # packed size
        (24, struct.pack("<I", 1 << 30)),  # size
        (42, struct.pack("<I", 1 << 30)),  # place
        (42, struct.pack("<I", 0xFFFFFFFF)),  # place in an extra field that is not there
        (28, struct.pack("<H", 60_000)),  # length of the name
        (32, struct.pack("<H", 60_000)),  # length of the comment
        (46, b"\xff"),  # name
        (0, b"XX"),
    ],
)
def test_a_directory_that_lies_is_refused(files, field, value):
    repacked(files[0], {})
    content = bytearray(files[0].read_bytes())
    for place in entries(content)[-1:]:
        content[place + field : place + field + len(value)] = value
    files[0].write_bytes(content)
    refused("it (is a damaged zip archive|has |is a zip archive with a member whose name is no text)", *files)


@pytest.mark.parametrize("tail", [b"\0", b"PK\x05\x06" + bytes(18), b"<!-- a comment -->"])
def test_what_was_added_to_an_archive_s_end_is_refused(files, tail):
    """The directory is then looked for, and two readers may find two."""
    with files[0].open("ab") as file:
        file.write(tail)
    refused("it is a zip archive that is cut short, or something was added to its end|it is a damaged zip", *files)


def test_a_directory_of_64_bits_elsewhere_is_refused(files):
    """PyTorch's reader follows the locator; another looks just before it."""
    content = bytearray(files[0].read_bytes())
    locator = len(content) - 42
    assert content[locator : locator + 4] == b"PK\x06\x07"
    content[locator + 8 : locator + 16] = struct.pack("<Q", 4)
    files[0].write_bytes(content)
    refused("it is a damaged zip archive", *files)


def test_the_member_s_own_header_counts(files):
    """It says where the values begin: further back, they would be another member's."""
    repacked(files[0], {})
    content = bytearray(files[0].read_bytes())
    header = struct.unpack_from("<I", content, entries(content)[-1] + 42)[0]
    content[header + 28 : header + 30] = struct.pack("<H", 60_000)
    files[0].write_bytes(content)
    refused("it has members that reach into its directory", *files)
