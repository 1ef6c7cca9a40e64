"""Who takes part in a benchmark: models that are named or made of a size, and what they are compared with.

What is made is made of random weights, which take the same time as trained ones, and stays in the cache.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from actvar.benchmarks.pictures.measure import Contestant, Kind
from actvar.bundle.manifest import read_manifest
from actvar.checkpoint.files import Checkpoint
from actvar.config import STATIC, Decoder, ModelConfig, VQVAEConfig
from actvar.console import progress_bar
from actvar.errors import ActVARError, UsageError, needs
from actvar.export.bundle_cache import cached_bundle
from actvar.files import locked
from actvar.naming import NamedModel
from actvar.runtime.backends.protocol import Device
from actvar.runtime.machine import cache_folder

_PEERS: dict[str, tuple[Kind, Kind, str]] = {
    "eager": ("eager", "official", "PyTorch"),
    "compile": ("compiled", "official-compiled", "torch.compile"),
    "bf16": ("autocast", "official-autocast", "autocast"),
}
"""By what `--peers` calls them: a kind of ours, the same of official VAR, and what it is called in the report."""
_OPENVINO = {"openvino": "fp32", "openvino-bf16": "bf16"}


def peer_kinds(peers: str) -> list[str]:
    """The kinds of peers that `--peers` names.

    Raises:
        UsageError: it names others.
    """
    kinds = [] if peers == "none" else peers.split(",")
    known = [*_PEERS, *_OPENVINO]
    if len(set(kinds)) < len(kinds) or not set(kinds) <= set(known):
        raise UsageError(f"--peers must be none, or some of {','.join(known)}; got {peers!r}.")
    return kinds


def named_contestants(
    models: Sequence[NamedModel],
    precision: str | None,
    decoder: Decoder | None,
    backend: str,
    official_var: Path | None,
) -> list[Contestant]:
    """The graphs of models that are named, each once; a checkpoint's are exported now, if they are not in the cache.

    Raises:
        UsageError: one is named twice, a bundle is in another precision or has a decoder of its own, or official VAR
            cannot be of its shape.
        ActVARError: a model cannot be used or exported.
    """
    places = [(model.bundle or _file(model)).resolve() for model in models]
    if len(set(places)) < len(places):
        raise UsageError("The same --model is named twice. Name each once.")
    for model in models:
        if model.bundle and precision:
            raise UsageError(f"{model.name} is a bundle and has its own precision. Leave --precision {precision} out.")
        if model.bundle and decoder:
            raise UsageError(f"{model.name} is a bundle and has its own decoder. Leave --decoder {decoder} out.")
    is_short = len({model.name for model in models}) == len(models)
    found = []
    for model, place in zip(models, places, strict=True):
        folder = place if model.bundle else _exported(model, precision or "fp32", decoder or "full", official_var)
        manifest = read_manifest(folder)
        _check_official(official_var, manifest.model)
        name = f"{model.name if is_short else place}, {backend}"
        found.append(Contestant(name, "graphs", manifest.model, manifest.precision, folder, backend))
    return found


def random_contestants(
    models: Sequence[tuple[str, ModelConfig, str]], backend: str, official_var: Path | None
) -> list[Contestant]:
    """The graphs of models of random weights: of each its name, its shape and the precision.

    Raises:
        UsageError: official VAR cannot be of their shape.
        ActVARError: they cannot be exported.
    """
    for _, model, _ in models:
        _check_official(official_var, model)
    found = []
    for name, model, precision in models:
        checkpoint = Checkpoint(random_checkpoint(name, model), decoder="small" if model.small_decoder else "full")
        with progress_bar(f"Exporting {name} in {precision}, once") as progress:
            bundle = cached_bundle(checkpoint, precision, lambda _: None, progress)
        found.append(Contestant(f"{name}, {backend}", "graphs", model, precision, bundle, backend))
    return found


def peers_of(
    graphs: Sequence[Contestant], name: str | None, peers: Sequence[str], official_var: Path | None, device: Device
) -> Iterator[Contestant]:
    """What draws with the dense model in PyTorch, once for each shape, and what draws with the same graphs in OpenVINO.

    Args:
        graphs: beside which they draw.
        name: of the dense model; without one it is named by its depth.
        peers: of `peer_kinds`.
        official_var: a checkout, whose code then takes the place of ours; as it is it takes part in any case.
        device: where they run. On a CPU those in PyTorch compute in fp32, but for autocast.
    """
    shapes: dict[ModelConfig, Contestant] = {}
    for contestant in graphs:
        shapes.setdefault(contestant.shape, contestant)
    wanted = [peer for peer in _PEERS if peer in peers or (peer == "eager" and official_var)]
    for shape, of in shapes.items():
        who, model = name or f"VAR-d{shape.depth}", replace(shape, sampling=of.model.sampling)
        path = official_var.resolve() if official_var else random_checkpoint(who, model) if wanted else Path()
        for peer in wanted:
            own, official, label = _PEERS[peer]
            precision = "bf16" if peer == "bf16" else of.precision if device == "cuda" else "fp32"
            label = label if not official_var else "official VAR" if peer == "eager" else f"official VAR, {label}"
            yield Contestant(f"{who}, {label}", official if official_var else own, model, precision, path, "torch")
        for precision in (_OPENVINO[peer] for peer in peers if peer in _OPENVINO):
            for graph in _least_sparse(graphs, shape):
                who = graph.name.removesuffix(f", {graph.backend}")
                yield Contestant(f"{who}, OpenVINO", "openvino", graph.model, precision, graph.path, "openvino")


def _least_sparse(graphs: Sequence[Contestant], shape: ModelConfig) -> list[Contestant]:
    """The dense model in fp32, or what there is in its place. OpenVINO cannot read the body of an FFN that routes."""
    alike = [graph for graph in graphs if graph.shape == shape and graph.precision == "fp32"]
    read = [graph for graph in alike if not (some := graph.model.activation) or some.expert_choice == STATIC]
    return sorted(read, key=lambda graph: graph.model.activation is not None)[:1]


def random_checkpoint(name: str, model: ModelConfig) -> Path:
    """A checkpoint of random weights in the cache, made now if it is not there.

    Raises:
        ActVARError: PyTorch is not installed, or the cache cannot be written.
    """
    digest = hashlib.sha256(json.dumps(model.to_dict()).encode()).hexdigest()
    path = cache_folder() / "bench" / f"{name}-{digest[:12]}.safetensors"
    if path.is_file():
        return path
    with needs("export", "to make a model of random weights"):
        from actvar.checkpoint.own import save_model
        from actvar.models.actvar import random_model
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")):
            if not path.is_file():
                save_model(random_model(model), path)
    except OSError as error:
        raise ActVARError(f"{path} cannot be written: {error.strerror}. Name another folder in ACTVAR_CACHE.") from None
    return path


def _file(model: NamedModel) -> Path:
    assert model.checkpoint  # what is no bundle is one
    return model.checkpoint.path


def _exported(model: NamedModel, precision: str, decoder: Decoder, official_var: Path | None) -> Path:
    assert model.checkpoint
    checkpoint = replace(model.checkpoint, decoder=decoder)
    with progress_bar(f"Exporting {model.name}, once") as progress:
        return cached_bundle(checkpoint, precision, lambda found: _check_official(official_var, found), progress)


def _check_official(official_var: Path | None, model: ModelConfig) -> None:
    """Before anything is made: whether there is official VAR, and whether it can be of a model's shape.

    Raises:
        UsageError: it cannot, as the VQVAE's levels are written into its code; or the folder holds something else.
    """
    if not official_var:
        return
    for file in ("models/__init__.py", "models/var.py", "dist.py"):
        if not (official_var / file).is_file():
            raise UsageError(
                f"--official-var {official_var} is no checkout of VAR: it has no {file}. Name another folder."
            )
    fixed = ("ch_mult", "num_res_blocks", "norm_groups")
    if any(getattr(model.vqvae, name) != getattr(VQVAEConfig(), name) for name in fixed):
        raise UsageError("Official VAR has no VQVAE of this shape. Leave --official-var out, or take --preset d16.")
