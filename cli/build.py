"""`actvar-trt build`: a model, or a bundle that is there, to TensorRT plans. `export/build_engines.py` is the same."""

import json
import os
import time
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer
from rich.console import Console

from actvar.bundle.contract import scale_name
from actvar.bundle.manifest import Manifest, read_manifest
from actvar.bundle.plans import PlanOptions, plan_folder
from actvar.cli.bundle_to_build import ActivationChoice, ModelChoice, bundle_to_build
from actvar.cli.model_choice import (
    ActiveScalesOption,
    Bf16Option,
    CheckpointOption,
    ExpertRatesOption,
    ExpertsOption,
    Fp16Option,
    PatchNumsOption,
    Preset,
    TokenRatesOption,
    VqvaeOption,
    chosen_precision,
    integers,
)
from actvar.console import progress_bar, say
from actvar.errors import EngineError, UsageError, needs
from actvar.export.plans.report import figures, plan_table
from actvar.plugins.library import plugin_library
from actvar.reports import check_json_option, write_report

EXAMPLES = """Examples:

actvar-trt build --depth 20 --fp16

actvar-trt build --depth 20 --fp16 --gpu-arch 8.9 --batch 1:1:16 --scales 9,10

actvar-trt build --checkpoint var_d16.pth --vqvae vae_ch160v4096z32.pth --fp16

actvar-trt build --bundle bundles/actvar-d20-fp16 --engine tensorrt"""

Engine: TypeAlias = Literal["tensorrt", "tensorrt-rtx"]
Plugins: TypeAlias = Literal["all", "tokens", "none"]
MAX_DEPTH, MOST_JOBS = 64, 4


def build(
    depth: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_DEPTH, help="The paper's ActVAR of this depth, 75 % unless rates are named."),
    ] = None,
    dense: Annotated[bool, typer.Option("--dense", help="With --depth: the VAR of this depth.")] = False,
    preset: Annotated[
        Preset | None, typer.Option(help="As `actvar-trt export` takes it: dense, unless rates are named.")
    ] = None,
    checkpoint: CheckpointOption = None,
    vqvae: VqvaeOption = None,
    bundle: Annotated[
        Path | None,
        typer.Option(show_default="bundles/ and the model", help="A bundle that is there, or is to be written."),
    ] = None,
    fp16: Fp16Option = False,
    bf16: Bf16Option = False,
    active_scales: ActiveScalesOption = None,
    token_rates: TokenRatesOption = None,
    expert_rates: ExpertRatesOption = None,
    experts: ExpertsOption = None,
    patch_nums: PatchNumsOption = None,
    engine: Annotated[
        Engine | None,
        typer.Option(show_default="TensorRT with a GPU, else TensorRT-RTX", help="The library to build with."),
    ] = None,
    gpu_arch: Annotated[
        str | None,
        typer.Option(show_default="all but Turing", help="Compute capabilities for TensorRT-RTX, such as 8.9,12.0."),
    ] = None,
    batch: Annotated[str, typer.Option(help="Pictures at once: fewest:best:most.")] = "1:8:64",
    scales: Annotated[
        str | None, typer.Option(show_default="all graphs", help="Build these scales only, such as 9,10.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, max=64, show_default="1, or up to 4 cores without a GPU", help="Plans built at a time."),
    ] = None,
    workspace: Annotated[
        int | None, typer.Option(show_default="the library's", help="MiB that a layer may use for itself.")
    ] = None,
    aux_streams: Annotated[
        int | None, typer.Option(show_default="the library's", help="Further streams that an engine may use.")
    ] = None,
    plugins: Annotated[
        Plugins,
        typer.Option(help="Sparse parts that become plugins, where there is a library; tokens: not the FFN."),
    ] = "all",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures into this file, too.")] = None,
) -> None:
    """Build TensorRT plans: condition, every scale, and the decoder.

    Plans hold no weights, so no checkpoint is needed. What is up to date is kept; a build that was stopped goes on
    where it was. With a GPU and TensorRT plans are for that GPU; else TensorRT-RTX builds ahead of time, on any
    machine. Without any TensorRT the graphs are exported, and what to install is said.
    """
    options = _options(batch, workspace, aux_streams, plugins)
    check_json_option(json_file)
    activation = ActivationChoice(active_scales, token_rates, expert_rates, experts)
    model = ModelChoice(depth, dense, preset, checkpoint, vqvae, activation, patch_nums)
    model.refuse_contradictions(bundle)
    precision = chosen_precision(fp16=fp16, bf16=bf16) if fp16 or bf16 or model.is_named else None
    with needs("export", "to build plans"):
        from actvar.export.plans.builder import build_plans
        from actvar.export.plans.engine_library import choose_target

    lack = target = None
    try:
        target = choose_target(engine, tuple(gpu_arch.split(",")) if gpu_arch else None)
    except EngineError as error:
        lack = error  # the graphs can be exported all the same
    folder = bundle_to_build(model, bundle, precision)
    manifest = read_manifest(folder)
    graphs = _graphs(manifest, scales)
    if target is None:
        raise EngineError(f"{lack} The graphs are there, in {folder}: the same command then goes on with them.")
    _say_what_becomes_of_sparse_parts(manifest, plugins)
    jobs = jobs or (1 if target.device else min(os.cpu_count() or 1, MOST_JOBS))
    started = time.perf_counter()
    title = f"{target.engine} {target.version} builds for {target.device or ', '.join(target.gpus)}"
    with progress_bar(title) as progress:
        plans = build_plans(folder, target, options, graphs, jobs, progress)
    seconds = time.perf_counter() - started
    Console().print(plan_table(plans))
    say(f"{plan_folder(folder, target)}: {len(plans.plans)} of {len(manifest.graphs)} plans, in {seconds:.1f} s")
    if json_file:
        write_report(json_file, json.dumps(figures(manifest, plans, jobs, seconds), indent=1) + "\n", "--json")
    if manifest.weights.entry is None:
        say(f"There are no weights yet. Give the plans some: actvar-trt bind --bundle {folder} --checkpoint FILE")


def _options(batch: str, workspace: int | None, aux_streams: int | None, plugins: str) -> PlanOptions:
    try:
        low, best, high = (int(part) for part in batch.split(":"))
    except ValueError:
        raise UsageError(f"--batch must be three numbers, such as 1:8:64, got {batch!r}.") from None
    try:
        return PlanOptions((low, best, high), workspace, aux_streams, plugins)
    except ValueError as error:
        raise UsageError(f"Plans cannot be built so: {error}.") from None


def _graphs(manifest: Manifest, scales: str | None) -> list[str] | None:
    """The graphs of the scales that were asked for."""
    if scales is None:
        return None
    count = len(manifest.model.schedule)
    wanted = integers("--scales", scales)
    if wrong := [scale for scale in wanted if not 1 <= scale <= count]:
        raise UsageError(f"--scales must lie in 1..{count}, got {wrong[0]}.")
    return [scale_name(scale - 1) for scale in wanted]


def _say_what_becomes_of_sparse_parts(manifest: Manifest, plugins: str) -> None:
    model = manifest.model
    if not any(model.is_active(si) for si in range(len(model.schedule))):
        return
    masked = "computed in full and masked, right and no faster than dense"
    library = plugin_library()
    if plugins == "none":
        say(f"Sparse parts are {masked}.")
    elif library is None:
        say(f"There is no plugin library: sparse parts are {masked}.")
    elif plugins == "tokens":
        say(f"Tokens are chosen and moved by plugins of {library}; the FFN is {masked}.")
    else:
        say(f"Sparse parts become plugins of {library}.")
