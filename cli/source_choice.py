"""What draws: the options that name a model and a backend, and the source of pictures that they come to.

Shared by the commands that draw for people and for scores.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from actvar.bundle.contract import Precision
from actvar.bundle.plans import PlanOptions
from actvar.checkpoint.files import Checkpoint, shipped_checkpoint
from actvar.cli.model_choice import refuse_elsewhere
from actvar.config import ModelConfig, Sampling
from actvar.console import progress_bar, say
from actvar.errors import BundleError, UsageError, needs
from actvar.export.bundle_cache import cached_bundle, discard
from actvar.runtime.backends.protocol import Device
from actvar.runtime.pictures import PictureSource
from actvar.runtime.sources import open_eager, open_engines, open_graphs

Model: TypeAlias = Literal["actvar-mini", "var-mini"]
Backend: TypeAlias = Literal["onnxruntime", "tensorrt", "torch"]

ModelOption: TypeAlias = Annotated[Model, typer.Option(help="One of the package's own models.")]
CheckpointOption: TypeAlias = Annotated[
    Path | None, typer.Option(help="Another model: a .safetensors, or an official .pth file.")
]
VqvaeOption: TypeAlias = Annotated[Path | None, typer.Option(help="The VQVAE that belongs to an official checkpoint.")]
BundleOption: TypeAlias = Annotated[
    Path | None, typer.Option(help="An exported model: a folder of `actvar-trt export`.")
]
BackendOption: TypeAlias = Annotated[
    Backend,
    typer.Option(
        help="onnxruntime draws with the graphs, tensorrt with engines built from them, "
        "torch with the model they are made from."
    ),
]
DeviceOption: TypeAlias = Annotated[
    Device | None,
    typer.Option(show_default="cpu; cuda for tensorrt", help="Where the graphs run; cuda is the first NVIDIA GPU."),
]
PrecisionOption: TypeAlias = Annotated[Precision, typer.Option(help="Of the graphs, where they are not exported yet.")]
ThreadsOption: TypeAlias = Annotated[int, typer.Option(min=0, max=1024, help="CPU threads; 0 is one for each core.")]
CfgOption: TypeAlias = Annotated[
    float | None, typer.Option(show_default="the model's", help="Strength of guidance, 0 or more.")
]
TopKOption: TypeAlias = Annotated[
    int | None, typer.Option(show_default="the model's", help="Draw from this many best codes, 1 to 900.")
]
TopPOption: TypeAlias = Annotated[
    float | None, typer.Option(show_default="the model's", help="Draw from the codes with this mass, up to 1.")
]


@dataclass(frozen=True)
class SourceChoice:
    """The options that decide what draws; see those of `actvar-trt generate`.

    Raises:
        UsageError: two of them exclude each other.
    """

    model: str
    checkpoint: Path | None
    vqvae: Path | None
    bundle: Path | None
    backend: Backend
    device: Device | None
    precision: Precision
    batch_size: int
    threads: int

    def __post_init__(self) -> None:
        if self.bundle and self.checkpoint:
            raise UsageError("--bundle and --checkpoint both name a model. Give one of them.")
        if self.bundle and self.backend == "torch":
            raise UsageError("--backend torch draws with a checkpoint, and --bundle names graphs. Give --checkpoint.")
        if self.backend == "tensorrt" and self.device == "cpu":
            raise UsageError("--backend tensorrt needs a GPU, and --device cpu names none. Leave --device out.")
        if self.backend == "torch" and self.device == "cuda":
            raise UsageError("--backend torch draws on the CPU, as the reference. Leave --device out.")
        if self.vqvae and not self.checkpoint:
            raise UsageError("--vqvae belongs to a --checkpoint, and there is none. Give both, or leave it out.")
        refuse_elsewhere(f"--precision {self.precision}", self.precision, self.backend, self.device)

    @property
    def chosen_checkpoint(self) -> Checkpoint:
        """The checkpoint, where it is not a bundle that is chosen.

        Raises:
            ActVARError: this installation lacks the package's own.
        """
        return Checkpoint(self.checkpoint, self.vqvae) if self.checkpoint else shipped_checkpoint(self.model)

    @property
    def name(self) -> str:
        """What a person would call the model."""
        path = self.bundle or self.checkpoint
        return path.absolute().name if path else self.model

    def open(self, accept: Callable[[ModelConfig], None]) -> PictureSource:
        """What draws, exported and built first where that is not done.

        Args:
            accept: sees the model before an export starts, and may refuse it by raising.

        Raises:
            ActVARError: the model cannot be used, or what it needs is not installed.
        """
        if self.bundle:
            return self._open_bundle(self.bundle)
        if self.backend == "torch":
            return open_eager(self.chosen_checkpoint, self.threads)
        return self._open_cached(self.chosen_checkpoint, accept)

    def _open_bundle(self, folder: Path) -> PictureSource:
        if self.backend == "tensorrt":
            return open_engines(folder, self.batch_size) if self.bundle else _open_built(folder, self.batch_size)
        return open_graphs(folder, self.batch_size, self.threads, self.device or "cpu")

    def _open_cached(self, checkpoint: Checkpoint, accept: Callable[[ModelConfig], None]) -> PictureSource:
        """The graphs of a checkpoint, exported into the cache if they are not there, or not whole."""
        with progress_bar(f"Exporting {checkpoint.path.name}, once") as progress:
            folder = cached_bundle(checkpoint, self.precision, accept, progress)
            try:
                return self._open_bundle(folder)
            except BundleError as error:
                say(f"{error} It is only a copy: making it anew.")
                discard(folder)
                return self._open_bundle(cached_bundle(checkpoint, self.precision, accept, progress))


def chosen_sampling(default: Sampling, cfg: float | None, top_k: int | None, top_p: float | None) -> Sampling:
    """The model's own sampling where nothing else is asked for.

    Raises:
        UsageError: a number is outside its range.
    """
    try:
        return Sampling(
            default.cfg if cfg is None else cfg,
            default.top_k if top_k is None else top_k,
            default.top_p if top_p is None else top_p,
        )
    except ValueError as error:
        raise UsageError(f"--{str(error).replace('_', '-')}.") from None  # its first word is the option's


def refuse_large_seed(seed: int) -> None:
    """Refuse a seed of more than 64 bits.

    Raises:
        UsageError: it is one.
    """
    if seed >= 2**64:
        raise UsageError(f"--seed must lie in 0..2^64-1, got {seed}.")


def _open_built(folder: Path, batch_size: int) -> PictureSource:
    """The engines of a bundle in the cache, built now if they are not there, or not for this GPU and batch."""
    try:
        return open_engines(folder, batch_size)
    except BundleError as error:
        say(f"{error} Doing it now, once.")
    with needs("export", "to build engines for the first time"):
        from actvar.export.plans.builder import build_plans
        from actvar.export.plans.engine_library import choose_target
    options = PlanOptions()
    low, best, high = options.batch
    try:
        options = replace(options, batch=(low, max(best, min(batch_size, high)), max(high, batch_size)))
    except ValueError as error:
        raise UsageError(f"--batch-size {batch_size}: {error}.") from None
    with progress_bar("Building engines") as progress:
        build_plans(folder, choose_target(None, None), options, progress=progress)
    return open_engines(folder, batch_size)
