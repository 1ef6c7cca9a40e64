"""A bundle: the folder that an export leaves and a runtime reads, and its manifest.

Knows the manifest's form, which tensors pass between the graphs, and how to tell that a file is the one that was
exported. Nothing here opens a graph. Plain Python: no numpy, no engine.

A bundle may come from anywhere, so whatever is read is held to its form before it is used.

    manifest.json   {"format": "actvar-bundle", "version": 1, "model", "precision", "source", "versions",
                     "weights": {file, bytes, sha256}, "graphs": {name: {file, bytes, sha256, inputs, outputs}},
                     "sha256": of all that stands before it}
    weights.bin     all weights, once
    <graph>.onnx    condition, scale_01 ... scale_NN, decoder

Letters in shapes: B pictures, R = 2B rows; both stand in the manifest by name, all else by number. L tokens of a scale,
E code width, H side of f_hat, C width, D depth, h heads, P tokens cached, K tokens kept, d = 64.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from actvar.config import HEAD_WIDTH, ModelConfig
from actvar.errors import BundleError
from actvar.files import written_whole

FORMAT, VERSION = "actvar-bundle", 1
MANIFEST_FILE, WEIGHTS_FILE = "manifest.json", "weights.bin"
PRECISIONS = ("fp32", "fp16")
DTYPES = ("float32", "float16", "int64", "int32", "bool")
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILE_BYTES = 1 << 40
MAX_SIZE = 1 << 24  # of one dimension, and of any number of the model's configuration
MAX_RANK = 8
MAX_SCALES = 64
EXPORT_AGAIN = "Export the bundle again with `actvar-trt export`."

_TENSOR_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

Dimension = int | str
Shape = tuple[Dimension, ...]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph. Dimensions are numbers, or "B" and "R" for pictures and rows."""

    name: str
    dtype: str
    shape: Shape


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle: its name in the folder, and what its content must be."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class GraphSpec:
    """One graph: its file, and the tensors that go in and come out."""

    entry: FileEntry
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds.

    `source` says in words where the weights come from; `versions` names the programs that made the bundle.
    """

    model: ModelConfig
    precision: str
    source: str
    versions: Mapping[str, str]
    weights: FileEntry
    graphs: Mapping[str, GraphSpec]

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Every file but the manifest itself."""
        return (self.weights, *(graph.entry for graph in self.graphs.values()))


def scale_name(si: int) -> str:
    """The graph of scale index si (from 0)."""
    return f"scale_{si + 1:02d}"


def graph_names(model: ModelConfig) -> tuple[str, ...]:
    """The graphs of a model's bundle, in the order in which they run."""
    return ("condition", *(scale_name(si) for si in range(len(model.schedule))), "decoder")


def contract(model: ModelConfig, graph: str) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """The shapes of all that a graph may read, and of all that it must give back, by name (DESIGN, Sec. 4).

    A graph leaves out inputs that it has no use for (scale_01 an empty past_kv, say), and may give back more.
    `next_f_hat` is f_hat with this scale's tokens added: in ONNX an output cannot bear an input's name. `cfg` is the
    strength at the last scale; the ramp up to it is the graph's.
    """
    width, depth, code, side = model.width, model.depth, model.vqvae.z_channels, model.schedule.side
    modulation: dict[str, Shape] = {"modulation": (depth, "R", 6, width), "head_modulation": ("R", 2, width)}
    f_hat: dict[str, Shape] = {"f_hat": ("B", code, side, side)}
    if graph == "condition":
        return {"class_ids": ("B",)}, {**modulation, "start": ("R", 1, width)}
    if graph == "decoder":
        return f_hat, {"image": ("B", 3, model.picture_size, model.picture_size)}

    si = graph_names(model).index(graph) - 1
    tokens = model.schedule.tokens
    keys: Shape = (depth, 2, "R", model.heads)
    first: dict[str, Shape] = {"start": ("R", 1, width)} if si == 0 else {"tokens_in": ("B", tokens[si], code)}
    drawing: dict[str, Shape] = {"uniform": ("B", tokens[si]), "cfg": (), "top_k": (), "top_p": ()}
    inputs = {**first, **f_hat, **modulation, **drawing, "past_kv": (*keys, model.cached_tokens[si], HEAD_WIDTH)}
    outputs: dict[str, Shape] = {"token_ids": ("B", tokens[si]), "next_f_hat": f_hat["f_hat"]}
    if si + 1 < len(tokens):  # the last scale feeds nothing
        outputs |= {"next_tokens_in": ("B", tokens[si + 1], code), "new_kv": (*keys, model.kept_tokens(si), HEAD_WIDTH)}
    return inputs, outputs


# ---- writing


