"""`actvar-trt bind`: another checkpoint's weights for a bundle that is there; graphs and plans stay."""

import time
from pathlib import Path
from typing import Annotated

import typer

from actvar.cli.model_choice import CheckpointOption, VqvaeOption
from actvar.console import progress_bar, say
from actvar.errors import UsageError, needs

EXAMPLES = """Examples:

actvar-trt bind --bundle bundles/d16 --checkpoint var_d16.pth --vqvae vae_ch160v4096z32.pth

actvar-trt bind --bundle bundles/d16 --checkpoint tuned.safetensors --out bundles/tuned

actvar-trt bind --bundle bundles/d20 --random"""


def bind(
    bundle: Annotated[Path, typer.Option(help="A folder that `actvar-trt export` or `build` wrote.")],
    checkpoint: CheckpointOption = None,
    vqvae: VqvaeOption = None,
    out: Annotated[
        Path | None, typer.Option(show_default="the bundle itself", help="A new bundle's folder; the old one stays.")
    ] = None,
    random: Annotated[bool, typer.Option("--random", help="Random weights, for size and speed.")] = False,
    random_router: Annotated[
        bool, typer.Option("--random-router", help="Random router and selector for a dense checkpoint.")
    ] = False,
    bundle_rates: Annotated[
        bool, typer.Option("--bundle-rates", help="Run a checkpoint at the bundle's scales and rates, not at its own.")
    ] = False,
) -> None:
    """Give a bundle the weights of a checkpoint of the same shape.

    Graphs and plans are the same for all of them: nothing is exported or built.
    """
    if (checkpoint is None) == (not random):
        raise UsageError("A bundle is bound to a --checkpoint, or to weights at --random. Give one of them.")
    for option, given in (("vqvae", vqvae), ("random-router", random_router), ("bundle-rates", bundle_rates)):
        if given and not checkpoint:
            raise UsageError(f"--{option} belongs to a --checkpoint, and there is none. Give both, or leave it out.")
    with needs("export", "to bind a checkpoint"):
        from actvar.export import binder

    started, target = time.perf_counter(), out or bundle
    with progress_bar(f"Binding {target}") as progress:
        if checkpoint:
            choices = {"random_router": random_router, "bundle_rates": bundle_rates}
            manifest = binder.bind(bundle, checkpoint, vqvae, out, progress=progress, **choices)
        else:
            manifest = binder.bind_random(bundle, out, progress)
    if random:
        say("Random weights: this bundle is for size and speed, and draws nothing that means anything.")
    if random_router:
        say("This checkpoint is dense: its router and selector are random, and only show size and speed.")
    size = manifest.weights.bytes / 1e6
    typer.echo(f"{target}: {size:.0f} MB of weights, {manifest.precision}, {manifest.source}")
    say(f"Bound in {time.perf_counter() - started:.1f} s. See what is in it: actvar-trt inspect {target}")
