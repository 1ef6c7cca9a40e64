"""`actvar-trt export`: a checkpoint, or a preset with random weights, to a bundle."""

import time
from pathlib import Path
from typing import Annotated

import typer

from actvar.bundle.manifest import MANIFEST_FILE
from actvar.cli.model_choice import (
    ActiveScalesOption,
    Bf16Option,
    CheckpointOption,
    ExpertRatesOption,
    ExpertsOption,
    Fp16Option,
    Fp16WeightsOption,
    Int8Option,
    PatchNumsOption,
    Preset,
    TokenRatesOption,
    VqvaeOption,
    activated,
    chosen_activation,
    chosen_precision,
    preset_config,
)
from actvar.console import progress_bar, say
from actvar.errors import UsageError, needs

EXAMPLES = """Examples:

actvar-trt export --checkpoint var_d16.pth --vqvae vae_ch160v4096z32.pth --out bundles/d16

actvar-trt export --preset d20 --fp16 --token-rates 0.75,0.75 --expert-rates 0.75,0.75

actvar-trt export --checkpoint mine.safetensors --int8

actvar-trt export --preset mini --patch-nums 1,2,4,8,16 --active-scales 4,5 --experts 8"""


def export(
    preset: Annotated[Preset | None, typer.Option(help="A model of this shape, with random weights.")] = None,
    checkpoint: CheckpointOption = None,
    vqvae: VqvaeOption = None,
    out: Annotated[
        Path | None, typer.Option(show_default="bundles/ and the model", help="The bundle's folder.")
    ] = None,
    fp16: Fp16Option = False,
    bf16: Bf16Option = False,
    int8: Int8Option = False,
    fp16_weights: Fp16WeightsOption = False,
    active_scales: ActiveScalesOption = None,
    token_rates: TokenRatesOption = None,
    expert_rates: ExpertRatesOption = None,
    experts: ExpertsOption = None,
    patch_nums: PatchNumsOption = None,
) -> None:
    """Write a model's graphs and weights into a folder, a bundle.

    A preset is dense, and a checkpoint is exported as it is, unless rates, scales or experts are named.
    """
    if (preset is None) == (checkpoint is None):
        raise UsageError("A bundle is made from --preset or from --checkpoint. Give one of them.")
    if vqvae and not checkpoint:
        raise UsageError("--vqvae belongs to a --checkpoint, and there is none. Give both, or leave it out.")
    if checkpoint and patch_nums:
        raise UsageError("--patch-nums shapes a --preset; a checkpoint has its own. Leave it out.")
    precision = chosen_precision(fp16=fp16, bf16=bf16, int8=int8, fp16_weights=fp16_weights)
    config = preset_config(preset, patch_nums) if preset else None
    target = out or Path("bundles") / f"{preset or (checkpoint and checkpoint.stem)}-{precision}"
    if target.is_symlink() or (target.exists() and not (target / MANIFEST_FILE).is_file()):
        raise UsageError(f"--out {target} is there and is not a bundle. Name a new folder, or a bundle to replace.")

    with needs("export", "to export a model"):
        from actvar.checkpoint.model import load_model
        from actvar.export.onnx_export import export_bundle
        from actvar.models.actvar import random_model

    started = time.perf_counter()
    if config:
        activation = chosen_activation(config, active_scales, token_rates, expert_rates, experts)
        config = activated(config, activation) if activation else config
        say(f"Random weights: {preset} is exported for size and speed, and draws nothing that means anything.")
        model, source = random_model(config), f"random weights, preset {preset}"
    elif checkpoint:
        model, source = load_model(checkpoint, vqvae), f"checkpoint {checkpoint.name}"
        activation = chosen_activation(model.config, active_scales, token_rates, expert_rates, experts)
        if activation:
            if model.config.activation is None:
                say("This checkpoint is dense: its router and selector are random, and only show size and speed.")
                source += ", router and selector random"
            model = load_model(checkpoint, vqvae, activation)
    with progress_bar(f"Exporting to {target}") as progress:
        manifest = export_bundle(model, target, precision, source, progress)
    size = sum(file.bytes for file in manifest.files) / 1e6
    typer.echo(f"{target}: {len(manifest.graphs)} graphs, {size:.0f} MB, {precision}, {source}")
    say(f"Exported in {time.perf_counter() - started:.1f} s. See what is in it: actvar-trt inspect {target}")
