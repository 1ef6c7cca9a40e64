"""`actvar-trt bind`: another checkpoint's weights for a bundle that is there; graphs and plans stay."""

import time
from pathlib import Path
from typing import Annotated

import typer

from actvar.cli.model_choice import RANDOM_ROUTER, Facts, chosen_checkpoint
from actvar.cli.options import (
    BundleArgument,
    OptionalCheckpointOption,
    PatchNumsOption,
    VqvaeOption,
    model_option,
    out_option,
)
from actvar.cli.output import replaced_bundle, say_replaced
from actvar.console import progress_bar, say
from actvar.errors import UsageError, needs
from actvar.provenance import pasteable

EXAMPLES = """Examples:

actvar-trt bind bundles/d16 --model var_d16.pth --vqvae vae_ch160v4096z32.pth

actvar-trt bind bundles/d16 --model tuned.safetensors --out bundles/tuned

actvar-trt bind bundles/actvar-d20-fp16 --random"""


def bind(
    bundle: BundleArgument,
    *,
    model: OptionalCheckpointOption = None,
    vqvae: VqvaeOption = None,
    patch_nums: PatchNumsOption = None,
    facts: Facts,
    random: Annotated[bool, model_option(help="In place of a checkpoint: random weights, for size and speed.")] = False,
    random_router: Annotated[bool, model_option(help="Random router and selector for a dense checkpoint.")] = False,
    bundle_rates: Annotated[
        bool, model_option(help="Run the checkpoint at the bundle's scales and rates, not at its own.")
    ] = False,
    out: Annotated[
        Path | None, out_option("A new bundle's folder; the old one stays.", show_default="the bundle itself")
    ] = None,
) -> None:
    """Give a bundle the weights of a checkpoint of the same shape.

    Graphs and plans are the same for all of them: nothing is exported or built.
    """
    if (model is None) == (not random):
        raise UsageError("A bundle is bound to a --model, or to weights at --random. Give one of them.")
    of_model = {
        "vqvae": vqvae,
        "patch-nums": patch_nums,
        "znorm": facts.znorm,
        "random-router": random_router,
        "bundle-rates": bundle_rates,
    }
    for option, given in of_model.items():
        if given and not model:
            raise UsageError(f"--{option} belongs to a --model, and there is none. Give both, or leave it out.")
    replaces = bool(out and out.resolve() != bundle.resolve() and replaced_bundle(out))
    checkpoint = chosen_checkpoint(model, vqvae, patch_nums, facts)[1] if model else None
    with needs("export", "to bind a checkpoint"):
        from actvar.export import binder

    started, target = time.perf_counter(), out or bundle
    with progress_bar(f"Binding {target}") as progress:
        if checkpoint:
            manifest = binder.bind(
                bundle,
                checkpoint.path,
                checkpoint.vqvae,
                out,
                schedule=checkpoint.schedule,
                znorm=checkpoint.znorm,
                random_router=random_router,
                bundle_rates=bundle_rates,
                progress=progress,
            )
        else:
            manifest = binder.bind_random(bundle, out, progress)
    if random:
        say("Random weights: this bundle is for size and speed, and draws nothing that means anything.")
    if random_router:
        say(RANDOM_ROUTER)
    size = manifest.weights.bytes / 1e6
    typer.echo(f"{target}: {size:.0f} MB of weights, {manifest.precision}, {manifest.source}")
    say_replaced(target, replaces)
    say(f"Bound in {time.perf_counter() - started:.1f} s. See what is in it: {pasteable('inspect', target)}")
