"""`actvar-trt build`: a model, or a bundle that is there, to TensorRT plans. `export/build_engines.py` is the same."""

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from actvar.bundle.contract import scale_name
from actvar.bundle.manifest import Manifest, read_manifest
from actvar.bundle.plans import PLUGIN_CHOICES, PlanOptions, plan_folder
from actvar.cli.bundle_to_build import bundle_to_build
from actvar.cli.model_choice import Facts, Rates, Size, chosen_model
from actvar.cli.options import (
    DecoderOption,
    Fp16Option,
    GuidanceUntilOption,
    JsonOption,
    OptionalModelOption,
    SmoothOption,
    VqvaeOption,
    chosen_precision,
    engine_option,
    integers,
    out_option,
    precision_option,
)
from actvar.config import STATIC
from actvar.console import progress_bar, say
from actvar.errors import EngineError, UsageError, counted, needs
from actvar.export.plans.report import figures, plan_table
from actvar.plugins.library import plugin_library
from actvar.provenance import pasteable
from actvar.reports import check_json_option, deliver

EXAMPLES = """Examples:

actvar-trt build --depth 20 --fp16

actvar-trt build --depth 20 --fp16 --gpu-arch 8.9 --batch-range 1:1:16 --scales 9,10

actvar-trt build --model var_d16.pth --vqvae vae_ch160v4096z32.pth --fp16

actvar-trt build --model bundles/actvar-d20-fp16 --engine tensorrt"""

MOST_JOBS = 4


