"""`actvar-trt train stage1` and `stage2`: ActVAR from a VAR checkpoint, as the paper trains it.

The same command is started once, or as several processes by torchrun or accelerate; PyTorch is imported inside.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from actvar.cli.model_choice import Rates, activated, chosen_schedule
from actvar.cli.options import ZnormOption, model_option, patch_nums_option, training_option, vqvae_option
from actvar.cli.training_run import TrainingRun
from actvar.config import STATIC, Activation, ModelConfig
from actvar.distill.label_choice import LEARNED, Labels
from actvar.errors import UsageError, needs
from actvar.provenance import pasteable

if TYPE_CHECKING:
    from actvar.models.actvar import ActVAR
    from actvar.models.var import VAR
    from actvar.training.team import Team

STAGE1_EXAMPLES = """Examples:

actvar-trt train stage1 --teacher var_d16.pth --vqvae vae_ch160v4096z32.pth --tokens-dir tokens/train --out
runs/d16/stage1

actvar-trt train stage1 --teacher var_d16.pth --vqvae vae_ch160v4096z32.pth --tokens-dir tokens/train --out
runs/static/stage1 --expert-choice static --expert-order data

actvar-trt train stage1 --teacher var_d16.pth --vqvae vae_ch160v4096z32.pth --tokens-dir tokens/train --out runs/half
--token-rates 0.5 --expert-rates 0.5,0.25 --label-form sharp --alpha 1

torchrun --nproc-per-node 8 --no-python actvar-trt train stage1 --device cuda --teacher var_d16.pth --vqvae
vae_ch160v4096z32.pth --tokens-dir tokens/train --out runs/d16/stage1"""
STAGE2_EXAMPLES = """Examples:

actvar-trt train stage2 --student runs/d16/stage1 --teacher var_d16.pth --vqvae vae_ch160v4096z32.pth --tokens-dir
tokens/train --out runs/d16/stage2

actvar-trt train stage2 --distil-guidance 1.5 --student runs/d16/stage2 --teacher var_d16.pth --vqvae
vae_ch160v4096z32.pth --tokens-dir tokens/train --out runs/d16/free

