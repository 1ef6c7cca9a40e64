"""The bundle that plans are built from: one that is there, or one that is exported now.

Plans are dear, and an export replaces a bundle with all that is in it: so a bundle that is there is used as it is if it
is of the model that was named, and left alone if it is not.
"""

import os
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from actvar.bundle.manifest import MANIFEST_FILE, read_manifest
from actvar.cli.model_choice import activated, chosen_activation, preset_config, with_patch_nums
from actvar.config import PRESETS, Activation, ModelConfig
from actvar.console import progress_bar, say
from actvar.errors import UsageError, needs


@dataclass(frozen=True)
class ActivationChoice:
    """The options of an activation, as they were given."""

    active_scales: str | None
    token_rates: str | None
    expert_rates: str | None
    experts: int | None

    @property
    def is_made(self) -> bool:
        """Whether any of them was given."""
        return any(option is not None for option in astuple(self))

    def of(self, config: ModelConfig) -> Activation | None:
        """What they come to for a model; None where none of them was given."""
        return chosen_activation(config, *astuple(self))


@dataclass(frozen=True)
class ModelChoice:
    """The options that name a model, as they were given."""

    depth: int | None
    dense: bool
    preset: str | None
    checkpoint: Path | None
    vqvae: Path | None
    activation: ActivationChoice
    patch_nums: str | None

    @property
    def is_named(self) -> bool:
        """Whether there is a model beside the bundle that may be there."""
        return bool(self.depth or self.preset or self.checkpoint)

    def refuse_contradictions(self, bundle: Path | None) -> None:
        """Refuse options that exclude each other.

        Raises:
            UsageError: there are any.
        """
        named = [name for name in ("depth", "preset", "checkpoint") if getattr(self, name)]
        if len(named) > 1:
            raise UsageError(f"--{named[0]} and --{named[1]} both name a model. Give one of them.")
        if not named and not bundle:
            raise UsageError("There is nothing to build. Give --depth 20, --preset, --checkpoint or --bundle.")
        if self.vqvae and not self.checkpoint:
            raise UsageError("--vqvae belongs to a --checkpoint, and there is none. Give both, or leave it out.")
        if self.patch_nums and not (self.depth or self.preset):
            raise UsageError("--patch-nums shapes a --depth or a --preset. Leave it out.")
        if self.dense and not self.depth:
            raise UsageError("--dense belongs to a --depth; whatever else is built is dense as it is. Leave it out.")
        if self.activation.is_made and (self.dense or not named):
            raise UsageError("Rates, scales and experts shape what is exported, and not densely. Leave them out.")

    def config(self) -> tuple[ModelConfig, str]:
        """The model of a --depth or a --preset, and what its bundle is called.

        Raises:
            UsageError: an option does not fit.
        """
        if self.preset:
            config = preset_config(self.preset, self.patch_nums)
            activation = self.activation.of(config)
            return (activated(config, activation) if activation else config), self.preset
        assert self.depth
        name = f"d{self.depth}"
        config = with_patch_nums(PRESETS.get(name, ModelConfig(self.depth)), self.patch_nums)
        if self.dense:
            return config, name
        last_two = (len(config.schedule) - 1, len(config.schedule))
        config = activated(config, replace(Activation(), scales=last_two))
        activation = self.activation.of(config)
        return (activated(config, activation) if activation else config), f"actvar-{name}"


def bundle_to_build(model: ModelChoice, bundle: Path | None, precision: str | None) -> Path:
    """The folder of the bundle, which is exported if it is not there.

    Args:
        model: what it is to hold, if anything was named.
        bundle: where it is, or is to be; None takes a folder below bundles/ that is named after the model.
        precision: "fp32", "fp16" or "bf16"; None takes what is there.

    Raises:
        UsageError: there is a bundle of something else.
        ActVARError: the model cannot be exported.
    """
    if model.checkpoint:
        return _of_checkpoint(model, model.checkpoint, bundle, precision or "fp32")
    if model.is_named:
        config, name = model.config()
        folder = bundle or Path("bundles") / f"{name}-{precision}"
        if not _is_there(folder, config, precision):
            with needs("export", "to export a model"):
                from actvar.export.onnx_export import export_graphs
            with progress_bar(f"Exporting graphs to {folder}") as progress:
                export_graphs(config, folder, precision or "fp32", f"no weights yet, {name}", progress)
        return folder
    folder = bundle or Path()
    found = read_manifest(folder).precision
    if precision not in (None, found):
        raise UsageError(f"--bundle {folder} is {found}. Leave --{precision} out, or name another bundle.")
    return folder


def _of_checkpoint(model: ModelChoice, path: Path, bundle: Path | None, precision: str) -> Path:
    with needs("export", "to export a model"):
        from actvar.checkpoint.model import open_model
        from actvar.export.binder import bind
        from actvar.export.onnx_export import export_graphs

    stored, source = open_model(path, model.vqvae), f"checkpoint {path.name}"
    activation = model.activation.of(stored.config)
    if activation:
        stored = open_model(path, model.vqvae, activation)
        source += ", router and selector random" if stored.fresh else ""
    folder = bundle or Path("bundles") / f"{path.stem}-{precision}"
    if not _is_there(folder, stored.config, precision):
        with progress_bar(f"Exporting graphs to {folder}") as progress:
            export_graphs(stored.config, folder, precision, f"no weights yet, {path.name}", progress)
    there = read_manifest(folder)
    if there.weights.entry is None:
        if stored.fresh:
            say("This checkpoint is dense: its router and selector are random, and only show size and speed.")
        fresh = bool(stored.fresh)
        with progress_bar(f"Writing the weights of {path.name}") as progress:
            bind(folder, path, model.vqvae, random_router=fresh, bundle_rates=not fresh, progress=progress)
    elif there.source != source:
        raise UsageError(
            f"{folder} holds the weights of: {there.source}. Give it those of this checkpoint with "
            f"`actvar-trt bind --bundle {folder} --checkpoint {path}`, or name another --bundle."
        )
    return folder


def _is_there(folder: Path, config: ModelConfig, precision: str | None) -> bool:
    """Whether the bundle is there.

    Raises:
        UsageError: something else is.
    """
    if not (folder / MANIFEST_FILE).is_file():
        is_free = not any(folder.iterdir()) if folder.is_dir() else not os.path.lexists(folder)
        if not is_free:
            raise UsageError(f"{folder} is there and is not a bundle. Name another folder with --bundle.")
        return False
    manifest = read_manifest(folder)
    if manifest.model != config or manifest.precision != precision:
        raise UsageError(
            f"{folder} holds another model, or another precision ({manifest.precision}). Name another folder with "
            f"--bundle, or build what is there: --bundle {folder} and no options for the model."
        )
    return True
