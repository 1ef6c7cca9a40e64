"""The options of a training on stored tokens, and the settings that they come to."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from actvar.errors import UsageError

if TYPE_CHECKING:
    from actvar.distill.stages import StageSettings

TokensOption: TypeAlias = Annotated[
    Path, typer.Option(show_default=False, help="What `actvar-trt encode` made of the training pictures.")
]
OutOption: TypeAlias = Annotated[
    Path, typer.Option(show_default=False, help="Folder of the run: its state, its curves, actvar.safetensors.")
]
StepsOption: TypeAlias = Annotated[int | None, typer.Option(min=1, help="Updates, in place of --epochs.")]
BatchOption: TypeAlias = Annotated[int, typer.Option(min=1, help="Pictures an update, over all processes.")]
AccumulateOption: TypeAlias = Annotated[
    int, typer.Option(min=1, help="Take a process's share of a batch in so many parts, where memory is short.")
]
RateOption: TypeAlias = Annotated[
    float, typer.Option("--learning-rate", "--lr", min=0, help="At its peak; then half a cosine down to 2 % of it.")
]
WarmupOption: TypeAlias = Annotated[int, typer.Option(min=0, help="Updates until the peak.")]
AverageOption: TypeAlias = Annotated[
    float, typer.Option(min=0, max=0.99999, help="End with the weights' moving average of this decay; 0 for none.")
]
PrecisionOption: TypeAlias = Annotated[
    Literal["auto", "fp32", "bf16"], typer.Option(help="auto: bfloat16 under autocast where the device has it.")
]
SeedOption: TypeAlias = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Decides routers, data order, noise.")]
DeviceOption: TypeAlias = Annotated[str, typer.Option(help="cpu, cuda, or one of several, such as cuda:1.")]
BoardOption: TypeAlias = Annotated[bool, typer.Option("--tensorboard", help="Write the curves for TensorBoard, too.")]
SaveOption: TypeAlias = Annotated[int, typer.Option(min=1, help="Updates between states, which a kill may cost.")]
ParallelOption: TypeAlias = Annotated[
    Literal["ddp", "fsdp"] | None,
    typer.Option(show_default="ddp for several processes", help="Whole models, or weights sharded over processes."),
]


@dataclass(frozen=True)
class RunChoice:
    """What both stages ask about the run."""

    tokens: Path
    out: Path
    epochs: float | None
    steps: int | None
    batch: int
    accumulate: int
    learning_rate: float
    warmup: int
    average: float
    precision: Literal["auto", "fp32", "bf16"]
    seed: int
    device: str
    tensorboard: bool
    save_every: int
    parallel: Literal["ddp", "fsdp"] | None

    def check(self) -> None:
        """Refuse what can be refused before anything is read.

        Raises:
            UsageError, ActVARError: an option is wrong, or what it asks for is not here.
        """
        from actvar.data.encoding import require_device
        from actvar.training.curves import require_tensorboard

        if self.epochs is not None and self.steps is not None:
            raise UsageError("--epochs and --steps exclude each other. Give one of them.")
        if self.epochs is not None and not self.epochs > 0:
            raise UsageError(f"--epochs must be above 0, got {self.epochs}.")
        require_device(self.device)
        if self.tensorboard:
            require_tensorboard()

    def settings(self, epochs: float, pictures: int) -> "StageSettings":
        """The run's settings, for a store of so many pictures; `epochs` are the paper's."""
        from actvar.distill.stages import StageSettings

        wanted = epochs if self.epochs is None else self.epochs
        return StageSettings(
            folder=self.out,
            steps=self.steps or max(1, round(wanted * pictures / self.batch)),
            batch=self.batch,
            learning_rate=self.learning_rate,
            seed=self.seed,
            device=self.device,
            precision=self.precision,
            warmup=self.warmup,
            save_every=self.save_every,
            tensorboard=self.tensorboard,
            accumulate=self.accumulate,
            average=self.average,
        )
