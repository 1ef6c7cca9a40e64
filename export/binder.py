"""Weights for a bundle that is there: a checkpoint of the same shape, in the layout that the graphs read.

Graphs and plans hold no weights, so they stay as they are. The checkpoint stays mapped from its file; one tensor at a
time is converted and written.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from actvar.bundle.contract import ENCODER
from actvar.bundle.manifest import (
    EXPORT_AGAIN,
    PLANS_FOLDER,
    WEIGHTS_FILE,
    Manifest,
    WeightsSpec,
    read_manifest,
    write_manifest,
)
from actvar.bundle.plans import LOCK_FILE
from actvar.checkpoint.files import Checkpoint
from actvar.checkpoint.model import open_checkpoint
from actvar.config import Decoder, ModelConfig
from actvar.errors import BundleError, CheckpointError, UsageError, counted, needs, shown
from actvar.export.bundle_folder import folder_written_whole
from actvar.export.graphs.weights_file import Read, WeightsFile
from actvar.files import locked, read_verified
from actvar.scales import ScaleSchedule

_MAX_DEPTH = 8  # of folders among the plans, where a build makes two

Progress = Callable[[float], None]


def bind(
    bundle: Path,
    checkpoint: Path,
    vqvae: Path | None = None,
    target: Path | None = None,
    *,
    schedule: ScaleSchedule | None = None,
    znorm: bool = False,
    random_router: bool = False,
    bundle_rates: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Give a bundle the weights of a checkpoint.

    The result is a whole new folder, which shares the files of graphs and plans with the old one where the file system
    can, and takes its name in one step.

    Args:
        bundle: its folder; it may have weights already, or none.
        checkpoint, vqvae, schedule, znorm: see `actvar.checkpoint.files.Checkpoint`.
        target: the new bundle's folder; None replaces the bundle.
        random_router: give a dense checkpoint the router and selector that the graphs want, drawn at random.
        bundle_rates: take a checkpoint that was trained with other active scales or rates than the graphs have.
        progress: told the share that is done, 0 to 1.

    Returns: the new manifest: the model is the checkpoint's.

    Raises:
        BundleError: the bundle is not whole, or the target is no bundle or cannot be written.
        CheckpointError: the checkpoint cannot be used, or is not of the shape that the graphs were made for.
        UsageError: `random_router` for a checkpoint that has one, or for graphs that have none.
    """
    manifest = _read(bundle)
    _require_rebindable(bundle, manifest)
    decoder: Decoder = "small" if manifest.model.small_decoder else "full"
    named = Checkpoint(checkpoint, vqvae, schedule, decoder, znorm=znorm)
    stored = open_checkpoint(named)
    _require_shape(checkpoint, stored.config, bundle, manifest.model)
    source, activation, own = f"checkpoint {checkpoint.name}", manifest.model.activation, stored.config.activation
    if random_router and (own or not activation):
        raise UsageError(
            f"--random-router is for a dense checkpoint and graphs with active scales, and "
            f"{f'{checkpoint} is an ActVAR' if own else f'the graphs of {bundle} are dense'}. Leave it out."
        )
    if activation and (random_router or (bundle_rates and own)):
        stored = open_checkpoint(named, activation)
        source += ", router and selector random" if random_router else ""
    _require_activation(checkpoint, stored.config, bundle, manifest.model)
    config = _guided(checkpoint, stored.config, bundle, manifest.model)
    return _bind(bundle, manifest, config, stored.read, source, target, progress)


def bind_random(bundle: Path, target: Path | None = None, progress: Progress | None = None) -> Manifest:
    """Give a bundle random weights, for size and speed. Holds them in memory, in fp32; arguments are those of `bind`.

    Raises:
        BundleError: the bundle is not whole, or the target is no bundle or cannot be written.
    """
    manifest = _read(bundle)
    _require_rebindable(bundle, manifest)
    with needs("export", "to draw random weights (a .safetensors file needs none)"):
        from actvar.models.actvar import random_model
    read = random_model(manifest.model).read
    return _bind(bundle, manifest, manifest.model, read, "random weights", target, progress)


def _read(bundle: Path) -> Manifest:
    """The manifest of a bundle whose graphs are what it says; its weights do not matter any more."""
    manifest = read_manifest(bundle)
    for entry in manifest.graph_files:
        read_verified(bundle / entry.file, entry, EXPORT_AGAIN)
    return manifest


def _require_rebindable(bundle: Path, manifest: Manifest) -> None:
    """Make sure that a bundle's graphs hold nothing of its weights."""
    if manifest.precision == "int8":
        raise BundleError(
            f"{bundle} is in int8, and its graphs hold scales that were measured with its own weights. "
            "Export the checkpoint: actvar-trt export --model CHECKPOINT --precision int8"
        )


def _require_shape(checkpoint: Path, found: ModelConfig, bundle: Path, made_for: ModelConfig) -> None:
    """Make sure that graphs are of a model of this size."""
    for (what, own), (_, wanted) in zip(_shape(found), _shape(made_for), strict=True):
        if own != wanted:
            raise CheckpointError(
                f"{checkpoint} does not fit {bundle}: {what} is {own}, and the graphs were made for {wanted}. "
                f"Export a bundle of {checkpoint.name}, or bind a checkpoint of the bundle's shape."
            )


