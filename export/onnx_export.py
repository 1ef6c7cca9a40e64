"""A model to a bundle: weights, graphs, manifest, in a folder that is there whole or not at all.

Knows the order of the work; what the files hold is `graphs/`'s, and what becomes of a folder when it fails
`bundle_folder.py`'s.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from actvar import __version__
from actvar.bundle.contract import ENCODER, HALF_PRECISIONS, MASKED_SCALES, PRECISIONS, SCALES, graph_names
from actvar.bundle.manifest import WEIGHTS_FILE, GraphSpec, Manifest, ScalesSpec, write_manifest
from actvar.checkpoint.model import StoredModel
from actvar.config import DYNAMIC, ModelConfig
from actvar.errors import UsageError, needs
from actvar.export.bundle_folder import folder_written_whole
from actvar.export.graphs.builder import GraphBuilder
from actvar.export.graphs.bundle import build_graph, build_scales
from actvar.export.graphs.weights_file import Read, WeightsFile
from actvar.files import FileEntry, hash_file
from actvar.telemetry import switch_off

if TYPE_CHECKING:
    from actvar.export.graphs.decoder_int8 import Int8Decoder, Int8Graph
    from actvar.models.actvar import ActVAR

_WEIGHTS_SHARE = 0.9  # of the time that an export with weights takes, about
_DRAWING_SHARE = 0.8  # of the time that one in int8 takes, as the model draws pictures for it

Progress = Callable[[float], None]


def export_bundle(
    model: "ActVAR | StoredModel",
    folder: Path,
    precision: str,
    source: str,
    progress: Progress | None = None,
    debug: bool = False,
    encoder: bool = True,
) -> Manifest:
    """Write a model's bundle.

    Everything goes into a folder beside the target, which gets its name at the end; a failure or Ctrl-C removes it.

    Args:
        model: in memory, on any device; or a checkpoint, which is read one tensor at a time and needs no PyTorch, but
            for int8.
        folder: the target. A bundle that is there is replaced; anything else that is there is left alone.
        precision: of `actvar.bundle.contract.PRECISIONS`.
        source: where the weights come from, in words, for the manifest.
        progress: told the share that is done, 0 to 1.
        debug: let scale graphs give what `graphs/scale.py` names, too.
        encoder: whether it has the encoder, without which no picture can be edited.

    Raises:
        ActVARError: for int8 PyTorch or ONNX Runtime is missing.
        UsageError: no such precision.
        BundleError: the target is something else than a bundle, or cannot be written.
        CheckpointError: a weight does not fit into fp16.
    """
    decoder = None
    if precision == "int8":
        switch_off()
        with needs("export", "to draw the pictures that int8 is measured with (other precisions need none)"):
            from actvar import generation  # noqa: F401
        with needs("cpu", "to measure the ranges that int8 must hold"):
            from actvar.export.graphs.decoder_int8 import int8_decoder
        report = progress or (lambda share: None)
        model = model.load() if isinstance(model, StoredModel) else model
        decoder = int8_decoder(model, lambda share: report(_DRAWING_SHARE * share))
        progress = lambda share: report(_DRAWING_SHARE + (1 - _DRAWING_SHARE) * share)  # noqa: E731
    return _export(model.config, model.read, folder, precision, source, progress, debug, decoder, encoder)


def export_graphs(
    config: ModelConfig,
    folder: Path,
    precision: str,
    source: str,
    progress: Progress | None = None,
    encoder: bool = True,
) -> Manifest:
    """Write the bundle of a model that has no weights yet; `actvar.export.binder` gives it some.

    Graphs and the places of the weights are those that `export_bundle` writes for a model of this configuration.
    Arguments and errors are those of `export_bundle`.

    Raises:
        UsageError: the precision is int8, whose graphs hold what was measured with the weights.
    """
    if precision == "int8":
        raise UsageError(
            "Graphs in int8 are made for the weights that they have. Export a checkpoint: "
            "actvar-trt export --model CHECKPOINT --precision int8"
        )
    return _export(config, None, folder, precision, source, progress, encoder=encoder)


def program_versions() -> dict[str, str]:
    """The programs that make a bundle."""
    return {"actvar": __version__, "numpy": np.__version__, "onnx": onnx.__version__}


def _export(
    config: ModelConfig,
    read: Read | None,
    folder: Path,
    precision: str,
    source: str,
    progress: Progress | None,
    debug: bool = False,
    decoder: "Int8Decoder | None" = None,
    encoder: bool = True,
) -> Manifest:
    if precision not in PRECISIONS:
        raise UsageError(f"The precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    report = progress or (lambda share: None)
    weights_share = _WEIGHTS_SHARE if read else 0.0
    with folder_written_whole(folder) as unfinished:
        file = WeightsFile.of(config, precision, decoder.weights if decoder else None, encoder)
        path = unfinished / WEIGHTS_FILE
        if read:
            weights = file.write(path, read, lambda share: report(share * weights_share))
        else:
            weights = file.layout
            _reserve(path, weights.bytes)
        names = (*graph_names(config), *((ENCODER,) if encoder else ()), *_of_all_scales(config, precision))
        graphs: dict[str, GraphSpec] = {}
        scales: dict[str, ScalesSpec] = {}
        for done, name in enumerate(names, 1):
            builder: GraphBuilder | Int8Graph
            if name in (SCALES, MASKED_SCALES):
                masks = name == MASKED_SCALES or precision == "int8"
                builder = build_scales(config, weights.tensors, masks, debug)
            elif decoder and name == "decoder":
                builder = decoder.placed(weights.tensors)
            else:
                builder = build_graph(name, config, weights.tensors, precision, debug)
            entry = _written(unfinished / f"{name}.onnx", builder.build())
            if name in (SCALES, MASKED_SCALES):
                scales[name] = ScalesSpec(entry, builder.weights)
            else:
                graphs[name] = _graph_spec(entry, builder)
            report(weights_share + (1 - weights_share) * done / len(names))
        if not read:
            path.unlink()
        manifest = Manifest(config, precision, source, program_versions(), weights, graphs, scales)
        write_manifest(unfinished, manifest)
    return manifest


def _of_all_scales(config: ModelConfig, precision: str) -> tuple[str, ...]:
    """The graphs that run every scale: where tokens choose experts, what fp32 does in two ways has one in int8."""
    if precision in HALF_PRECISIONS:
        return ()
    activation = config.activation
    routes = activation and activation.expert_choice == DYNAMIC and min(activation.expert_rates) < 1
    return (SCALES, MASKED_SCALES) if routes and precision != "int8" else (SCALES,)


def _graph_spec(entry: FileEntry, builder: "GraphBuilder | Int8Graph") -> GraphSpec:
    shapes = {name: tensor.shape for name, tensor in builder.weights.items()}
    return GraphSpec(entry, tuple(builder.inputs), tuple(builder.outputs), shapes)


def _reserve(path: Path, size: int) -> None:
    """A file of this size that takes no room: ONNX's checker wants to see the file that a graph points into."""
    with path.open("wb") as file:
        file.truncate(size)


def _written(path: Path, graph: onnx.ModelProto) -> FileEntry:
    """The file of a graph that ONNX's own checker accepts."""
    with path.open("wb") as file:
        file.write(graph.SerializeToString())
        file.flush()
        os.fsync(file.fileno())
    onnx.checker.check_model(path, full_check=True)
    return hash_file(path)
