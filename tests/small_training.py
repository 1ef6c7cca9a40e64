"""A teacher, its tokens and settings so small that a stage takes a second; in memory, and as files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_models import small_config, vivid_model

from actvar.checkpoint.own import save_model
from actvar.config import Activation, ModelConfig
from actvar.data.store_plan import StorePlan, claim_folder
from actvar.data.token_files import ChunkRecord, write_chunk
from actvar.data.tokens import TokenStore, vqvae_hash
from actvar.distill.stages import StageSettings, student_of, train_stage1, train_stage2
from actvar.models.actvar import ActVAR
from actvar.models.var import VAR

TEACHER = small_config((1, 2, 3), depth=1)
ACTIVE = Activation(experts=4, scales=(2, 3), token_rates=(0.75, 0.5), expert_rates=(0.5, 0.75))
PICTURES = 24
TRAININGS = (train_stage1, train_stage2)


def random_rows(pictures: int = PICTURES, seed: int = 0, model: ModelConfig = TEACHER) -> np.ndarray:
    """Tokens of no picture, uint16."""
    codes, total = model.vqvae.vocab_size, model.schedule.total
    return np.random.default_rng(seed).integers(0, codes, (pictures, total)).astype(np.uint16)


def random_store(seed: int = 0) -> TokenStore:
    """The same tokens, in memory."""
    return TokenStore(random_rows(seed=seed), np.arange(PICTURES) % TEACHER.num_classes)


def fresh_student(teacher: ActVAR, **changes: Any) -> VAR:
    """An ActVAR of the teacher, before stage 1."""
    return student_of(teacher.var, replace(teacher.config, activation=replace(ACTIVE, **changes)))


def stage_settings(folder: Path, **changes: Any) -> StageSettings:
    """Six steps of six pictures, logged one by one, saved at every second."""
    common = dict(steps=6, batch=6, learning_rate=1e-2, warmup=2, log_every=1, save_every=2, precision="fp32")
    return StageSettings(folder=folder, **{**common, **changes})


def write_tokens(
    folder: Path, teacher: ActVAR, pictures: int = PICTURES, class_names: tuple[str, ...] = (), **data: object
) -> Path:
    """A token store as `actvar-trt encode` leaves it, of random tokens."""
    vqvae, patch_nums = vqvae_hash(teacher.vqvae), teacher.config.schedule.patch_nums
    plan = StorePlan(vqvae, patch_nums, data, False, "fp32", pictures, pictures, class_names)
    claim_folder(folder, plan)
    classes = [number % teacher.config.num_classes for number in range(pictures)]
    write_chunk(folder, plan, plan.chunks[0], random_rows(pictures, model=teacher.config), ChunkRecord(classes, []))
    return folder


def write_teacher(path: Path, seed: int = 0) -> ActVAR:
    """A dense model, and its checkpoint."""
    teacher = vivid_model(TEACHER, seed)
    save_model(teacher, path, torch.float32)
    return teacher


def logged(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def require_equal(actual: torch.nn.Module, expected: torch.nn.Module) -> None:
    """Bit by bit."""
    for name, value in expected.state_dict().items():
        assert torch.equal(actual.state_dict()[name], value), name
