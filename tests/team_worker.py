"""One of several processes of `test_many_processes.py`, started by a launcher: `team_worker.py FOLDER [ARGUMENT ...]`.

Trains both stages and a VAR by DDP and by FSDP, breaking stage 1 off and resuming it; then gives `actvar-trt` the
arguments.
"""

import sys
from dataclasses import fields, replace
from pathlib import Path

import torch
from small_models import vivid_model
from small_training import TEACHER, TRAININGS, fresh_student, random_store, stage_settings
from torch import Tensor

from actvar.cli.main import main
from actvar.data.tokens import TokenStore
from actvar.training.team import Team
from actvar.training.token_batches import TokenSettings
from actvar.training.var import VARSettings, train_var


class StoreThatBreaksOff(TokenStore):
    """Raises in the fifth step of two parts each: the state then holds four."""

    def batch(self, places: Tensor) -> tuple[Tensor, Tensor]:
        object.__setattr__(self, "calls", getattr(self, "calls", 0) + 1)
        if self.calls == 9:
            raise InterruptedError
        return super().batch(places)


def train_all(folder: Path, team: Team, accumulate: int) -> None:
    """Each stage from a fresh student, and a VAR of some depth; the main process saves what they leave."""
    teacher, store = vivid_model(TEACHER), random_store()
    for stage, train in enumerate(TRAININGS, start=1):
        settings = stage_settings(folder / f"stage{stage}", batch=8, accumulate=accumulate, average=0.5)
        stores = [store]
        if stage == 1 and team.size > 1:
            stores.insert(0, StoreThatBreaksOff(store.token_ids, store.class_ids))
        for given in stores:
            try:
                trained = train(teacher.var, fresh_student(teacher), settings, given, teacher.vqvae.quantize, team)
            except InterruptedError:
                team.wait()
        if team.is_main:
            torch.save(trained.state_dict(), folder / f"stage{stage}.pt")
    own = stage_settings(folder / "var", batch=8, accumulate=accumulate, average=0.5)
    shared = {field.name: getattr(own, field.name) for field in fields(TokenSettings)}
    settings = VARSettings(**shared, recipe="official", depth_drop=0.5)
    trained = train_var(replace(TEACHER, depth=3), settings, store, teacher.vqvae.quantize, team)
    if team.is_main:
        torch.save(trained.state_dict(), folder / "var.pt")


if __name__ == "__main__":
    from actvar.training.processes import Processes

    torch.set_num_threads(1)
    here = Path(sys.argv.pop(1))
    train_all(here / "ddp", Processes("ddp", "cpu"), accumulate=2)
    train_all(here / "fsdp", Processes("fsdp", "cpu"), accumulate=2)
    main()