def hash_file(path: Path) -> FileEntry:
    """Size and SHA-256 of a file, under the name that it has in its folder.

    Raises:
        BundleError: it cannot be read, or is not a plain file.
    """
    with _opened(path) as file:
        return _digest(file, path.name)


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write the manifest into the bundle's folder, last of all: whoever sees it sees it whole.

    Returns: its path.
    """
    content = _manifest_to_json(manifest)
    text = json.dumps({**content, "sha256": _content_hash(content)}, indent=1, allow_nan=False) + "\n"
    with written_whole(folder / MANIFEST_FILE) as file:
        file.write(text.encode())
    return folder / MANIFEST_FILE


def _content_hash(content: dict[str, Any]) -> str:
    """SHA-256 of a manifest's fields. It finds accidents and thoughtless edits, not those who can compute it."""
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def _manifest_to_json(manifest: Manifest) -> dict[str, Any]:
    def entry(file: FileEntry) -> dict[str, Any]:
        return {"file": file.file, "bytes": file.bytes, "sha256": file.sha256}

    def tensors(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
        return [{"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)} for spec in specs]

    return {
        "format": FORMAT,
        "version": VERSION,
        "model": manifest.model.to_dict(),
        "precision": manifest.precision,
        "source": manifest.source,
        "versions": dict(manifest.versions),
        "weights": entry(manifest.weights),
        "graphs": {
            name: {**entry(graph.entry), "inputs": tensors(graph.inputs), "outputs": tensors(graph.outputs)}
            for name, graph in manifest.graphs.items()
        },
    }


# ---- reading


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle; the files it names are not touched (see `verify`).

    Raises:
        BundleError: there is none, or anything in it is missing, unknown, of the wrong type, out of bounds, or does not
            fit the model's configuration.
    """
    path = folder / MANIFEST_FILE
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a folder. Name a bundle: a folder that `actvar-trt export` wrote.")
    if not path.exists():
        raise BundleError(f"{folder} holds no {MANIFEST_FILE}, so it is not a whole bundle. {EXPORT_AGAIN}")
    with _opened(path) as file:
        data = file.read(MAX_MANIFEST_BYTES + 1)
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes, which no export writes. {EXPORT_AGAIN}")
    try:
        content = json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not valid JSON ({error}). {EXPORT_AGAIN}") from None
    return _Reader(path).manifest(content)


def verify(folder: Path, manifest: Manifest) -> None:
    """Make sure that every file of a bundle is the one that its manifest describes; all of them are read.

    Raises:
        BundleError: a file is missing, is a link or no plain file, or differs in size or SHA-256.
    """
    for entry in manifest.files:
        path = folder / entry.file
        with _opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.bytes:
                raise BundleError(
                    f"{path} was cut or altered: the manifest says {entry.bytes} bytes, found {size}. {EXPORT_AGAIN}"
                )
            found = _digest(file, entry.file)
        if found != entry:
            raise BundleError(
                f"{path} was altered: the manifest says SHA-256 {entry.sha256[:12]}…, found {found.sha256[:12]}…. "
                f"{EXPORT_AGAIN}"
            )


class _Reader:
    """Holds JSON to the manifest's form; every refusal names the file and the field."""

    def __init__(self, path: Path):
        self.path = path

    def refuse(self, where: str, expected: str, found: Any) -> BundleError:
        return BundleError(f"{self.path}: {where} must be {expected}, found {_short(repr(found), 80)}. {EXPORT_AGAIN}")

    def fields(self, where: str, data: Any, names: str) -> list[Any]:
        """The values of an object that has these fields and no others, in their order."""
        if not isinstance(data, dict):
            raise self.refuse(where, "an object", data)
        wanted = names.split()
        if missing := [name for name in wanted if name not in data]:
            raise self.refuse(where, f"an object with the field {missing[0]!r}", sorted(data))
        if unknown := [name for name in data if name not in wanted]:
            raise self.refuse(where, f"an object with no fields but {', '.join(wanted)}", unknown[0])
        return [data[name] for name in wanted]

    def integer(self, where: str, value: Any, low: int, high: int) -> int:
        if type(value) is not int or not low <= value <= high:
            raise self.refuse(where, f"a whole number in {low}..{high}", value)
        return value

    def text(self, where: str, value: Any, limit: int = 1000) -> str:
        if not isinstance(value, str) or len(value) > limit or not value.isprintable():
            raise self.refuse(where, f"one line of text of at most {limit} characters", value)
        return value

    def one_of(self, where: str, value: Any, choices: tuple[str, ...]) -> str:
        if value not in choices or not isinstance(value, str):
            raise self.refuse(where, " or ".join(choices), value)
        return value

    def matching(self, where: str, value: Any, pattern: re.Pattern[str], meaning: str) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise self.refuse(where, meaning, value)
        return value

    def manifest(self, data: Any) -> Manifest:
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise self.refuse("format", repr(FORMAT), data.get("format") if isinstance(data, dict) else data)
        if data.get("version") != VERSION:
            raise self.refuse("version", f"{VERSION}, the one that this program reads", data.get("version"))
        names = "format version model precision source versions weights graphs sha256"
        _, _, model, precision, source, versions, weights, graphs, sha256 = self.fields("the manifest", data, names)
        config = self.model(model)
        if not isinstance(versions, dict) or len(versions) > 64:
            raise self.refuse("versions", "an object of at most 64 texts", versions)
        if not isinstance(graphs, dict) or tuple(graphs) != graph_names(config):
            raise self.refuse("graphs", f"an object of {', '.join(graph_names(config))}", graphs and list(graphs))
        manifest = Manifest(
            config,
            self.one_of("precision", precision, PRECISIONS),
            self.text("source", source),
            {self.text("versions", k): self.text(f"versions.{k}", v) for k, v in versions.items()},
            self.entry("weights", self.fields("weights", weights, "file bytes sha256"), WEIGHTS_FILE),
            {name: self.graph(f"graphs.{name}", name, graph, config) for name, graph in graphs.items()},
        )
        if sha256 != _content_hash({name: value for name, value in data.items() if name != "sha256"}):
            raise BundleError(f"{self.path} was edited: its fields do not have the SHA-256 it says. {EXPORT_AGAIN}")
        return manifest

    def model(self, data: Any) -> ModelConfig:
        for number in _numbers(data):
            if abs(number) > MAX_SIZE:
                raise self.refuse("model", f"a configuration with no number above {MAX_SIZE}", number)
        try:
            config = ModelConfig.from_dict(data)
        except ValueError as error:
            raise BundleError(f"{self.path}: model: {_short(str(error), 300)}. {EXPORT_AGAIN}") from None
        self.integer("the number of scales in model.patch_nums", len(config.schedule), 2, MAX_SCALES)
        return config

    def entry(self, where: str, values: list[Any], name: str) -> FileEntry:
        file, size, sha256 = values
        return FileEntry(
            self.one_of(f"{where}.file", file, (name,)),  # no other name, so none that leads out of the folder
            self.integer(f"{where}.bytes", size, 0, MAX_FILE_BYTES),
            self.matching(f"{where}.sha256", sha256, _SHA256, "64 hexadecimal digits"),
        )

    def graph(self, where: str, name: str, data: Any, model: ModelConfig) -> GraphSpec:
        *entry, inputs, outputs = self.fields(where, data, "file bytes sha256 inputs outputs")
        spec = GraphSpec(
            self.entry(where, entry, f"{name}.onnx"),
            self.tensors(f"{where}.inputs", inputs),
            self.tensors(f"{where}.outputs", outputs),
        )
        given, wanted = contract(model, name)
        results = {tensor.name: tensor.shape for tensor in spec.outputs}
        for tensor in spec.inputs:
            if tensor.name not in given:
                raise self.refuse(f"{where}.inputs", f"among {', '.join(given)}", tensor.name)
            if tensor.shape != given[tensor.name]:
                raise self.refuse(f"{where}.inputs.{tensor.name}", f"of the shape {given[tensor.name]}", tensor.shape)
        for output, shape in wanted.items():
            if results.get(output) != shape:
                raise self.refuse(f"{where}.outputs.{output}", f"there, of the shape {shape}", results.get(output))
        return spec

    def tensors(self, where: str, data: Any) -> tuple[TensorSpec, ...]:
        if not isinstance(data, list) or not 1 <= len(data) <= 64:
            raise self.refuse(where, "a list of 1 to 64 tensors", data)
        specs = tuple(self.tensor(f"{where}[{i}]", item) for i, item in enumerate(data))
        if len({spec.name for spec in specs}) < len(specs):
            raise self.refuse(where, "of different names", [spec.name for spec in specs])
        return specs

    def tensor(self, where: str, data: Any) -> TensorSpec:
        name, dtype, shape = self.fields(where, data, "name dtype shape")
        self.matching(f"{where}.name", name, _TENSOR_NAME, "letters, digits and underscores")
        if not isinstance(shape, list) or len(shape) > MAX_RANK:
            raise self.refuse(f"{where}.shape", f"a list of at most {MAX_RANK} dimensions", shape)
        dimensions = tuple(
            size if size in ("B", "R") else self.integer(f"{where}.shape", size, 0, MAX_SIZE) for size in shape
        )
        return TensorSpec(name, self.one_of(f"{where}.dtype", dtype, DTYPES), dimensions)


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's fields; a name that comes twice would mean whatever the reader makes of it."""
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("an object has two fields of the same name")
    return result


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _numbers(data: Any) -> Iterator[float]:
    if isinstance(data, dict):
        data = list(data.values())
    if isinstance(data, list):
        for item in data:
            yield from _numbers(item)
    elif isinstance(data, (int, float)):
        yield data


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A plain file for reading. A link is refused: it could lead out of the bundle."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise BundleError(f"{path} must be a plain file, and is a link, a folder or a device. {EXPORT_AGAIN}")
        file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb")
    except FileNotFoundError:
        raise BundleError(f"{path} is missing. {EXPORT_AGAIN}") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}.") from None
    with file:
        yield file


def _digest(file: BinaryIO, name: str) -> FileEntry:
    digest, count = hashlib.sha256(), 0
    while block := file.read(1 << 20):
        digest.update(block)
        count += len(block)
    return FileEntry(name, count, digest.hexdigest())
