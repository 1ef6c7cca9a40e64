"""The options of a training on stored tokens, those that both stages share, and the settings that they come to."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from actvar.cli.options import (
    TorchDeviceOption,
    batch_size_option,
    engine_option,
    out_option,
    output_option,
    precision_option,
    seed_option,
    training_option,
)
from actvar.errors import UsageError

if TYPE_CHECKING:
    from actvar.distill.stages import StageSettings


LearningRateOption: TypeAlias = Annotated[
    float, training_option("--lr", min=0, help="Learning rate at its peak; then half a cosine down to 2 % of it.")
]
_OF_BOTH_STAGES = ("batch_size", "accumulate", "precision", "device", "parallel", "seed")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What every training on stored tokens is asked for."""

    epochs: Annotated[
        float | None,
        training_option(show_default="the paper's: 2 of stage 1, 10 of stage 2", help="Times all stored pictures."),
    ] = None
    steps: Annotated[
        int | None, training_option(min=1, show_default="as --epochs says", help="Updates, in place of --epochs.")
    ] = None
    batch_size: Annotated[int, batch_size_option("Pictures an update, over all processes.", "Training")] = 512
    accumulate: Annotated[
        int, training_option(min=1, help="Take a process's share of a batch in so many parts, where memory is short.")
    ] = 1
    average: Annotated[
        float,
        training_option(min=0, max=0.99999, help="End with the weights' moving average of this decay; 0 for none."),
    ] = 0.0
    seed: Annotated[int, seed_option("Decides routers, data order and noise.", "Training", max=2**31 - 1)] = 0
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        precision_option("auto takes bfloat16, under autocast, where the device has it."),
    ] = "auto"
    device: TorchDeviceOption = "cpu"
    parallel: Annotated[
        Literal["ddp", "fsdp"] | None,
        engine_option(
            show_default="ddp for several processes", help="Whole models in each process, or weights sharded over them."
        ),
    ] = None
    tensorboard: Annotated[bool, output_option(help="Write the curves for TensorBoard, too.")] = False
    save_every: Annotated[int, output_option(min=1, help="Updates between states, which a kill may cost.")] = 200

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

    def steps_of(self, epochs: float, pictures: int) -> int:
        """Updates for a store of so many pictures; `epochs` are those of nobody's choice."""
        wanted = epochs if self.epochs is None else self.epochs
        return self.steps or max(1, round(wanted * pictures / self.batch_size))


@dataclass(frozen=True, kw_only=True)
class TrainingRun(Run):
    """A stage's run, as it was asked for."""

    tokens_dir: Annotated[
        Path, training_option(metavar="FOLDER", show_default=False, help="What `encode` made of the training pictures.")
    ]
    out: Annotated[
        Path, out_option("Folder of the run: its state, its curves, actvar.safetensors.", show_default=False)
    ]
    learning_rate: LearningRateOption = 2e-4
    warmup: Annotated[int, training_option(min=0, help="Updates until the peak.")] = 100

    def of_next_stage(self) -> list[str]:
        """The options of a run of the next stage like this one, in a folder beside it; its length is its own."""
        name = self.out.name.replace("stage1", "stage2")
        folder = self.out.with_name(name if name != self.out.name else f"{name}-stage2")
        words = ["--tokens-dir", str(self.tokens_dir), "--out", str(folder)]
        for field in fields(self):
            if field.name in _OF_BOTH_STAGES and (value := getattr(self, field.name)) != field.default:
                words += [f"--{field.name.replace('_', '-')}", str(value)]
        return words

    def settings(self, epochs: float, pictures: int) -> "StageSettings":
        """The run's settings, for a store of so many pictures; `epochs` are the paper's."""
        from actvar.distill.stages import StageSettings

        return StageSettings(
            folder=self.out,
            steps=self.steps_of(epochs, pictures),
            batch=self.batch_size,
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
