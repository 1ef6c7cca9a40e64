"""`actvar-trt export`: a checkpoint, or a preset with random weights, to a bundle."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from actvar.bundle import MANIFEST_FILE
from actvar.config import PRESETS, Activation, ModelConfig
from actvar.errors import UsageError
from actvar.runtime.commands.console import progress_bar, say
from actvar.runtime.extras import needs
from actvar.scales import ScaleSchedule

EXAMPLES = """Examples:

actvar-trt export --checkpoint var_d16.pth --vqvae vae_ch160v4096z32.pth --out bundles/d16

actvar-trt export --preset d20 --fp16 --token-rates 0.75,0.75 --expert-rates 0.75,0.75

actvar-trt export --preset mini --patch-nums 1,2,4,8,16 --active-scales 4,5 --experts 8"""

Preset: TypeAlias = Literal["mini", "d16", "d20", "d24", "d30", "d36"]
DEFAULT_RATE = 0.75


def export(
    preset: Annotated[Preset | None, typer.Option(help="A model of this shape, with random weights.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="A .safetensors, or an official .pth file.")] = None,
    vqvae: Annotated[Path | None, typer.Option(help="The VQVAE that belongs to an official checkpoint.")] = None,
    out: Annotated[
        Path | None, typer.Option(show_default="bundles/ and the model", help="The bundle's folder.")
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Matrices in fp16; what must be exact stays in fp32.")] = False,
    active_scales: Annotated[
        str | None, typer.Option(show_default="the last two", help="Scales that leave tokens and experts out, from 1.")
    ] = None,
    token_rates: Annotated[
        str | None, typer.Option(show_default="0.75", help="Share of tokens kept at each active scale, or one for all.")
    ] = None,
    expert_rates: Annotated[
        str | None,
        typer.Option(show_default="0.75", help="Share of experts used at each active scale, or one for all."),
    ] = None,
    experts: Annotated[
        int | None, typer.Option(show_default="the model's, or 16", help="Experts that the FFN is cut into.")
    ] = None,
    patch_nums: Annotated[
        str | None,
        typer.Option(show_default="the preset's", help="Sides of a preset's token maps, such as 1,2,4,8,16."),
    ] = None,
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
    precision = "fp16" if fp16 else "fp32"
    config = _preset(preset, patch_nums) if preset else None
    target = out or Path("bundles") / f"{preset or (checkpoint and checkpoint.stem)}-{precision}"
    if target.is_symlink() or (target.exists() and not (target / MANIFEST_FILE).is_file()):
        raise UsageError(f"--out {target} is there and is not a bundle. Name a new folder, or a bundle to replace.")

    with needs("export", "to export a model"):
        from actvar.checkpoint import load_model
        from actvar.export.onnx_export import export_bundle
        from actvar.models.actvar import random_model

    started = time.perf_counter()
    if config:
        activation = _activation(config, active_scales, token_rates, expert_rates, experts)
        config = _activated(config, activation) if activation else config
        say(f"Random weights: {preset} is exported for size and speed, and draws nothing that means anything.")
        model, source = random_model(config), f"random weights, preset {preset}"
    elif checkpoint:
        model, source = load_model(checkpoint, vqvae), f"checkpoint {checkpoint.name}"
        activation = _activation(model.config, active_scales, token_rates, expert_rates, experts)
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


def _preset(name: str, patch_nums: str | None) -> ModelConfig:
    """A preset's configuration, with other token maps if asked for."""
    config = PRESETS[name]
    if patch_nums is None:
        return config
    try:
        return replace(config, schedule=ScaleSchedule(_integers("--patch-nums", patch_nums)))
    except ValueError as error:
        raise UsageError(f"--patch-nums {patch_nums}: {error}.") from None


def _activation(
    config: ModelConfig,
    scales: str | None,
    token_rates: str | None,
    expert_rates: str | None,
    experts: int | None,
) -> Activation | None:
    """What is asked for, filled up from the model's own activation; None where nothing is asked for.

    Raises:
        UsageError: an option is no list of numbers, or does not fit the others.
    """
    if scales is token_rates is expert_rates is experts is None:
        return None
    own = config.activation
    last_two = (len(config.schedule) - 1, len(config.schedule))
    chosen = _integers("--active-scales", scales) if scales else own.scales if own else last_two
    same_scales = own is not None and chosen == own.scales

    def rates(option: str, text: str | None, of_model: tuple[float, ...]) -> tuple[float, ...]:
        if text is None:
            return of_model if same_scales else (DEFAULT_RATE,) * len(chosen)
        values = _numbers(option, text)
        return values * len(chosen) if len(values) == 1 else values

    try:
        return Activation(
            experts if experts is not None else own.experts if own else Activation.experts,
            chosen,
            rates("--token-rates", token_rates, own.token_rates if own else ()),
            rates("--expert-rates", expert_rates, own.expert_rates if own else ()),
        )
    except ValueError as error:
        raise UsageError(f"The activation cannot be used: {error}.") from None


def _activated(config: ModelConfig, activation: Activation) -> ModelConfig:
    try:
        return replace(config, activation=activation)
    except ValueError as error:
        raise UsageError(f"The activation does not fit the model: {error}.") from None


def _integers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} must be whole numbers with commas between, such as 9,10; got {text!r}.") from None


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} must be numbers with commas between, such as 0.75,0.5; got {text!r}.") from None