def build(
    *,
    model: OptionalModelOption = None,
    vqvae: VqvaeOption = None,
    facts: Facts,
    size: Size,
    rates: Rates,
    guidance_until: GuidanceUntilOption = None,
    smooth: SmoothOption = False,
    precision: Annotated[
        Literal["fp32", "fp16", "bf16"] | None,
        precision_option(
            "fp16 and bf16 hold matrices in these types; what must be exact stays in fp32.",
            show_default="fp32, or the bundle's",
        ),
    ] = None,
    fp16: Fp16Option = False,
    decoder: DecoderOption = None,
    engine: Annotated[
        Literal["tensorrt", "tensorrt-rtx"] | None,
        engine_option(show_default="TensorRT with a GPU, else TensorRT-RTX", help="The library to build with."),
    ] = None,
    gpu_arch: Annotated[
        str | None,
        engine_option(
            metavar="8.9,12.0", show_default="all but Turing", help="Compute capabilities that TensorRT-RTX builds for."
        ),
    ] = None,
    batch_range: Annotated[
        str, engine_option(metavar="1:8:64", help="Pictures at a time: the fewest, the best and the most.")
    ] = "1:8:64",
    scales: Annotated[
        str | None,
        engine_option(metavar="9,10", show_default="all graphs", help="Build the plans of these scales only."),
    ] = None,
    plugins: Annotated[
        Literal["auto", "all", "tokens", "none"],
        engine_option(
            help="Which sparse parts become plugins, where there is a library of them: tokens leaves the FFN out; auto "
            "takes what was measured, or is expected, to be faster."
        ),
    ] = "auto",
    jobs: Annotated[
        int | None,
        engine_option(min=1, max=64, show_default="1, or up to 4 cores without a GPU", help="Plans built at a time."),
    ] = None,
    workspace: Annotated[
        int | None,
        engine_option(metavar="MIB", show_default="the library's", help="Memory that a layer may use for itself."),
    ] = None,
    aux_streams: Annotated[
        int | None, engine_option(show_default="the library's", help="Further streams that an engine may use.")
    ] = None,
    out: Annotated[
        Path | None,
        out_option(
            "Folder of the bundle that is written; if it holds one of the same model, that is used.",
            show_default="bundles/ and the model",
        ),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Build TensorRT plans: condition, every scale, and the decoder.

    Plans hold no weights, so --preset and --depth need no checkpoint: bind one later. What is up to date is kept, and a
    build that was stopped goes on where it was.

    With a GPU and TensorRT plans are for that GPU. Else TensorRT-RTX builds ahead of time, on any machine. Without
    either the graphs are exported, and the command says what to install.
    """
    options = _options(batch_range, workspace, aux_streams, plugins)
    check_json_option(json_file)
    size.refuse_beside(model, vqvae, rates)
    if not (model or size.is_given):
        raise UsageError("There is nothing to build. Give --depth 20, a --preset or a --model.")
    named = chosen_model(model, vqvae, size.patch_nums, facts) if model else None
    if named and named.bundle and (rates.are_given or out or guidance_until is not None or smooth):
        raise UsageError(
            f"Rates, experts, --guidance-until, --smooth and --out shape what is exported, and {model} is there. "
            "Leave them out."
        )
    wanted = chosen_precision(precision, fp16)
    with needs("export", "to build plans"):
        from actvar.export.plans.builder import build_plans
        from actvar.export.plans.engine_library import choose_target
        from actvar.export.plans.plugin_choice import chosen_plugins

    lack = target = None
    try:
        target = choose_target(engine, tuple(gpu_arch.split(",")) if gpu_arch else None)
    except EngineError as error:
        lack = error  # the graphs can be exported all the same
    folder = bundle_to_build(named, size, rates, guidance_until, wanted, out, decoder, smooth)
    manifest = read_manifest(folder)
    graphs = _graphs(manifest, scales)
    if target is None:
        raise EngineError(f"{lack} The graphs are there, in {folder}: the same command then goes on with them.")
    choice = None
    if plugins == "auto":
        choice = chosen_plugins(manifest.model, target, options.batch[1])
        options = replace(options, plugins=choice.plugins)
    _say_what_becomes_of_sparse_parts(manifest, options.plugins, choice.why if choice else "")
    jobs = jobs or (1 if target.device else min(os.cpu_count() or 1, MOST_JOBS))
    started = time.perf_counter()
    title = f"{target.engine} {target.version} builds for {target.device or ', '.join(target.gpus)}"
    with progress_bar(title) as progress:
        plans = build_plans(folder, target, options, graphs, jobs, progress)
    seconds = time.perf_counter() - started
    content = json.dumps(figures(manifest, plans, jobs, seconds), indent=1) + "\n"
    deliver([plan_table(plans)], content, json_file)
    built = f"{len(plans.plans)} of {counted(len(manifest.graphs), 'plan')}"
    say(f"{plan_folder(folder, target)}: {built}, in {seconds:.1f} s")
    if manifest.weights.entry is None:
        say(f"There are no weights yet. Give the plans some: {pasteable('bind', folder, '--model', 'CHECKPOINT')}")


def _options(batch_range: str, workspace: int | None, aux_streams: int | None, plugins: str) -> PlanOptions:
    found = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9}):([0-9]{1,9})", batch_range)
    if not found:
        raise UsageError(f"--batch-range must be three numbers, such as 1:8:64, got {batch_range!r}.")
    low, best, high = map(int, found.groups())
    try:
        chosen = PLUGIN_CHOICES[0] if plugins == "auto" else plugins
        return PlanOptions((low, best, high), workspace, aux_streams, chosen)
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


def _say_what_becomes_of_sparse_parts(manifest: Manifest, plugins: str, why: str) -> None:
    model = manifest.model
    if not any(model.is_active(si) for si in range(len(model.schedule))):
        return
    masked = "computed in full and masked, right and no faster than dense"
    library, activation = plugin_library(), model.activation
    if activation and activation.expert_choice == STATIC:
        say("Static experts are a dense FFN with fewer rows, and need no plugin.")
        if library and plugins != "none" and min(activation.token_rates) < 1:
            say(f"Tokens are chosen and moved by plugins of {library}.")
        return
    if plugins == "none":
        say(f"Sparse parts are {masked}.")
    elif library is None:
        say(f"There is no plugin library: sparse parts are {masked}.")
    elif plugins == "tokens":
        say(f"Tokens are chosen and moved by plugins of {library}; the FFN is {masked}{f': {why}' if why else '.'}")
    else:
        say(f"Sparse parts become plugins of {library}{f': {why}' if why else '.'}")