def _shape(model: ModelConfig) -> Iterator[tuple[str, object]]:
    yield "the depth", model.depth
    yield "patch_nums", model.schedule.patch_nums
    yield "the number of classes", model.num_classes
    yield "shared AdaLN", model.shared_adaln
    for field, value in vars(model.vqvae).items():
        yield f"the VQVAE's {field}", value
    yield "the small decoder", model.small_decoder


def _require_activation(checkpoint: Path, found: ModelConfig, bundle: Path, made_for: ModelConfig) -> None:
    """Make sure that graphs leave out what a model leaves out."""
    instead = f"Export a bundle of {checkpoint.name}, or bind"
    if made_for.activation and not found.activation:
        raise CheckpointError(
            f"{checkpoint} is a dense VAR without the selectors and routers that the graphs of {bundle} choose by. "
            f"{instead} an ActVAR; --random-router draws them at random, which only shows size and speed."
        )
    if found.activation and not made_for.activation:
        raise CheckpointError(
            f"{checkpoint} is an ActVAR, and the graphs of {bundle} are dense: its selectors and routers would not be "
            f"used. {instead} a dense VAR."
        )
    if not found.activation or not made_for.activation:
        return
    if found.activation.experts != made_for.activation.experts:
        raise CheckpointError(
            f"{checkpoint} has {counted(found.activation.experts, 'expert')}, and the graphs of {bundle} were made for "
            f"{made_for.activation.experts}. {instead} a checkpoint with as many."
        )
    for name in ("token_choice", "expert_choice"):
        own, wanted = getattr(found.activation, name), getattr(made_for.activation, name)
        if own != wanted:
            raise CheckpointError(
                f"{checkpoint} has a {own} {name}, and the graphs of {bundle} were made for a {wanted} one. "
                f"{instead} a checkpoint with the same choice."
            )
    for si in range(len(found.schedule)):
        own, wanted = ((model.kept_tokens(si), model.active_experts(si)) for model in (found, made_for))
        if own != wanted:
            raise CheckpointError(
                f"{checkpoint} keeps {counted(own[0], 'token')} and {counted(own[1], 'expert')} at scale {si + 1}, and "
                f"the graphs of {bundle} keep {wanted[0]} and {wanted[1]}. {instead} with --bundle-rates, to run it as "
                "the graphs do."
            )


def _guided(checkpoint: Path, found: ModelConfig, bundle: Path, made_for: ModelConfig) -> ModelConfig:
    """The model as graphs run it: where guidance ends, and whether codes are mixed, is theirs to say; whether there is
    any guidance the checkpoint's.

    Raises:
        CheckpointError: one of the two has guidance, and the other has none.
    """
    if found.is_guided != made_for.is_guided:
        own, graphs = ("is guided", "are not") if found.is_guided else ("is guidance-free", "are guided")
        raise CheckpointError(
            f"{checkpoint} {own}, and the graphs of {bundle} {graphs}. Export a bundle of {checkpoint.name}."
        )
    return replace(found, guided_scales=made_for.guided_scales, smooth=made_for.smooth)


def _bind(
    bundle: Path,
    manifest: Manifest,
    config: ModelConfig,
    read: Read,
    source: str,
    target: Path | None,
    progress: Progress | None,
) -> Manifest:
    file = WeightsFile.of(config, manifest.precision, encoder=ENCODER in manifest.graphs)
    if replace(manifest.weights, sha256=None) != WeightsSpec(file.layout.bytes, None, file.layout.tensors):
        raise BundleError(f"{bundle} lays its weights out in a way that this version does not write. {EXPORT_AGAIN}")
    bundle, target = bundle.resolve(), (target or bundle.resolve()).absolute()
    if bundle in target.resolve().parents:
        raise UsageError(f"{target} lies inside the bundle. Name a folder outside of it, or none to replace it.")
    with _plans_locked(bundle), folder_written_whole(target) as unfinished:
        for entry in manifest.graph_files:
            _share(bundle / entry.file, unfinished / entry.file)
        if (bundle / PLANS_FOLDER).is_dir():
            _share_any(bundle / PLANS_FOLDER, unfinished / PLANS_FOLDER, _MAX_DEPTH)
        weights = file.write(unfinished / WEIGHTS_FILE, read, progress)
        bound = replace(manifest, model=config, source=source, weights=weights)
        write_manifest(unfinished, bound)
    return bound


@contextmanager
def _plans_locked(bundle: Path) -> Iterator[None]:
    """Wait for builds of plans that are under way, and keep others from beginning where there are plans already."""
    with ExitStack() as stack:
        for lock in sorted((bundle / PLANS_FOLDER).glob(f"*/{LOCK_FILE}")):
            with suppress(OSError):  # of a bundle that may only be read: no build can be under way there
                if not any(place.is_symlink() for place in (lock, *lock.parents[:2])):
                    stack.enter_context(locked(lock))
        yield


def _share_any(source: Path, target: Path, depth: int) -> None:
    """The same file, or the same folder of files, under another name; of folders in each other so many at most."""
    if source.is_symlink() or not (source.is_file() or source.is_dir()):
        raise BundleError(f"{shown(source)} must be a plain file or a folder, and is a link or a device. Remove it.")
    if source.is_file():
        _share(source, target)
        return
    if depth == 0:
        raise BundleError(f"{shown(source)} lies deeper than any plan does. Remove it.")
    target.mkdir()
    for path in source.iterdir():
        _share_any(path, target / path.name, depth - 1)


def _share(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the file system has no such thing."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copyfile(source, target, follow_symlinks=False)
