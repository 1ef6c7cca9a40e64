"""The team that a launcher started: torchrun or accelerate says it in the environment."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from actvar.errors import UsageError, needs
from actvar.training.team import ALONE, Parallel, Team

_OF_A_LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def _started_together() -> int:
    """How many processes the launcher says that it started; 1 where there is none.

    Raises:
        UsageError: what it left in the environment is not whole.
    """
    said = os.environ.get("WORLD_SIZE", "1")
    if said == "1":
        return 1
    missing = [name for name in _OF_A_LAUNCHER if not os.environ.get(name)]
    if missing or not said.isdigit() or int(said) < 1:
        what = f"{missing[0]} is missing" if missing else "that is no number of processes"
        raise UsageError(
            f"WORLD_SIZE is {said!r}, as a launcher sets it, and {what}. Unset WORLD_SIZE, or start with torchrun."
        )
    return int(said)


@contextmanager
def team_of(parallel: Parallel | None, device: str) -> Iterator[Team]:
    """The processes that torchrun or accelerate has started, or this one.

    Args:
        parallel: "ddp" keeps the whole model in every process, "fsdp" shards it; None is "ddp" where there are several.
        device: cpu or cuda.

    Raises:
        UsageError: `parallel` is given to a process that is alone, or a device with a number to several.
        ActVARError: there are several processes, and accelerate is not installed.
    """
    if _started_together() == 1:
        if parallel:
            raise UsageError(
                f"--parallel {parallel} is for several processes, and this one is alone. Start the command by "
                "`torchrun --nproc-per-node N --no-python actvar-trt …`, or leave --parallel out."
            )
        yield ALONE
        return
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device {device} is for one process; of several, each takes its own. Say --device cuda.")
    with needs("train", "to train in several processes"):
        from actvar.training.processes import Processes
    team = Processes(parallel or "ddp", device)
    yield team
    team.leave()  # not after an error: the others may be waiting for this process, and its launcher ends them
