"""What a bundle holds and what drawing with it costs: tables for a person, JSON for a program."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from actvar.bundle.contract import CPU_PRECISIONS, ENCODER, scale_name
from actvar.bundle.manifest import Manifest, read_manifest, verify
from actvar.bundle.memory import batch_memory, gigabytes
from actvar.bundle.plans import BUILD_AGAIN, PlanManifest, plan_folders, read_plans
from actvar.config import ModelConfig, SmallDecoderConfig
from actvar.errors import counted
from actvar.files import read_verified
from actvar.flops import condition_work, decoder_work, scale_work, transformer_work

FORMAT, VERSION = "actvar-inspect", 1
TRANSFORMER = "transformer"
"""In place of a graph's name: all but the decoder."""


@dataclass(frozen=True)
class BundleReport:
    """A bundle whose files were found to be what its manifest says.

    Attributes:
        folder: its place.
        manifest: what it holds.
        plans: what was built from it.
    """

    folder: Path
    manifest: Manifest
    plans: Sequence[PlanManifest]

    def parts(self) -> list[RenderableType]:
        """What it is, and what each graph is asked to do."""
        note = f"GFLOP of one picture, {_rows(self.manifest.model)}; a multiply-add counts as two."
        return [self._overview(), "", self._costs(), note]

    def _overview(self) -> Table:
        manifest, model = self.manifest, self.manifest.model
        graphs = sum(graph.entry.bytes for graph in manifest.graphs.values())
        table = Table(show_header=False, box=None)
        for name, text in (
            ("bundle", f"{self.folder}: all {counted(len(manifest.files), 'file')} are what its manifest says"),
            ("source", manifest.source),
            (
                "model",
                f"{_kind(model)} of depth {model.depth}, width {model.width}, "
                f"{counted(model.num_classes, 'class', 'classes')}",
            ),
            ("pictures", f"{model.picture_size}×{model.picture_size} by patch_nums {_row(model.schedule.patch_nums)}"),
            ("activation", _activation(model)),
            *([("decoder", _small(model.small_decoder))] if model.small_decoder else []),
            ("edits", "pictures, by its encoder" if ENCODER in manifest.graphs else "nothing: it has no encoder"),
            ("guided", _guided(model)),
            ("sampling", _sampling(model)),
            ("precision", manifest.precision),
            ("weights", f"{_megabytes(manifest.weights.bytes)}, once for all graphs{_unbound(manifest)}"),
            ("graphs", f"{len(manifest.graphs)}, {_megabytes(graphs)} together"),
            *([("GPU memory", self._memory())] if manifest.precision not in CPU_PRECISIONS else []),
            *(("plans", _plans(of_one)) for of_one in self.plans),
            ("made by", ", ".join(f"{program} {version}" for program, version in manifest.versions.items())),
        ):
            table.add_row(f"[bold]{name}[/]", escape(text))
        return table

    @property
    def _batches(self) -> list[int]:
        """The most pictures that plans draw at once; where there are none, one and 64."""
        return sorted({plans.options.batch[2] for plans in self.plans}) or [1, 64]

    def _memory(self) -> str:
        """In words; without what an engine works in."""
        parts = []
        for pictures in self._batches:
            batch = batch_memory(self.manifest, pictures)
            parts.append(
                f"{gigabytes(batch.tensors)} for {counted(pictures, 'picture')} at once "
                f"({gigabytes(batch.keys_and_values)} keys and values)"
            )
        return f"weights, and {'; '.join(parts)}; twice that where two batches are under way"

    def _costs(self) -> Table:
        """What each graph is asked to do: tokens, experts, operations as a dense model's and as they are."""
        model, graphs = self.manifest.model, self.manifest.graphs
        table = Table()
        for heading in ("graph", "size", "tokens", "kept", "experts", "dense", "GFLOP", "saved"):
            table.add_column(heading, justify="left" if heading == "graph" else "right")
        kept = [model.kept_tokens(si) for si in range(len(model.schedule))]
        choices = {TRANSFORMER: (model.schedule.total, sum(kept), "")}
        for si, tokens in enumerate(model.schedule.tokens):
            experts = f"{model.active_experts(si)}/{model.activation.experts}" if model.activation else ""
            choices[scale_name(si)] = (tokens, kept[si], experts)
        for graph, (of_dense, of_model) in _operations(model).items():
            size = _kilobytes(graphs[graph].entry.bytes) if graph in graphs else ""
            saved = f"{1 - of_model / of_dense:.1%}" if of_model != of_dense else ""
            choice = map(str, choices.get(graph, ("", "", "")))
            table.add_row(graph, size, *choice, _giga(of_dense), _giga(of_model), saved, end_section=graph == "decoder")
        return table

    def to_json(self) -> str:
        """All of it, in bytes and operations."""
        manifest = self.manifest
        content = {
            "format": FORMAT,
            "version": VERSION,
            "bundle": str(self.folder),
            "source": manifest.source,
            "model": manifest.model.to_dict(),
            "precision": manifest.precision,
            "weights": {"bytes": manifest.weights.bytes, "are_there": manifest.weights.entry is not None},
            "graphs": {name: {"bytes": graph.entry.bytes} for name, graph in manifest.graphs.items()},
            "batch_bytes": {str(pictures): asdict(batch_memory(manifest, pictures)) for pictures in self._batches},
            "operations": {
                graph: {"dense": of_dense, "active": of_model}
                for graph, (of_dense, of_model) in _operations(manifest.model).items()
            },
            "plans": [
                {
                    "target": asdict(plans.target),
                    "options": asdict(plans.options),
                    "bytes": {graph: spec.entry.bytes for graph, spec in plans.plans.items()},
                }
                for plans in self.plans
            ],
            "versions": dict(manifest.versions),
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def bundle_report(bundle: Path) -> BundleReport:
    """Look at a bundle, with every file of it and of its plans held against its manifest.

    Raises:
        BundleError: a manifest cannot be used, or a file is not what it says.
    """
    manifest = read_manifest(bundle)
    verify(bundle, manifest)
    return BundleReport(bundle, manifest, list(_verified_plans(bundle)))


def _verified_plans(bundle: Path) -> Iterator[PlanManifest]:
    """Of every plan folder."""
    for folder in plan_folders(bundle):
        plans = read_plans(folder)
        for spec in plans.plans.values():
            for entry in (spec.entry, spec.log):
                read_verified(folder / entry.file, entry, BUILD_AGAIN)
        yield plans


def _operations(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """Of each graph, and of all but the decoder: as a dense model's, and as they are."""
    dense = model.dense()
    scales = range(len(model.schedule))
    return {
        "condition": (condition_work(dense), condition_work(model)),
        **{scale_name(si): (scale_work(dense, si).total, scale_work(model, si).total) for si in scales},
        "decoder": (decoder_work(dense), decoder_work(model)),
        TRANSFORMER: (transformer_work(dense), transformer_work(model)),
    }


def _kind(model: ModelConfig) -> str:
    return "ActVAR" if model.activation else "VAR"


def _small(decoder: SmallDecoderConfig) -> str:
    blocks = counted(decoder.depth, "block")
    return f"small: {counted(decoder.width, 'channel')}, {blocks} at each side below the picture's"


def _activation(model: ModelConfig) -> str:
    if model.activation is None:
        return "none: all tokens and all weights at every scale"
    shares = (
        f"scale {scale}: {tokens:.0%} of the tokens, {weights:.0%} of the experts"
        for scale, tokens, weights in zip(
            model.activation.scales, model.activation.token_rates, model.activation.expert_rates, strict=True
        )
    )
    other = f" ({model.activation.other_choices})" if model.activation.other_choices else ""
    return f"{counted(model.activation.experts, 'expert')}{other}; " + "; ".join(shares)


def _guided(model: ModelConfig) -> str:
    scales = counted(len(model.schedule), "scale")
    if not model.is_guided:
        return f"none of {scales}: guidance-free, it draws by the conditional row alone"
    if model.guided_scales is None:
        return f"all {scales}"
    return f"{'scale 1' if model.guided_scales == 1 else f'scales 1-{model.guided_scales}'} of {len(model.schedule)}"


def _rows(model: ModelConfig) -> str:
    if not model.is_guided:
        return "with its conditional row alone"
    return "with both rows of guidance" + (" where a scale is guided" if model.guided_scales else "")


def _sampling(model: ModelConfig) -> str:
    strength = f"cfg {model.sampling.cfg:g}, " if model.is_guided else ""
    return f"{strength}top-k {model.sampling.top_k}, top-p {model.sampling.top_p:g}{', smooth' if model.smooth else ''}"


def _plans(plans: PlanManifest) -> str:
    target, (low, _, high) = plans.target, plans.options.batch
    size = _megabytes(sum(spec.entry.bytes for spec in plans.plans.values()))
    served = target.device or f"compute capability {', '.join(target.gpus)}"
    range_of = f"{low} to {counted(high, 'picture')}"
    return f"{len(plans.plans)} by {target.engine} {target.version} for {served}, {range_of}, {size}"


def _unbound(manifest: Manifest) -> str:
    return "" if manifest.weights.entry else "; not there yet: no checkpoint is bound"


def _row(numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, numbers))


def _giga(operations: int) -> str:
    """Seven characters at most, up to 100,000 GFLOP."""
    giga = operations / 1e9
    return f"{giga:.3f}" if giga < 1000 else f"{giga:.1f}"


def _kilobytes(count: int) -> str:
    return f"{count / 1e3:.0f} kB"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
