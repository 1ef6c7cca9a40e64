"""The bundle that plans are built from: one that is there, or one that is exported now.

Plans are dear, and an export replaces a bundle with all that is in it: so a bundle that is there is used as it is if it
is of the model that was named, and left alone if it is not.
"""

import os
from pathlib import Path

from actvar.bundle.manifest import MANIFEST_FILE, read_manifest
from actvar.checkpoint.files import Checkpoint
from actvar.cli.model_choice import RANDOM_ROUTER, Rates, Size, guided_until, until_suffix
from actvar.config import ModelConfig
from actvar.console import progress_bar, say
from actvar.errors import UsageError, needs
from actvar.naming import NamedModel


def bundle_to_build(
    named: NamedModel | None,
    size: Size,
    rates: Rates,
    guidance_until: int | None,
    precision: str | None,
    out: Path | None,
) -> Path:
    """The folder of the bundle, which is exported if it is not there.

    Args:
        named: a bundle that is there, or a checkpoint.
        size: in place of it, a model that has no weights yet.
        rates: of what is exported.
        guidance_until: the last scale of it that is guided.
        precision: "fp32", "fp16" or "bf16"; None takes what is there, or fp32.
        out: where the bundle is to be; None takes a folder below bundles/ that is named after the model.

    Raises:
        UsageError: there is a bundle of something else, or in another precision.
        BundleError: there is no bundle where one was named.
        ActVARError: the model cannot be exported.
    """
    if named and named.bundle:
        found = read_manifest(named.bundle).precision
        if precision not in (None, found):
            raise UsageError(f"{named.bundle} is {found}. Leave --precision {precision} out, or name another bundle.")
        return named.bundle
    precision = precision or "fp32"
    ending = f"{until_suffix(guidance_until)}-{precision}"
    if named and named.checkpoint:
        folder = out or Path("bundles") / f"{named.name}{ending}"
        return _of_checkpoint(named.checkpoint, rates, guidance_until, folder, precision)
    name, config = size.model(rates)
    config, folder = guided_until(config, guidance_until), out or Path("bundles") / f"{name}{ending}"
    if not _is_there(folder, config, precision):
        _export_graphs(config, folder, precision, name)
    return folder


def _of_checkpoint(
    checkpoint: Checkpoint, rates: Rates, guidance_until: int | None, folder: Path, precision: str
) -> Path:
    """The bundle of a checkpoint, given its weights if it has none."""
    with needs("export", "to export a model"):
        from actvar.checkpoint.model import open_model
        from actvar.export.binder import bind

    path, vqvae = checkpoint.path, checkpoint.vqvae
    stored, source = open_model(path, vqvae, guidance_until=guidance_until), f"checkpoint {path.name}"
    if activation := rates.of(stored.config):
        stored = open_model(path, vqvae, activation, guidance_until=guidance_until)
        source += ", router and selector random" if stored.fresh else ""
    if not _is_there(folder, stored.config, precision):
        _export_graphs(stored.config, folder, precision, path.name)
    there = read_manifest(folder)
    if there.weights.entry is None:
        if stored.fresh:
            say(RANDOM_ROUTER)
        fresh = bool(stored.fresh)
        with progress_bar(f"Writing the weights of {path.name}") as progress:
            bind(folder, path, vqvae, random_router=fresh, bundle_rates=not fresh, progress=progress)
    elif there.source != source:
        raise UsageError(
            f"{folder} holds the weights of: {there.source}. Give it those of this checkpoint with "
            f"`actvar-trt bind {folder} --model {path}`, or name another folder with --out."
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
    if not (folder / MANIFEST_FILE).is_file():
        is_free = not any(folder.iterdir()) if folder.is_dir() else not os.path.lexists(folder)
        if not is_free:
            raise UsageError(f"{folder} is there and is not a bundle. Name another folder with --out.")
        return False
    manifest = read_manifest(folder)
    if manifest.model != config or manifest.precision != precision:
        raise UsageError(
            f"{folder} holds another model, or another precision ({manifest.precision}). Name another folder with "
            f"--out, or build what is there: --model {folder} and no other options for the model."
        )
    return True
