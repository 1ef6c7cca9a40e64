"""`actvar-trt export`: a checkpoint, or a size with random weights, to a bundle."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from actvar.bundle.contract import Precision
from actvar.cli.model_choice import (
    RANDOM_ROUTER,
    Facts,
    Rates,
    Size,
    chosen_checkpoint,
    form_suffix,
    guided_until,
)
from actvar.cli.options import (
    Fp16Option,
    GuidanceUntilOption,
    OptionalCheckpointOption,
    SmoothOption,
    VqvaeOption,
    chosen_precision,
    decoder_option,
    graph_precision_option,
    out_option,
    output_option,
)
from actvar.cli.output import replaced_bundle, say_replaced
from actvar.config import Decoder
from actvar.console import progress_bar, say
from actvar.errors import UsageError, counted, needs
from actvar.provenance import pasteable

if TYPE_CHECKING:
    from actvar.models.actvar import ActVAR

EXAMPLES = """Examples:

actvar-trt export --model var_d16.pth --vqvae vae_ch160v4096z32.pth --out bundles/d16

actvar-trt export --preset d20 --fp16

actvar-trt export --depth 20 --dense --fp16

actvar-trt export --preset d16 --guidance-free --expert-choice static --decoder small --precision int8

actvar-trt export --model mine.safetensors --precision int8 --decoder small

actvar-trt export --model var-mini --guidance-until 7

actvar-trt export --model var-mini --smooth

actvar-trt export --preset mini --patch-nums 1,2,4,8,16 --active-scales 4,5 --token-rates 0.5 --experts 8"""


def export(
    *,
    model: OptionalCheckpointOption = None,
    vqvae: VqvaeOption = None,
    facts: Facts,
    size: Size,
    rates: Rates,
    guidance_until: GuidanceUntilOption = None,
    smooth: SmoothOption = False,
    precision: Annotated[Precision | None, graph_precision_option("fp32")] = None,
    fp16: Fp16Option = False,
    decoder: Annotated[
        Decoder,
        decoder_option(
            "small writes the checkpoint's small decoder in place of the large one; of a size, one of random weights.",
            "full",
        ),
    ] = "full",
    no_encoder: Annotated[
        bool, output_option("--no-encoder", help="Leave out the VQVAE's encoder, by which `edit` reads pictures.")
    ] = False,
    out: Annotated[
        Path | None,
        out_option("The bundle's folder; a bundle that is there is replaced.", show_default="bundles/ and the model"),
    ] = None,
) -> None:
    """Write a model's graphs and weights into a folder, a bundle.

    A checkpoint is exported as it is, or with other rates, scales or experts where these are named.
    """
    size.refuse_beside(model, vqvae, rates)
    if not (model or size.is_given):
        raise UsageError("A bundle is made from a --model, or from a --preset or --depth. Give one of them.")
    wanted = chosen_precision(precision, fp16) or "fp32"
    if model:
        name, checkpoint = chosen_checkpoint(model, vqvae, size.patch_nums, facts)
    else:
        name, config = size.model(rates, decoder)
        config = replace(guided_until(config, guidance_until), smooth=smooth)
    kind = "-small-decoder" if model and decoder == "small" else ""
    target = out or Path("bundles") / f"{name}{kind}{form_suffix(guidance_until, smooth)}-{wanted}"
    replaces = replaced_bundle(target)

    with needs("export", "to export a model"):
        from actvar.checkpoint.model import StoredModel, open_checkpoint
        from actvar.export.onnx_export import export_bundle

    started = time.perf_counter()
    network: StoredModel | ActVAR
    if model:
        checkpoint = replace(checkpoint, decoder=decoder, guidance_until=guidance_until, smooth=smooth or None)
        network = open_checkpoint(checkpoint)
        source = f"checkpoint {checkpoint.path.name}"
        if activation := rates.of(network.config):
            if network.config.activation is None:
                say(RANDOM_ROUTER)
                source += ", router and selector random"
            network = open_checkpoint(checkpoint, activation)
    else:
        with needs("export", "to draw random weights (a .safetensors file needs none)"):
            from actvar.models.actvar import random_model
        network, source = random_model(config), f"random weights, preset {size.name}"
        say(f"Random weights: {size.name} is exported for size and speed, and draws nothing that means anything.")
    with progress_bar(f"Exporting to {target}") as progress:
        manifest = export_bundle(network, target, wanted, source, progress, encoder=not no_encoder)
    size_mb = sum(file.bytes for file in manifest.files) / 1e6
    typer.echo(f"{target}: {counted(len(manifest.graphs), 'graph')}, {size_mb:.0f} MB, {wanted}, {source}")
    say_replaced(target, replaces)
    say(f"Exported in {time.perf_counter() - started:.1f} s. See what is in it: {pasteable('inspect', target)}")
