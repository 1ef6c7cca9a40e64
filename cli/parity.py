"""`actvar-trt parity`: the graphs of a model against the model itself, in PyTorch."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from actvar.arguments import require_place
from actvar.bundle.manifest import read_manifest
from actvar.bundle.plans import PlanOptions
from actvar.cli.model_choice import Facts, Rates, Size, chosen_checkpoint, guided_until
from actvar.cli.options import (
    DecoderOption,
    DeviceOption,
    Fp16Option,
    GraphBackend,
    GuidanceUntilOption,
    JsonOption,
    OptionalCheckpointOption,
    PrecisionOption,
    SeedOption,
    SmoothOption,
    VqvaeOption,
    batch_size_option,
    chosen_precision,
    count_option,
    engine_option,
    model_option,
)
from actvar.console import progress_bar, say
from actvar.errors import UsageError, counted, needs
from actvar.files import scratch_folder
from actvar.reports import check_json_option, deliver
from actvar.runtime.backends.protocol import Device, Scales
from actvar.runtime.machine import first_gpu
from actvar.runtime.sources import open_engines, open_graphs

EXAMPLES = """Examples:

actvar-trt parity

actvar-trt parity --precision fp16 --count 100 --json parity.json

actvar-trt parity --preset d16 --count 2 --batch-size 1

actvar-trt parity --model mine.safetensors --bundle bundles/mine-fp32

actvar-trt parity --fp16 --backend tensorrt"""

_DEFAULT_MODEL = "actvar-mini"


def parity(
    *,
    model: OptionalCheckpointOption = None,
    vqvae: VqvaeOption = None,
    facts: Facts,
    size: Size,
    rates: Rates,
    guidance_until: GuidanceUntilOption = None,
    smooth: SmoothOption = False,
    bundle: Annotated[
        Path | None,
        model_option(
            metavar="FOLDER", show_default="exported for the comparison", help="What was exported from the checkpoint."
        ),
    ] = None,
    count: Annotated[int, count_option("Pictures in all that are compared.", max=10**6)] = 32,
    seed: SeedOption = 0,
    precision: PrecisionOption = None,
    fp16: Fp16Option = False,
    decoder: DecoderOption = None,
    backend: GraphBackend = "onnxruntime",
    device: DeviceOption = None,
    cpu_graph: Annotated[
        Scales,
        engine_option(
            metavar="GRAPH",
            help="What runs the scales on a CPU: scales or scales_masked, one graph of all scales; fastest, the faster "
            "of the two; or each, every scale's own graph, as engines do.",
        ),
    ] = "fastest",
    batch_size: Annotated[int, batch_size_option("Pictures that are drawn at a time.")] = 4,
    json_file: JsonOption = None,
) -> None:
    """Compare each graph, and whole pictures, with PyTorch in fp32 on the CPU.

    The exit code is 1 if anything lies outside its tolerance. The model is actvar-mini unless one is named.
    """
    check_json_option(json_file)
    size.refuse_beside(model, vqvae, rates)
    precision = chosen_precision(precision, fp16)
    if rates.are_given and not size.is_given:
        raise UsageError("Rates and experts shape a --preset or a --depth; a checkpoint has its own. Leave them out.")
    if bundle and not model:
        raise UsageError("--bundle is compared with the --model that it was made from. Give both, or neither.")
    if bundle and precision:
        raise UsageError("--precision is for an export, and --bundle names one that is there. Leave it out.")
    if bundle and (guidance_until is not None or smooth):
        option = "--smooth" if smooth else "--guidance-until"
        raise UsageError(f"{option} is for an export, and --bundle names one that is there. Leave it out.")
    require_place(backend, device, precision)
    if backend == "tensorrt" and first_gpu() is None:
        raise UsageError("--backend tensorrt needs an NVIDIA GPU, and there is none. Take --backend onnxruntime.")
    with needs("export", "to compare graphs with PyTorch"):
        from actvar.checkpoint.model import load_checkpoint
        from actvar.export.onnx_export import export_bundle
        from actvar.export.parity.check import check_parity
        from actvar.models.actvar import random_model

    if size.is_given:
        config = replace(guided_until(size.model(rates, decoder)[1], guidance_until), smooth=smooth)
        say(f"Random weights: {size.name} draws nothing that means anything; its graphs can be compared all the same.")
        network, source = random_model(config), f"random weights, preset {size.name}"
    else:
        _, chosen = chosen_checkpoint(model or _DEFAULT_MODEL, vqvae, size.patch_nums, facts)
        there = read_manifest(bundle).model if bundle else None
        mixes = there.smooth if there else smooth or None
        if there:  # graphs that guide all scales or none do as their model does
            guidance_until = there.guided_scales or None
        wanted = decoder or ("small" if there and there.small_decoder else "full")
        network = load_checkpoint(replace(chosen, decoder=wanted, guidance_until=guidance_until, smooth=mixes))
        source = f"checkpoint {chosen.path.name}"
    with scratch_folder("parity") as scratch:
        folder = bundle or scratch / "bundle"
        if not bundle:
            with progress_bar("Exporting") as progress:
                export_bundle(network, folder, precision or "fp32", source, progress, debug=True)
        if backend == "tensorrt" and not bundle:
            _build(folder, batch_size)
        place: Device = device or ("cuda" if backend == "tensorrt" else "cpu")
        if backend == "tensorrt":
            graphs = open_engines(folder, batch_size)
        else:
            graphs = open_graphs(folder, batch_size, 0, place, cpu_graph)
        if graphs.model != network.config:
            raise UsageError(f"--bundle {folder} is of another model than {source}. Name what it was exported from.")
        with progress_bar(f"Comparing {counted(count, 'picture')}") as progress:
            report = check_parity(network, graphs, count, seed, f"{backend} on {place}", progress)
    lines = filter(None, (report.first_flip, report.verdict))
    deliver([report.table(), *map(escape, lines)], report.to_json(), json_file)
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
