"""The bundle that plans are built from: one that is there, or one that is exported now.

Plans are dear, and an export replaces a bundle with all that is in it: so a bundle that is there is used as it is if it
is of the model that was named, and left alone if it is not.
"""

from dataclasses import replace
from pathlib import Path

from actvar.bundle.manifest import read_manifest
from actvar.checkpoint.files import Checkpoint
from actvar.cli.model_choice import RANDOM_ROUTER, Rates, Size, form_suffix, guided_until
from actvar.cli.output import replaced_bundle
from actvar.config import Decoder, ModelConfig
from actvar.console import progress_bar, say
from actvar.errors import UsageError, needs
from actvar.naming import NamedModel
from actvar.provenance import pasteable


def bundle_to_build(
    named: NamedModel | None,
    size: Size,
    rates: Rates,
    guidance_until: int | None,
    precision: str | None,
    out: Path | None,
    decoder: Decoder | None = None,
    smooth: bool = False,
) -> Path:
    """The folder of the bundle, which is exported if it is not there.

    Args:
        named: a bundle that is there, or a checkpoint.
        size: in place of it, a model that has no weights yet.
        rates: of what is exported.
        guidance_until: the last scale of it that is guided.
        precision: "fp32", "fp16" or "bf16"; None takes what is there, or fp32.
        out: where the bundle is to be; None takes a folder below bundles/ that is named after the model.
        decoder: of a checkpoint the one that is exported; None takes the full one, or what is there.
        smooth: whether what is exported mixes codes.

    Raises:
        UsageError: there is a bundle of something else, in another precision or with another decoder.
        BundleError: there is no bundle where one was named.
        ActVARError: the model cannot be exported.
    """
    if named and named.bundle:
        manifest = read_manifest(named.bundle)
        found, holds = manifest.precision, "small" if manifest.model.small_decoder else "full"
        if precision not in (None, found):
            raise UsageError(f"{named.bundle} is {found}. Leave --precision {precision} out, or name another bundle.")
        if decoder not in (None, holds):
            raise UsageError(f"{named.bundle} has the {holds} decoder. Leave --decoder out, or name another bundle.")
        return named.bundle
    precision = precision or "fp32"
    ending = f"{form_suffix(guidance_until, smooth)}-{precision}"
    if named and named.checkpoint:
        checkpoint = replace(
            named.checkpoint, decoder=decoder or "full", guidance_until=guidance_until, smooth=smooth or None
        )
        kind = "-small-decoder" if decoder == "small" else ""
        folder = out or Path("bundles") / f"{named.name}{kind}{ending}"
        return _of_checkpoint(checkpoint, rates, folder, precision)
    name, config = size.model(rates, decoder)
    config = replace(guided_until(config, guidance_until), smooth=smooth)
    folder = out or Path("bundles") / f"{name}{ending}"
    if not _is_there(folder, config, precision):
        _export_graphs(config, folder, precision, name)
    return folder


def _of_checkpoint(checkpoint: Checkpoint, rates: Rates, folder: Path, precision: str) -> Path:
    """The bundle of a checkpoint, given its weights if it has none."""
    with needs("export", "to export a model"):
        from actvar.checkpoint.model import open_checkpoint
        from actvar.export.binder import bind

    path = checkpoint.path
    stored, source = open_checkpoint(checkpoint), f"checkpoint {path.name}"
    if activation := rates.of(stored.config):
        stored = open_checkpoint(checkpoint, activation)
        source += ", router and selector random" if stored.fresh else ""
    if not _is_there(folder, stored.config, precision):
        _export_graphs(stored.config, folder, precision, path.name)
    there = read_manifest(folder)
    if there.weights.entry is None:
        if stored.fresh:
            say(RANDOM_ROUTER)
        fresh = bool(stored.fresh)
        with progress_bar(f"Writing the weights of {path.name}") as progress:
            bind(
                folder,
                path,
                checkpoint.vqvae,
                schedule=checkpoint.schedule,
                znorm=checkpoint.znorm,
                random_router=fresh,
                bundle_rates=not fresh,
                progress=progress,
            )
    elif there.source != source:
        given = ["--model", path]
        given += ["--vqvae", checkpoint.vqvae] if checkpoint.vqvae else []
        given += ["--patch-nums", checkpoint.schedule.text] if checkpoint.schedule else []
        given += ["--znorm"] if checkpoint.znorm else []
        given += ["--random-router"] if stored.fresh else []
        raise UsageError(
            f"{folder} holds the weights of: {there.source}. Name another folder with --out, or give it those of this "
            f"checkpoint: {pasteable('bind', folder, *given)}"
        )
    return folder


def _export_graphs(config: ModelConfig, folder: Path, precision: str, name: str) -> None:
    with needs("export", "to export a model"):
        from actvar.export.onnx_export import export_graphs
    with progress_bar(f"Exporting graphs to {folder}") as progress:
        export_graphs(config, folder, precision, f"no weights yet, {name}", progress)


def _is_there(folder: Path, config: ModelConfig, precision: str) -> bool:
    """Whether the bundle is there.

    Raises:
        UsageError: something else is.
    """
    if not replaced_bundle(folder):
        return False
    manifest = read_manifest(folder)
    if manifest.model != config or manifest.precision != precision:
        raise UsageError(
            f"{folder} holds another model, or another precision ({manifest.precision}). Name another folder with "
            f"--out, or build what is there: --model {folder} and no other options for the model."
        )
    return True
