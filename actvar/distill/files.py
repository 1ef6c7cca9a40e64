"""What a distillation is given as files and leaves as one, each held to the others before anything is trained."""

from pathlib import Path

import torch

from actvar.checkpoint.model import load_model
from actvar.checkpoint.own import save_model
from actvar.data.tokens import TokenStore, open_token_store
from actvar.errors import CheckpointError, DataError, counted
from actvar.models.actvar import ActVAR, empty_model
from actvar.models.var import VAR
from actvar.scales import ScaleSchedule

CHECKPOINT = "actvar.safetensors"
"""In the folder of a stage that has ended."""


def load_teacher(path: Path, vqvae: Path | None, schedule: ScaleSchedule | None = None) -> ActVAR:
    """The dense model that a file holds.

    Raises:
        CheckpointError: it holds none.
    """
    teacher = load_model(path, vqvae, schedule=schedule)
    if teacher.config.activation:
        raise CheckpointError(f"--teacher {path} is an ActVAR. Name the dense VAR that it was made of.")
    return teacher


def load_student(path: Path, teacher: ActVAR, teacher_path: Path) -> VAR:
    """The ActVAR of a file, or of stage 1's folder, that the teacher belongs to.

    Raises:
        CheckpointError: there is none, or it is another's.
    """
    file = path / CHECKPOINT if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise CheckpointError(f"{path} holds no {CHECKPOINT}: stage 1 has not ended there. Run it again, to its end.")
    student = load_model(file)
    if student.config.activation is None:
        raise CheckpointError(
            f"--student {file} is a dense VAR. Make an ActVAR of it first: see actvar-trt train stage1 --help"
        )
    ours, theirs = student.config.to_dict(), teacher.config.to_dict()
    if not teacher.config.class_names:  # the student may have been given those of its training's pictures
        ours["class_names"] = theirs["class_names"]
    differs = [name for name in ours if name != "activation" and ours[name] != theirs[name]]
    if differs:
        said = ", ".join(f"{name} {theirs[name]} -> {ours[name]}" for name in differs)
        raise CheckpointError(
            f"--student {file} was not made of --teacher {teacher_path} ({said}). Name the two that belong together."
        )
    return student.var


def open_tokens(folder: Path, teacher: ActVAR, batch: int) -> TokenStore:
    """The tokens that the teacher is to be shown, at least a batch of them.

    Raises:
        DataError: they are not the teacher's, or too few.
    """
    store = open_token_store(folder, teacher.vqvae)
    expected, said = teacher.config.num_classes, store.num_classes
    found = said or int(store.class_ids.max()) + 1  # at least: there may be no pictures of the last classes
    if found > expected or (said and found < expected):
        raise DataError(
            f"{folder} holds pictures of {counted(found, 'class', 'classes')}, and the teacher knows {expected}. "
            "Name the tokens of its own data."
        )
    if len(store) < batch:
        raise DataError(
            f"{folder} holds {counted(len(store), 'picture')}, fewer than a batch of {batch}. Encode more, or take a "
            "smaller --batch-size."
        )
    return store


def write_checkpoint(folder: Path, student: VAR, teacher: ActVAR) -> None:
    """Write the student and the teacher's VQVAE, in fp32: stage 2 is to go on with exactly what stage 1 left.

    Raises:
        CheckpointError: it cannot be written.
    """
    model = empty_model(student.config)
    model.var, model.vqvae = student, teacher.vqvae
    save_model(model, folder / CHECKPOINT, torch.float32)
