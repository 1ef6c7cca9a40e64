"""A bundle: the folder that an export leaves and a runtime reads, and its manifest.

Knows the manifest's form, where each weight lies, and how to tell that a file is the one that was exported. Nothing
here opens a graph. Plain Python: no numpy, no engine.

A bundle may come from anywhere, so whatever is read is held to its form before it is used.

    manifest.json   {"format": "actvar-bundle", "version": 6, "model", "precision", "source", "versions",
                     "weights": {file, bytes, sha256, tensors: {name: {dtype, shape, offset}}},
                     "graphs": {name: {file, bytes, sha256, inputs, outputs, weights: {name: shape}}},
                     "scales": {name: {file, bytes, sha256, weights: {name: {dtype, shape, offset}}}},
                     "sha256": of all that stands before it}
    weights.bin     all weights, once; a bundle that was built before there was a checkpoint has none yet
    <graph>.onnx    condition, scale_01 ... scale_NN, decoder
    scales.onnx     in fp32, fp16-weights and int8, all scales in one graph, for ONNX Runtime on the CPU
    scales_masked.onnx  the same of an ActVAR in fp32, for processors whose products are fast
    plans/          engines that were built from the graphs, with manifests of their own (actvar.bundle.plans)
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actvar.bundle.contract import (
    ENCODER,
    ITEM_BYTES,
    MASKED_SCALES,
    MAX_SCALES,
    PRECISIONS,
    SCALES,
    TensorSpec,
    contract,
    graph_names,
)
from actvar.bundle.json_form import MAX_FILE_BYTES, SHA256, FormReader, short, write_json
from actvar.config import ModelConfig
from actvar.errors import BundleError, DamagedError
from actvar.files import FileEntry, read_verified, require_size
from actvar.provenance import pasteable

FORMAT, VERSION = "actvar-bundle", 7
MANIFEST_FILE, WEIGHTS_FILE, PLANS_FOLDER = "manifest.json", "weights.bin", "plans"
MAX_SIZE = 1 << 24  # of one dimension, and of any number of the model's configuration
MAX_RANK = 8
MAX_WEIGHTS = 1 << 14
EXPORT_AGAIN = "Export the bundle again with `actvar-trt export --model CHECKPOINT`."
FOR_A_GPU = "On a GPU take a bundle in fp16: `actvar-trt export --model CHECKPOINT --fp16`."

_TENSOR_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_WEIGHT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,127}")


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in the weights file. `dtype` is numpy's name, or "bfloat16"; the offset is in bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def length(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class WeightsSpec:
    """The weights file: its size, its hash, and the tensors in it by name. Without a hash there is no file yet."""

    bytes: int
    sha256: str | None
    tensors: Mapping[str, StoredTensor]

    @property
    def entry(self) -> FileEntry | None:
        """The file, if it is there."""
        return FileEntry(WEIGHTS_FILE, self.bytes, self.sha256) if self.sha256 else None


@dataclass(frozen=True)
class GraphSpec:
    """One graph: its file, the tensors that go in and come out, and the weights it reads, in the shape it needs."""

    entry: FileEntry
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class ScalesSpec:
    """The graph that runs every scale: its file, and the weights that it reads, some of them in parts."""

    entry: FileEntry
    weights: Mapping[str, StoredTensor]


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds.

    `scales` are graphs that run every scale, by name: each does all that the scales' own graphs do. `source` says in
    words where the weights come from; `versions` names the programs that made the bundle.
    """

    model: ModelConfig
    precision: str
    source: str
    versions: Mapping[str, str]
    weights: WeightsSpec
    graphs: Mapping[str, GraphSpec]
    scales: Mapping[str, ScalesSpec] = field(default_factory=dict)

    @property
    def graph_files(self) -> tuple[FileEntry, ...]:
        """Every file that holds a graph."""
        specs: tuple[GraphSpec | ScalesSpec, ...] = (*self.graphs.values(), *self.scales.values())
        return tuple(spec.entry for spec in specs)

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Every file but the manifest itself, and but the plans'."""
        return (*self.graph_files, *((self.weights.entry,) if self.weights.entry else ()))