torchrun --nproc-per-node 8 --no-python actvar-trt train stage2 --device cuda --parallel fsdp --student runs/d16/stage1
--teacher var_d16.pth --vqvae vae_ch160v4096z32.pth --tokens-dir tokens/train --out runs/d16/stage2"""

TeacherOption: TypeAlias = Annotated[
    Path,
    model_option(
        "--teacher", metavar="FILE", show_default=False, help="The dense VAR: a .safetensors, or an official .pth file."
    ),
]
TeachersVqvaeOption: TypeAlias = Annotated[Path | None, vqvae_option("The VQVAE of a teacher's file that holds none.")]
TeachersPatchNumsOption: TypeAlias = Annotated[
    str | None, patch_nums_option("Sides of the teacher's token maps, where its file does not tell them.", "the file's")
]


def stage1(
    *,
    teacher: TeacherOption,
    vqvae: TeachersVqvaeOption = None,
    patch_nums: TeachersPatchNumsOption = None,
    znorm: ZnormOption = False,
    rates: Rates,
    expert_label: Annotated[
        Literal["alone", "together"],
        training_option(help="Experts ranked by each one's own output, or by what the sum of all loses without it."),
    ] = "alone",
    token_label: Annotated[
        Literal["block", "logits"],
        training_option(help="Tokens ranked by the change of the block's output, or of logits."),
    ] = "block",
    label_form: Annotated[
        Literal["softened", "sharp"],
        training_option(help="As the paper prints it, which is nearly even, or 95 % to the best."),
    ] = "softened",
    expert_order: Annotated[
        Literal["learned", "data", "index"],
        training_option(
            help="Of static experts: learned by this stage, or fixed before it, by what each adds to the FFN on data "
            "or by their numbers."
        ),
    ] = "learned",
    alpha: Annotated[float, training_option(min=0, help="Weight of the labels' loss (Eq. 19).")] = 0.05,
    beta: Annotated[float, training_option(min=0, help="Weight of the balancing loss (Eq. 19).")] = 0.01,
    run: TrainingRun,
) -> None:
    """Make an ActVAR of a VAR: train its routers and selectors, all else frozen. Stage 2 follows.

    The same command goes on where it was stopped. Defaults are the paper's. To deploy it, take --expert-choice static,
    which every engine runs as a smaller FFN.
    """
    with needs("train", "to train"):
        from actvar.distill.files import CHECKPOINT, load_teacher
        from actvar.distill.stages import student_of, train_stage1
        from actvar.training.launch import team_of
    run.check()
    schedule = chosen_schedule(patch_nums) if patch_nums else None
    with team_of(run.parallel, run.device) as team:
        dense = load_teacher(teacher, vqvae, schedule, znorm)
        scales = len(dense.config.schedule)
        chosen = rates.of(dense.config) or replace(Activation(), scales=(scales - 1, scales))
        config = activated(dense.config, chosen)
        _require_a_choice(config)
        if expert_order != LEARNED and chosen.expert_choice != STATIC:
            raise UsageError(f"--expert-order {expert_order} is for static experts. Give --expert-choice static, too.")
        labels = Labels(expert_label, token_label, label_form)
        weighed = {"alpha": alpha, "beta": beta, "labels": labels, "expert_order": expert_order}
        _train(run, 2.0, train_stage1, dense, student_of(dense.var, config, run.seed), team, weighed)
        of_teacher = ["--teacher", teacher]
        of_teacher += ["--vqvae", vqvae] if vqvae else []
        of_teacher += ["--patch-nums", schedule.text] if schedule else []
        following = pasteable("train", "stage2", "--student", run.out, *of_teacher, *run.of_next_stage())
        _tell(team, f"Wrote {run.out / CHECKPOINT}. Next: {following}")


def stage2(
    *,
    student: Annotated[
        Path | None,
        model_option(
            metavar="FOLDER|FILE",
            show_default="with --distil-guidance a copy of the teacher",
            help="Folder of stage 1, or an ActVAR's .safetensors with its VQVAE.",
        ),
    ] = None,
    teacher: TeacherOption,
    vqvae: TeachersVqvaeOption = None,
    patch_nums: TeachersPatchNumsOption = None,
    znorm: ZnormOption = False,
    distil_guidance: Annotated[
        float | None,
        training_option(
            show_default="off",
            help="Learn what the teacher predicts with guidance of this strength, and need none. The student may be "
            "dense, too.",
        ),
    ] = None,
    run: TrainingRun,
) -> None:
    """Fine-tune an ActVAR after stage 1: experts, attention and the rest; its choices and rates stay as they are.

    The same command goes on where it was stopped. Defaults are the paper's. To deploy it, go on with --distil-guidance,
    which halves the transformer's work.
    """
    with needs("train", "to train"):
        from actvar.distill.files import CHECKPOINT, load_student, load_teacher
        from actvar.distill.stages import train_guidance_free, train_stage2
        from actvar.training.launch import team_of
    _require_strength(distil_guidance, student)
    run.check()
    schedule = chosen_schedule(patch_nums) if patch_nums else None
    with team_of(run.parallel, run.device) as team:
        dense = load_teacher(teacher, vqvae, schedule, znorm)
        chosen = load_student(student, dense, teacher, frees=distil_guidance is not None)
        if distil_guidance is None:
            _train(run, 10.0, train_stage2, dense, chosen, team)
        else:
            if not dense.config.is_guided:
                raise UsageError(f"--teacher {teacher} needs no guidance, so there is none to distil. Name another.")
            train = partial(train_guidance_free, strength=distil_guidance)
            _train(run, 10.0, train, dense, chosen, team, notes={"guidance_distilled": str(distil_guidance)})
        _tell(team, f"Wrote {run.out / CHECKPOINT}. Next: {pasteable('export', '--model', run.out / CHECKPOINT)}")


def _require_strength(strength: float | None, student: Path | None) -> None:
    """Refuse what can be refused of --distil-guidance before anything is read."""
    if strength is None and student is None:
        raise UsageError("--student is missing: the folder of stage 1. Only --distil-guidance goes without.")
    if strength is not None and not (math.isfinite(strength) and strength > 0):
        raise UsageError(f"--distil-guidance must be above 0, as at 0 there is no guidance; got {strength}.")


def _require_a_choice(config: ModelConfig) -> None:
    if not any(config.is_active(si) for si in range(len(config.schedule))):
        raise UsageError(
            "At these rates nothing is left out, so stage 1 has nothing to learn. Take a rate below 1 for some scale."
        )


def _train(
    run: TrainingRun,
    epochs: float,
    train: "Callable[..., VAR]",
    teacher: "ActVAR",
    student: "VAR",
    team: "Team",
    weighed: Mapping[str, Any] = MappingProxyType({}),
    notes: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Train, and write the checkpoint with its notes.

    `epochs` are the paper's, `weighed` what only stage 1's settings have.
    """
    from actvar.distill.files import open_tokens, write_checkpoint

    store = open_tokens(run.tokens_dir, teacher, run.batch_size)
    settings = replace(run.settings(epochs, len(store)), **weighed)
    trained = train(teacher.var, student, settings, store, teacher.vqvae.quantize, team)
    if team.is_main:
        write_checkpoint(run.out, trained, teacher, notes)
    team.wait()


def _tell(team: "Team", text: str) -> None:
    if team.is_main:
        typer.echo(text)
