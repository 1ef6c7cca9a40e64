"""`actvar-trt train stage1` and `stage2`: ActVAR from a VAR checkpoint, as the paper trains it.

The same command is started once, or as several processes by torchrun or accelerate; PyTorch is imported inside.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from actvar.config import Activation, ModelConfig
from actvar.errors import CheckpointError, DataError, UsageError
from actvar.runtime.commands.model_choice import (
    ActiveScalesOption,
    ExpertRatesOption,
    ExpertsOption,
    TokenRatesOption,
    activated,
    chosen_activation,
)
from actvar.runtime.commands.train_run import (
    CHECKPOINT,
    AccumulateOption,
    AverageOption,
    BatchOption,
    BoardOption,
    DeviceOption,
    OutOption,
    ParallelOption,
    PrecisionOption,
    RateOption,
    RunChoice,
    SaveOption,
    SeedOption,
    StepsOption,
    TokensOption,
    WarmupOption,
)
from actvar.runtime.extras import needs

if TYPE_CHECKING:
    from actvar.models.actvar import ActVAR
    from actvar.models.var import VAR
    from actvar.training.team import Team

STAGE1_EXAMPLES = """Examples:

actvar-trt train stage1 --teacher var_d16.pth --vqvae vae_ch160v4096z32.pth --tokens tokens/train --out runs/d16/stage1

actvar-trt train stage1 --teacher var_d16.pth --vqvae vae_ch160v4096z32.pth --tokens tokens/train --out runs/half
--token-rates 0.5 --expert-rates 0.5,0.25

torchrun --nproc-per-node 8 --no-python actvar-trt train stage1 --device cuda --teacher ..."""
STAGE2_EXAMPLES = """Examples:

actvar-trt train stage2 --student runs/d16/stage1 --teacher var_d16.pth --vqvae vae_ch160v4096z32.pth --tokens
tokens/train --out runs/d16/stage2