# ---- writing


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write the manifest into the bundle's folder, last of all: whoever sees it sees it whole.

    Returns: its path.
    """
    write_json(folder / MANIFEST_FILE, _manifest_to_json(manifest))
    return folder / MANIFEST_FILE


def entry_to_json(file: FileEntry) -> dict[str, Any]:
    """A file of a manifest."""
    return {"file": file.file, "bytes": file.bytes, "sha256": file.sha256}


def _manifest_to_json(manifest: Manifest) -> dict[str, Any]:
    def tensors(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
        return [{"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)} for spec in specs]

    def stored(tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
        return {name: {"dtype": t.dtype, "shape": list(t.shape), "offset": t.offset} for name, t in tensors.items()}

    def graph(spec: GraphSpec) -> dict[str, Any]:
        weights = {name: list(shape) for name, shape in spec.weights.items()}
        sides = {"inputs": tensors(spec.inputs), "outputs": tensors(spec.outputs)}
        return {**entry_to_json(spec.entry), **sides, "weights": weights}

    weights = manifest.weights
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": manifest.model.to_dict(),
        "precision": manifest.precision,
        "source": manifest.source,
        "versions": dict(manifest.versions),
        "weights": {
            "file": WEIGHTS_FILE,
            "bytes": weights.bytes,
            "sha256": weights.sha256,
            "tensors": stored(weights.tensors),
        },
        "graphs": {name: graph(spec) for name, spec in manifest.graphs.items()},
        "scales": {
            name: {**entry_to_json(spec.entry), "weights": stored(spec.weights)}
            for name, spec in manifest.scales.items()
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
        raise DamagedError(f"{folder} holds no {MANIFEST_FILE}, so it is not a whole bundle. {EXPORT_AGAIN}")
    return _ManifestReader(path, EXPORT_AGAIN).manifest()


def require_weights(folder: Path, manifest: Manifest) -> None:
    """Make sure that a bundle has weights to draw with.

    Raises:
        BundleError: it was built without a checkpoint, and none has been bound to it since.
    """
    if manifest.weights.entry is None:
        raise BundleError(
            f"{folder} has graphs and no weights: it was made before there was a checkpoint. "
            f"Give it some: {pasteable('bind', folder, '--model', 'CHECKPOINT')}"
        )


def verify(folder: Path, manifest: Manifest) -> None:
    """Make sure that every file of a bundle is the one that its manifest describes; all of them are read.

    Plans are not looked at: whoever loads one verifies it.

    Raises:
        BundleError: a file is missing, is a link or no plain file, or differs in size or SHA-256.
    """
    verify_graphs(folder, manifest)
    verify_weights(folder, manifest)


def verify_graphs(folder: Path, manifest: Manifest) -> None:
    """`verify` for the graphs; of the weights only that they are there, in full length.

    Graphs can be opened then: nothing of them lies beyond the end of a file. Errors are those of `verify`.
    """
    for entry in manifest.graph_files:
        read_verified(folder / entry.file, entry, EXPORT_AGAIN)
    if weights := manifest.weights.entry:
        require_size(folder / weights.file, weights, EXPORT_AGAIN)


def verify_weights(folder: Path, manifest: Manifest) -> None:
    """`verify` for the weights, if there are any."""
    if weights := manifest.weights.entry:
        read_verified(folder / weights.file, weights, EXPORT_AGAIN)


class _ManifestReader(FormReader):
    """Holds JSON to the manifest's form."""

    def manifest(self) -> Manifest:
        """The whole file."""
        data = self.of_format(self.load(), FORMAT, VERSION)
        names = "format version model precision source versions weights graphs scales sha256"
        _, _, model, precision, source, versions, weights, graphs, scales, _ = self.fields("the manifest", data, names)
        config = self.model(model)
        drawing = graph_names(config)
        if not isinstance(graphs, dict) or tuple(graphs) not in (drawing, (*drawing, ENCODER)):
            wanted = f"an object of {', '.join(drawing)}, and {ENCODER} if it is to edit"
            raise self.refuse("graphs", wanted, graphs and list(graphs))
        stored = self.weights(weights)
        manifest = Manifest(
            config,
            self.one_of("precision", precision, PRECISIONS),
            self.text("source", source),
            self.texts("versions", versions),
            stored,
            {name: self.graph(f"graphs.{name}", name, graph, config, stored) for name, graph in graphs.items()},
            self.scales(scales, stored),
        )
        self.check_hash(data)
        return manifest

    def model(self, data: Any) -> ModelConfig:
        for number in _numbers(data):
            if abs(number) > MAX_SIZE:
                raise self.refuse("model", f"a configuration with no number above {MAX_SIZE}", number)
        try:
            config = ModelConfig.from_dict(data)
        except ValueError as error:
            raise DamagedError(f"{self.path}: model: {short(str(error), 300)}. {EXPORT_AGAIN}") from None
        self.integer("the number of scales in model.patch_nums", len(config.schedule), 2, MAX_SCALES)
        return config

    def weights(self, data: Any) -> WeightsSpec:
        file, size, sha256, tensors = self.fields("weights", data, "file bytes sha256 tensors")
        self.one_of("weights.file", file, (WEIGHTS_FILE,))  # no other name, so none that leads out of the folder
        size = self.integer("weights.bytes", size, 0, MAX_FILE_BYTES)
        if sha256 is not None:
            self.matching("weights.sha256", sha256, SHA256, "64 hexadecimal digits, or null")
        return WeightsSpec(size, sha256, self.stored("weights.tensors", tensors, size))

    def stored(self, of: str, data: Any, size: int) -> dict[str, StoredTensor]:
        """Tensors by name, all within a weights file of this size."""
        stored = {}
        for name, item in self.object(of, data, MAX_WEIGHTS).items():
            where = f"{of}.{short(name, 80)}"
            self.matching(where, name, _WEIGHT_NAME, "a name of letters, digits, underscores and dots")
            dtype, shape, offset = self.fields(where, item, "dtype shape offset")
            dtype = self.one_of(f"{where}.dtype", dtype, tuple(ITEM_BYTES))
            tensor = StoredTensor(dtype, self.sizes(where, shape), self.integer(f"{where}.offset", offset, 0, size))
            self.integer(f"the end of {where}", tensor.offset + tensor.length, 0, size)
            stored[name] = tensor
        return stored

    def scales(self, data: Any, stored: WeightsSpec) -> dict[str, ScalesSpec]:
        specs = {}
        for name, item in self.object("scales", data, 2).items():
            where = f"scales.{self.one_of('a name of scales', name, (SCALES, MASKED_SCALES))}"
            *entry, weights = self.fields(where, item, "file bytes sha256 weights")
            read = self.stored(f"{where}.weights", weights, stored.bytes)
            specs[name] = ScalesSpec(self.entry(where, entry, f"{name}.onnx"), read)
        return specs

    def graph(self, where: str, name: str, data: Any, model: ModelConfig, stored: WeightsSpec) -> GraphSpec:
        *entry, inputs, outputs, weights = self.fields(where, data, "file bytes sha256 inputs outputs weights")
        spec = GraphSpec(
            self.entry(where, entry, f"{name}.onnx"),
            self.tensors(f"{where}.inputs", inputs),
            self.tensors(f"{where}.outputs", outputs),
            self.weight_shapes(f"{where}.weights", weights, stored),
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

    def weight_shapes(self, where: str, data: Any, stored: WeightsSpec) -> dict[str, tuple[int, ...]]:
        shapes = {}
        for name, shape in self.object(where, data, MAX_WEIGHTS).items():
            if name not in stored.tensors:
                raise self.refuse(where, "among weights.tensors", name)
            shapes[name] = self.sizes(f"{where}.{name}", shape)
            own, whole = shapes[name], stored.tensors[name].shape
            is_prefix = len(own) == len(whole) > 0 and own[1:] == whole[1:] and own[0] < whole[0]
            if math.prod(own) != math.prod(whole) and not is_prefix:
                raise self.refuse(f"{where}.{name}", f"of as many values as {whole}, or its first rows", shape)
        return shapes

    def sizes(self, where: str, data: Any) -> tuple[int, ...]:
        """A shape of numbers."""
        if not isinstance(data, list) or len(data) > MAX_RANK:
            raise self.refuse(f"{where}.shape", f"a list of at most {MAX_RANK} dimensions", data)
        return tuple(self.integer(f"{where}.shape", size, 1, MAX_SIZE) for size in data)

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
        dimensions = tuple(size if size == "B" else self.integer(f"{where}.shape", size, 0, MAX_SIZE) for size in shape)
        spec = TensorSpec(name, self.one_of(f"{where}.dtype", dtype, tuple(ITEM_BYTES)), dimensions)
        if math.prod(spec.sized(1)) * ITEM_BYTES[spec.dtype] > MAX_FILE_BYTES:
            raise self.refuse(f"{where}.shape", f"of at most {MAX_FILE_BYTES} bytes", shape)
        return spec


def _numbers(data: Any) -> Iterator[float]:
    """All numbers in it, however deeply it is nested: deeper than Python calls, if somebody means harm."""
    waiting = [data]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, (int, float)):
            yield item
