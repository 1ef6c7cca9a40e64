"""`actvar-trt inspect`: what a bundle holds, and what drawing with it costs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from actvar.bundle.contract import scale_name
from actvar.bundle.manifest import PLANS_FOLDER, Manifest, read_manifest, verify
from actvar.bundle.plans import BUILD_AGAIN, PlanManifest, read_plans
from actvar.config import ModelConfig
from actvar.files import read_verified
from actvar.flops import condition_work, decoder_work, scale_work, transformer_work

EXAMPLES = "Example: actvar-trt inspect bundles/d16"


def inspect(bundle: Annotated[Path, typer.Argument(help="A folder that `actvar-trt export` wrote.")]) -> None:
    """Show what a bundle holds: model, files, plans, rates, and the operations of every scale.

    Every file is held against its manifest first.
    """
    manifest = read_manifest(bundle)
    verify(bundle, manifest)
    plans = list(_verified_plans(bundle))
    console = Console()
    console.print(_overview(bundle, manifest, plans))
    console.print()
    console.print(_costs(manifest))
    console.print("Operations of one picture, a multiply-add counted as two, with both rows of guidance.")


def _verified_plans(bundle: Path) -> Iterator[PlanManifest]:
    """Of every plan folder."""
    for folder in sorted((bundle / PLANS_FOLDER).glob("*/")):
        plans = read_plans(folder)
        for spec in plans.plans.values():
            for entry in (spec.entry, spec.log):
                read_verified(folder / entry.file, entry, BUILD_AGAIN)
        yield plans


def _overview(bundle: Path, manifest: Manifest, plans: Sequence[PlanManifest]) -> Table:
    model = manifest.model
    graphs = sum(graph.entry.bytes for graph in manifest.graphs.values())
    table = Table(show_header=False, box=None)
    for name, text in (
        ("bundle", f"{bundle}: all {len(manifest.files)} files are what its manifest says"),
        ("source", manifest.source),
        ("model", f"{_kind(model)} of depth {model.depth}, width {model.width}, {model.num_classes} classes"),
        ("pictures", f"{model.picture_size}×{model.picture_size} by patch_nums {_row(model.schedule.patch_nums)}"),
        ("activation", _activation(model)),
        ("sampling", f"cfg {model.sampling.cfg:g}, top-k {model.sampling.top_k}, top-p {model.sampling.top_p:g}"),
        ("precision", manifest.precision),
        ("weights", f"{_megabytes(manifest.weights.bytes)}, once for all graphs{_unbound(manifest)}"),
        ("graphs", f"{len(manifest.graphs)}, {_megabytes(graphs)} together"),
        *(("plans", _plans(of_one)) for of_one in plans),
        ("made by", ", ".join(f"{program} {version}" for program, version in manifest.versions.items())),
    ):
        table.add_row(f"[bold]{name}[/]", escape(text))
    return table


def _costs(manifest: Manifest) -> Table:
    """What each graph is asked to do: tokens, experts, operations as they are and as a dense model's."""
    model, dense = manifest.model, manifest.model.dense()
    table = Table()
    for heading in ("graph", "size", "tokens", "kept", "experts", "dense GFLOP", "GFLOP", "saved"):
        table.add_column(heading, justify="left" if heading == "graph" else "right")

    def add(graph: str, of_dense: float, of_model: float, *choice: str) -> None:
        size = _kilobytes(manifest.graphs[graph].entry.bytes) if graph in manifest.graphs else ""
        saved = f"{1 - of_model / of_dense:.1%}" if of_model != of_dense else ""
        table.add_row(graph, size, *choice, _giga(of_dense), _giga(of_model), saved)

    add("condition", condition_work(dense), condition_work(model), "", "", "")
    for si, tokens in enumerate(model.schedule.tokens):
        experts = f"{model.active_experts(si)}/{model.activation.experts}" if model.activation else ""
        works = scale_work(dense, si).total, scale_work(model, si).total
        add(scale_name(si), *works, str(tokens), str(model.kept_tokens(si)), experts)
    add("decoder", decoder_work(dense), decoder_work(model), "", "", "")
    table.add_section()
    kept = sum(model.kept_tokens(si) for si in range(len(model.schedule)))
    works = transformer_work(dense), transformer_work(model)
    add("without decoder", *works, str(model.schedule.total), str(kept), "")
    return table


def _kind(model: ModelConfig) -> str:
    return "ActVAR" if model.activation else "VAR"


def _activation(model: ModelConfig) -> str:
    if model.activation is None:
        return "none: all tokens and all weights at every scale"
    shares = (
        f"scale {scale}: {tokens:.0%} of the tokens, {weights:.0%} of the experts"
        for scale, tokens, weights in zip(
            model.activation.scales, model.activation.token_rates, model.activation.expert_rates, strict=True
        )
    )
    return f"{model.activation.experts} experts; " + "; ".join(shares)


def _plans(plans: PlanManifest) -> str:
    target, (low, _, high) = plans.target, plans.options.batch
    size = _megabytes(sum(spec.entry.bytes for spec in plans.plans.values()))
    served = target.device or f"compute capability {', '.join(target.gpus)}"
    return f"{len(plans.plans)} by {target.engine} {target.version} for {served}, {low} to {high} pictures, {size}"


def _unbound(manifest: Manifest) -> str:
    return "" if manifest.weights.entry else "; not there yet: no checkpoint is bound"


def _row(numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, numbers))


def _giga(operations: float) -> str:
    return f"{operations / 1e9:.3f}"


def _kilobytes(count: int) -> str:
    return f"{count / 1e3:.0f} kB"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
