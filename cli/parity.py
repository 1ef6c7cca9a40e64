"""`actvar-trt parity`: the graphs of a model against the model itself, in PyTorch."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal, TypeAlias

import typer
from rich.console import Console

from actvar.bundle.contract import Precision
from actvar.bundle.plans import PlanOptions
from actvar.checkpoint.files import Checkpoint, shipped_checkpoint
from actvar.cli.model_choice import Preset, refuse_elsewhere
from actvar.config import PRESETS, Activation
from actvar.console import progress_bar, say
from actvar.errors import UsageError, needs
from actvar.reports import check_json_option, write_report
from actvar.runtime.backends.protocol import Device, Scales
from actvar.runtime.machine import first_gpu
from actvar.runtime.sources import open_engines, open_graphs

EXAMPLES = """Examples:

actvar-trt parity

actvar-trt parity --precision fp16 --pictures 100 --json parity.json

actvar-trt parity --preset d16 --pictures 2 --batch-size 1

actvar-trt parity --bundle bundles/mine-fp32 --checkpoint mine.safetensors

actvar-trt parity --precision fp16 --backend tensorrt"""

Backend: TypeAlias = Literal["onnxruntime", "tensorrt"]


def parity(
    checkpoint: Annotated[
        Path | None,
        typer.Option(show_default="actvar-mini", help="The model: a .safetensors, or an official .pth file."),
    ] = None,
    vqvae: Annotated[Path | None, typer.Option(help="The VQVAE that belongs to an official checkpoint.")] = None,
    preset: Annotated[
        Preset | None, typer.Option(help="An ActVAR of this shape with random weights, in place of a checkpoint.")
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(show_default="exported for the comparison", help="What was exported from the checkpoint."),
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option(show_default="fp32", help="Of the graphs; PyTorch computes in fp32.")
    ] = None,
    backend: Annotated[
        Backend, typer.Option(help="What runs the graphs; for tensorrt engines are built from them.")
    ] = "onnxruntime",
    device: Annotated[
        Device | None,
        typer.Option(show_default="cpu; cuda for tensorrt", help="Where the graphs run; PyTorch runs on the CPU."),
    ] = None,
    scales: Annotated[
        Scales,
        typer.Option(help="The graph that runs all scales on the CPU; each: every scale by its own, as engines do."),
    ] = "fastest",
    pictures: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many are compared.")] = 32,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 4,
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Of the pictures.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report into this file, too.")] = None,
) -> None:
    """Compare each graph, and whole pictures, with PyTorch; the exit code is 1 if any lies outside its tolerance."""
    _refuse_contradictions(checkpoint, vqvae, preset, bundle, precision, json_file)
    refuse_elsewhere(f"--precision {precision}", precision, backend, device)
    if backend == "tensorrt" and device == "cpu":
        raise UsageError("--backend tensorrt needs a GPU, and --device cpu names none. Leave --device out.")
    if backend == "tensorrt" and first_gpu() is None:
        raise UsageError("--backend tensorrt needs an NVIDIA GPU, and there is none. Take --backend onnxruntime.")
    with needs("export", "to compare graphs with PyTorch"):
        from actvar.checkpoint.model import load_model
        from actvar.export.onnx_export import export_bundle
        from actvar.export.parity.check import check_parity
        from actvar.models.actvar import random_model

    if preset:
        say(f"Random weights: {preset} draws nothing that means anything, and its graphs can be compared all the same.")
        model = random_model(replace(PRESETS[preset], activation=Activation()))
        source = f"random weights, preset {preset}"
    else:
        chosen = Checkpoint(checkpoint, vqvae) if checkpoint else shipped_checkpoint("actvar-mini")
        model, source = load_model(chosen.path, chosen.vqvae), f"checkpoint {chosen.path.name}"
    with TemporaryDirectory(prefix="actvar-parity-") as scratch:
        folder = bundle or Path(scratch) / "bundle"
        if not bundle:
            with progress_bar("Exporting") as progress:
                export_bundle(model, folder, precision or "fp32", source, progress, debug=True)
        if backend == "tensorrt" and not bundle:
            _build(folder, batch_size)
        place: Device = device or ("cuda" if backend == "tensorrt" else "cpu")
        if backend == "tensorrt":
            graphs = open_engines(folder, batch_size)
        else:
            graphs = open_graphs(folder, batch_size, 0, place, scales)
        if graphs.model != model.config:
            raise UsageError(f"--bundle {folder} is of another model than {source}. Name what it was exported from.")
        with progress_bar(f"Comparing {pictures} pictures") as progress:
            report = check_parity(model, graphs, pictures, seed, f"{backend} on {place}", progress)
    Console().print(report.table())
    for line in filter(None, (report.first_flip, report.verdict)):
        typer.echo(line)
    if json_file:
        write_report(json_file, report.to_json(), "--json")
    if not report.passed:
        raise typer.Exit(1)


def _build(folder: Path, batch_size: int) -> None:
    """Engines of a bundle for this machine's GPU, for batches of up to this many pictures.

    Raises:
        UsageError: these are too many.
        EngineError: there is no engine library, or it refused a graph.
    """
    with needs("export", "to build engines"):
        from actvar.export.plans.builder import build_plans
        from actvar.export.plans.engine_library import choose_target
    try:
        options = PlanOptions(batch=(1, batch_size, batch_size))
    except ValueError as error:
        raise UsageError(f"--batch-size {batch_size}: {error}.") from None
    with progress_bar("Building engines") as progress:
        build_plans(folder, choose_target(None, None), options, progress=progress)


def _refuse_contradictions(
    checkpoint: Path | None,
    vqvae: Path | None,
    preset: str | None,
    bundle: Path | None,
    precision: str | None,
    json_file: Path | None,
) -> None:
    """Options that exclude each other, and a report that would have no place.

    Raises:
        UsageError: there are any.
    """
    if preset and checkpoint:
        raise UsageError("--preset and --checkpoint both name a model. Give one of them.")
    if vqvae and not checkpoint:
        raise UsageError("--vqvae belongs to a --checkpoint, and there is none. Give both, or leave it out.")
    if bundle and not checkpoint:
        raise UsageError("--bundle is compared with the --checkpoint that it was made from. Give both, or neither.")
    if bundle and precision:
        raise UsageError("--precision is for an export, and --bundle names one that is there. Leave it out.")
    check_json_option(json_file)
