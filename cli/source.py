"""What draws: a model behind the backend that is chosen, exported and built first where that is not done.

Shared by the commands that draw for people and for scores.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from actvar.bundle.contract import Precision
from actvar.bundle.manifest import read_manifest
from actvar.bundle.plans import PlanOptions
from actvar.checkpoint.files import Checkpoint
from actvar.cli.options import (
    DeviceOption,
    Fp16Option,
    PrecisionOption,
    ThreadsOption,
    batch_size_option,
    chosen_precision,
    drawing_option,
    engine_option,
    refuse_elsewhere,
)
from actvar.config import ModelConfig, Sampling
from actvar.console import progress_bar, say
from actvar.errors import BundleError, UsageError, needs
from actvar.export.bundle_cache import cached_bundle, discard
from actvar.naming import NamedModel
from actvar.runtime.pictures import PictureSource
from actvar.runtime.sources import open_eager, open_engines, open_graphs


@dataclass(frozen=True)
class Guidance:
    """How tokens are drawn; the model's own values where nothing is given."""

    cfg: Annotated[
        float | None, drawing_option(show_default="the model's", help="Strength of guidance, 0 or more.")
    ] = None
    top_k: Annotated[
        int | None, drawing_option(show_default="the model's", help="Draw from this many best codes, 1 to 900.")
    ] = None
    top_p: Annotated[
        float | None, drawing_option(show_default="the model's", help="Draw from the codes with this mass, up to 1.")
    ] = None

    def of(self, own: Sampling) -> Sampling:
        """What it comes to for a model.

        Raises:
            UsageError: a number is outside its range.
        """
        try:
            return Sampling(
                own.cfg if self.cfg is None else self.cfg,
                own.top_k if self.top_k is None else self.top_k,
                own.top_p if self.top_p is None else self.top_p,
            )
        except ValueError as error:
            raise UsageError(f"--{str(error).replace('_', '-')}.") from None  # its first word is the option's


@dataclass(frozen=True)
class Engine:
    """What runs the model, and how much at a time."""

    backend: Annotated[
        Literal["onnxruntime", "tensorrt", "torch"],
        engine_option(
            metavar="BACKEND",
            help="onnxruntime draws with the graphs, tensorrt with engines built from them, torch with the checkpoint.",
        ),
    ] = "onnxruntime"
    device: DeviceOption = None
    precision: PrecisionOption = None
    fp16: Fp16Option = False
    batch_size: Annotated[
        int, batch_size_option("Pictures that are drawn at a time; more take more memory, and no picture changes.")
    ] = 1
    threads: ThreadsOption = 0

    @property
    def place(self) -> str:
        """The device, chosen or not."""
        return self.device or ("cuda" if self.backend == "tensorrt" else "cpu")

    def open(self, named: NamedModel, accept: Callable[[ModelConfig], None]) -> PictureSource:
        """A source of the model's pictures.

        Args:
            named: the model.
            accept: sees its configuration before an export starts, and may refuse it by raising.

        Raises:
            UsageError: options exclude each other, or do not fit the model.
            ActVARError: the model cannot be used, or what it needs is not installed.
        """
        precision = self._checked(named)
        if named.bundle:
            return self._bundle(named.bundle, may_build=False)
        assert named.checkpoint
        if self.backend == "torch":
            return open_eager(named.checkpoint, self.threads)
        return self._cached(named.checkpoint, precision, accept)

    def _checked(self, named: NamedModel) -> Precision:
        precision = chosen_precision(self.precision, self.fp16)
        if self.backend == "torch" and named.bundle:
            raise UsageError(
                f"--backend torch draws with a checkpoint, and {named.name} is a bundle of graphs. Name one."
            )
        if self.backend == "torch" and self.device == "cuda":
            raise UsageError("--backend torch draws on the CPU, as the reference. Leave --device out.")
        refuse_elsewhere(precision, self.backend, self.device)
        found = read_manifest(named.bundle).precision if named.bundle else None
        if found and precision not in (None, found):
            raise UsageError(
                f"{named.name} is a bundle in {found}. Leave --precision {precision} out, or name another."
            )
        return precision or "fp32"

    def _bundle(self, folder: Path, may_build: bool) -> PictureSource:
        if self.backend == "tensorrt":
            return (_open_built if may_build else open_engines)(folder, self.batch_size)
        return open_graphs(folder, self.batch_size, self.threads, self.device or "cpu")

    def _cached(
        self, checkpoint: Checkpoint, precision: Precision, accept: Callable[[ModelConfig], None]
    ) -> PictureSource:
        """The graphs of a checkpoint, exported into the cache if they are not there, or not whole."""
        with progress_bar(f"Exporting {checkpoint.path.name}, once") as progress:
            folder = cached_bundle(checkpoint, precision, accept, progress)
            try:
                return self._bundle(folder, may_build=True)
            except BundleError as error:
                say(f"{error} It is only a copy: making it anew.")
                discard(folder)
                return self._bundle(cached_bundle(checkpoint, precision, accept, progress), may_build=True)


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
