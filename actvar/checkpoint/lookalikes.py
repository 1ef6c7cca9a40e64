"""What a file is that is no checkpoint, told by its first bytes: so that a message can say what to do about it."""

import codecs
from pathlib import Path

from actvar.errors import shown

HEAD = 512
"""As many of a file's first bytes as are looked at."""

_FETCH = "Download the file itself, from a page that serves it."
_CHECKPOINT = "Name a .safetensors or .pth file."

_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs.github.com/spec/",
        "is a git-lfs pointer, which stands for a file that was not fetched",
        "Run `git lfs pull` in its repository, or download the file itself.",
    ),
    (b"\x1f\x8b", "is compressed with gzip", "Unpack it first: gunzip FILE."),
    (b"BZh", "is compressed with bzip2", "Unpack it first: bunzip2 FILE."),
    (b"\xfd7zXZ\0", "is compressed with xz", "Unpack it first: unxz FILE."),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd", "Unpack it first: unzstd FILE."),
    (b"7z\xbc\xaf\x27\x1c", "is a 7-Zip archive", "Unpack it, and name the checkpoint in it."),
    (b"Rar!", "is a RAR archive", "Unpack it, and name the checkpoint in it."),
    (b"\x89PNG", "is a PNG picture", _CHECKPOINT),
    (b"\xff\xd8\xff", "is a JPEG picture", _CHECKPOINT),
    (b"%PDF", "is a PDF document", _CHECKPOINT),
    (b"GGUF", "is a GGUF file, of a language model", _CHECKPOINT),
    (b"\x89HDF", "is an HDF5 file, as Keras writes them", _CHECKPOINT),
    (b"\x93NUMPY", "is a numpy array", _CHECKPOINT),
    (b"ftrt", "is a TensorRT plan", "Name the bundle's folder that holds it, or a .safetensors or .pth file."),
)
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml")
_PICKLES_AS_TEXT = (b"(dp", b"(lp", b"ccollections\n")  # protocol 0, which the reader of pickles refuses


def lookalike(path: Path, head: bytes) -> tuple[str, str] | None:
    """What a file is, completing "it …", and what to do about it; None if it may be a checkpoint.

    Args:
        path: its name is shown in advice, and ends with .onnx where no bytes tell.
        head: its first HEAD bytes, or fewer if it has no more.
    """
    if not head:
        return "is empty", "Fetch it again."
    for beginning, what, advice in _BEGINNINGS:
        if head.startswith(beginning):
            return what, advice.replace("FILE", shown(path.name))
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGES):
        return "is a web page, as a site answers when it wants a login or has no such file", _FETCH
    if path.suffix == ".onnx" or _is_onnx(head):
        return "is an ONNX graph", "Name the bundle's folder that holds it, or the checkpoint that it came from."
    if head[257:262] == b"ustar":
        return "is a tar archive", "Unpack it, and name the checkpoint in it."
    text = _as_text(head)
    if text is None or head.startswith(_PICKLES_AS_TEXT):
        return None
    if text.lstrip().startswith(("{", "[")):
        return "is JSON", "Name a .safetensors or .pth file, or the .index.json of one that lies in several files."
    return f"is a text that begins with '{shown(' '.join(text.split()), 60)}'", _FETCH


def _is_onnx(head: bytes) -> bool:
    """Whether it begins as an ONNX model does: field 1, a small version; then a text, a message or a number."""
    return head[:1] == b"\x08" and 1 <= head[1] <= 30 and head[2:3] in (b"\x12", b"\x1a", b"\x3a", b"\x42", b"\x28")


def _as_text(head: bytes) -> str | None:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) < HEAD)  # a sign may be cut
    except UnicodeDecodeError:
        return None
    return text if all(sign.isprintable() or sign in "\n\r\t\ufeff" for sign in text) else None