torchrun --nproc-per-node 8 --no-python actvar-trt train stage2 --device cuda --parallel fsdp --student ..."""

TeacherOption: TypeAlias = Annotated[
    Path, typer.Option(show_default=False, help="The dense VAR: a .safetensors, or an official .pth file.")
]
VqvaeOption: TypeAlias = Annotated[Path | None, typer.Option(help="The VQVAE of a teacher's file that holds none.")]


def stage1(
    teacher: TeacherOption,
    tokens: TokensOption,
    out: OutOption,
    vqvae: VqvaeOption = None,
    token_rates: TokenRatesOption = None,
    expert_rates: ExpertRatesOption = None,
    active_scales: ActiveScalesOption = None,
    experts: ExpertsOption = None,
    token_choice: Annotated[
        Literal["dynamic", "fixed"], typer.Option(help="fixed: all blocks keep the first one's tokens (Table 4).")
    ] = "dynamic",
    expert_choice: Annotated[
        Literal["dynamic", "static"], typer.Option(help="static: the same experts for all tokens (Table 5).")
    ] = "dynamic",
    epochs: Annotated[float | None, typer.Option(show_default="2", help="Times the store's pictures.")] = None,
    steps: StepsOption = None,
    batch: BatchOption = 512,
    accumulate: AccumulateOption = 1,
    learning_rate: RateOption = 2e-4,
    warmup: WarmupOption = 100,
    average: AverageOption = 0.0,
    precision: PrecisionOption = "auto",
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    tensorboard: BoardOption = False,
    save_every: SaveOption = 200,
    parallel: ParallelOption = None,
) -> None:
    """Make an ActVAR of a VAR: train its routers and selectors, all else frozen. Stage 2 follows.

    The same command goes on where it was stopped. Defaults are the paper's.
    """
    choice = RunChoice(
        tokens, out, epochs, steps, batch, accumulate, learning_rate, warmup, average, precision, seed, device,
        tensorboard, save_every, parallel,
    )  # fmt: skip
    with needs("train", "to train"):
        from actvar.distill.stages import student_of, train_stage1
        from actvar.training.team import team_of
    choice.check()
    with team_of(parallel, device) as team:
        dense = _teacher(teacher, vqvae)
        scales = len(dense.config.schedule)
        last_two = f"{scales - 1},{scales}"
        chosen = chosen_activation(dense.config, active_scales or last_two, token_rates, expert_rates, experts)
        chosen = replace(chosen or Activation(), token_choice=token_choice, expert_choice=expert_choice)
        config = activated(dense.config, chosen)
        _require_a_choice(config)
        _train(choice, 2.0, train_stage1, dense, student_of(dense.var, config, seed), team)
        _tell(team, f"Wrote {out / CHECKPOINT}. Next: actvar-trt train stage2 --student {out}")


def stage2(
    student: Annotated[
        Path, typer.Option(show_default=False, help="Folder of stage 1, or an ActVAR's .safetensors with its VQVAE.")
    ],
    teacher: TeacherOption,
    tokens: TokensOption,
    out: OutOption,
    vqvae: VqvaeOption = None,
    epochs: Annotated[float | None, typer.Option(show_default="10", help="Times the store's pictures.")] = None,
    steps: StepsOption = None,
    batch: BatchOption = 512,
    accumulate: AccumulateOption = 1,
    learning_rate: RateOption = 2e-4,
    warmup: WarmupOption = 100,
    average: AverageOption = 0.0,
    precision: PrecisionOption = "auto",
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    tensorboard: BoardOption = False,
    save_every: SaveOption = 200,
    parallel: ParallelOption = None,
) -> None:
    """Fine-tune an ActVAR after stage 1: experts, attention and the rest; its choices and rates stay as they are.

    The same command goes on where it was stopped. Defaults are the paper's.
    """
    choice = RunChoice(
        tokens, out, epochs, steps, batch, accumulate, learning_rate, warmup, average, precision, seed, device,
        tensorboard, save_every, parallel,
    )  # fmt: skip
    with needs("train", "to train"):
        from actvar.distill.stages import train_stage2
        from actvar.training.team import team_of
    choice.check()
    with team_of(parallel, device) as team:
        dense = _teacher(teacher, vqvae)
        _train(choice, 10.0, train_stage2, dense, _student(student, dense, teacher), team)
        _tell(team, f"Wrote {out / CHECKPOINT}. Next: actvar-trt export --checkpoint {out / CHECKPOINT}")


def _teacher(path: Path, vqvae: Path | None) -> "ActVAR":
    """The dense model that a file holds.

    Raises:
        CheckpointError: it holds none.
    """
    from actvar.checkpoint import load_model

    teacher = load_model(path, vqvae)
    if teacher.config.activation:
        raise CheckpointError(f"--teacher {path} is an ActVAR. Name the dense VAR that it was made of.")
    return teacher


def _student(path: Path, teacher: "ActVAR", teacher_path: Path) -> "VAR":
    """The ActVAR of a file, or of stage 1's folder, that the teacher belongs to.

    Raises:
        CheckpointError: there is none, or it is another's.
    """
    from actvar.checkpoint import load_model

    file = path / CHECKPOINT if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise CheckpointError(f"{path} holds no {CHECKPOINT}: stage 1 has not ended there. Run it again, to its end.")
    student = load_model(file)
    if student.config.activation is None:
        raise CheckpointError(f"--student {file} is a dense VAR. Make an ActVAR of it first: actvar-trt train stage1.")
    ours, theirs = student.config.to_dict(), teacher.config.to_dict()
    differs = [name for name in ours if name != "activation" and ours[name] != theirs[name]]
    if differs:
        said = ", ".join(f"{name} {theirs[name]} -> {ours[name]}" for name in differs)
        raise CheckpointError(
            f"--student {file} was not made of --teacher {teacher_path} ({said}). Name the two that belong together."
        )
    return student.var


def _require_a_choice(config: ModelConfig) -> None:
    if not any(config.is_active(si) for si in range(len(config.schedule))):
        raise UsageError(
            "At these rates nothing is left out, so stage 1 has nothing to learn. Take a rate below 1 for some scale."
        )


def _train(
    choice: RunChoice,
    epochs: float,
    train: "Callable[..., VAR]",
    teacher: "ActVAR",
    student: "VAR",
    team: "Team",
) -> None:
    """Train, and write the checkpoint.

    Raises:
        DataError: the tokens are not the teacher's, or too few.
        CheckpointError: the folder is another run's, or cannot be written.
    """
    import torch

    from actvar.checkpoint import save_model
    from actvar.data.tokens import open_token_store
    from actvar.models.actvar import empty_model

    store = open_token_store(choice.tokens, teacher.vqvae)
    classes = int(store.class_ids.max()) + 1
    if classes > teacher.config.num_classes:
        raise DataError(
            f"{choice.tokens} holds pictures of {classes} classes, and the teacher knows {teacher.config.num_classes}. "
            "Name the tokens of its own data."
        )
    if len(store) < choice.batch:
        raise DataError(
            f"{choice.tokens} holds {len(store)} pictures, fewer than a batch of {choice.batch}. "
            "Encode more, or take a smaller --batch."
        )
    settings = choice.settings(epochs, len(store))
    trained = train(teacher.var, student, settings, store, teacher.vqvae.quantize, team)
    if team.is_main:
        model = empty_model(trained.config)
        model.var, model.vqvae = trained, teacher.vqvae
        save_model(model, choice.out / CHECKPOINT, torch.float32)  # stage 2 goes on with exactly these
    team.wait()


def _tell(team: "Team", text: str) -> None:
    if team.is_main:
        typer.echo(text)
