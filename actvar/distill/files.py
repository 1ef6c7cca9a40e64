"""What a distillation is given as files and leaves as one, each held to the others before anything is trained."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch

from actvar.checkpoint.files import Checkpoint
from actvar.checkpoint.model import load_checkpoint, load_model
from actvar.checkpoint.own import save_model
from actvar.config import SmallDecoderConfig
from actvar.data.tokens import TokenStore, open_token_store
from actvar.errors import CheckpointError, DataError, counted
from actvar.models.actvar import ActVAR, empty_model
from actvar.models.small_decoder import SmallDecoder
from actvar.models.var import VAR
from actvar.scales import ScaleSchedule

CHECKPOINT = "actvar.safetensors"
"""In the folder of a stage that has ended."""


def load_teacher(path: Path, vqvae: Path | None, schedule: ScaleSchedule | None = None, znorm: bool = False) -> ActVAR:
    """The dense model that a file holds.

    Raises:
        CheckpointError: it holds none.
    """
    teacher = load_checkpoint(Checkpoint(path, vqvae, schedule, znorm=znorm))
    if teacher.config.activation:
        raise CheckpointError(f"--teacher {path} is an ActVAR. Name the dense VAR that it was made of.")
    return teacher


def load_student(path: Path | None, teacher: ActVAR, teacher_path: Path, frees: bool = False) -> VAR:
    """The student of a file, or of stage 1's folder, that the teacher belongs to.

    Args:
        path: None is a copy of the teacher.
        teacher: dense.
        teacher_path: for messages.
        frees: whether the student is to be freed of guidance. Then it may be dense, and may be free already; otherwise
            it is an ActVAR that is guided as its teacher is.

    Raises:
        CheckpointError: there is none, or it is another's.
    """
    if path is None:
        return copy.deepcopy(teacher.var)
    file = path / CHECKPOINT if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise CheckpointError(f"{path} holds no {CHECKPOINT}: stage 1 has not ended there. Run it again, to its end.")
    student = load_model(file)
    if student.config.activation is None and not frees:
        raise CheckpointError(
            f"--student {file} is a dense VAR. Make an ActVAR of it first: see actvar-trt train stage1 --help"
        )
    config = student.config if not frees else replace(student.config, guided_scales=teacher.config.guided_scales)
    ours, theirs = config.to_dict(), teacher.config.to_dict()
    if not teacher.config.class_names:  # the student may have been given those of its training's pictures
        ours["class_names"] = theirs["class_names"]
    names = sorted({*ours, *theirs} - {"activation"})
    differs = [name for name in names if ours.get(name) != theirs.get(name)]
    if differs:
        said = ", ".join(f"{name} {theirs.get(name)} -> {ours.get(name)}" for name in differs)
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


def write_checkpoint(
    folder: Path, student: VAR, teacher: ActVAR, notes: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Write the student and the teacher's VQVAE, in fp32: stage 2 is to go on with exactly what stage 1 left.

    `notes` are those of `save_model`.

    Raises:
        CheckpointError: it cannot be written.
    """
    model = empty_model(student.config)
    model.var, model.vqvae = student, teacher.vqvae
    save_model(model, folder / CHECKPOINT, torch.float32, notes=notes)


def write_decoder(folder: Path, model: ActVAR, small: SmallDecoderConfig, decoder: SmallDecoder) -> None:
    """Write a model with a small decoder beside its own, in fp32.

    Raises:
        CheckpointError: it cannot be written.
    """
    both = empty_model(replace(model.config, small_decoder=small))
    both.var, both.vqvae, both.small_decoder = model.var, model.vqvae.cpu(), decoder
    save_model(both, folder / CHECKPOINT, torch.float32)
