"""Draws what is missing in a run on the machines of a Ray cluster, or in several processes of this one.

Numbers of pictures go in, each worker holds a bundle, and pictures come out; the files are written here, so the workers
need no folder that all see. A picture depends on its number alone: a worker that is lost costs time, and no byte.

Letters in shapes: N pictures, H W pixels down and across, 3 red green blue.
"""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actvar.config import Sampling
from actvar.console import say
from actvar.errors import ActVARError, EngineError, UsageError, counted, needs, shown
from actvar.evaluation.picture_run import NumberedRun, Piece, RunSpec, Shard
from actvar.runtime.backends.protocol import Device
from actvar.runtime.pictures import Order
from actvar.runtime.sources import Backend, open_bundle
from actvar.serve.carried_bundle import CarriedBundle, carried
from actvar.telemetry import OFF, switch_off

LOCAL = "local"
"""In place of a cluster's address: processes of this machine."""
_MOST_BLOCKS = 10_000


@dataclass(frozen=True)
class Workers:
    """What draws, and how many of it.

    Attributes:
        address: of a cluster, as `ray.init` takes it; or `LOCAL`.
        workers: how many; as many as there is room for, if left out.
        gpus: of each worker; a share of one lets several have it.
        backend, device, batch_size: see `open_bundle`.
        threads: of each worker; the cluster counts them as CPUs.
    """

    address: str
    workers: int | None
    gpus: float
    backend: Backend
    device: Device | None
    batch_size: int
    threads: int

    @property
    def cpus(self) -> int:
        """Of each worker."""
        return self.threads or 1


class PieceDrawer:
    """What one worker holds: a bundle that is open, and what all pictures of the run have in common."""

    def __init__(self, bundle: CarriedBundle, workers: Workers, sampling: Sampling, spec: RunSpec) -> None:
        switch_off()
        self._source = open_bundle(bundle.here(), workers.backend, workers.device, workers.batch_size, workers.cpus)
        self._sampling, self._spec = sampling, spec

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Pieces, each by `first` and `count`, and the same with their pixels."""
        pixels = []
        for first, count in zip(batch["first"].tolist(), batch["count"].tolist(), strict=True):
            orders = (Order(self._spec.class_of(number), number) for number in Piece(first, count).numbers)
            pictures = self._source.draw(orders, self._sampling, self._spec.seed)
            pixels.append(b"".join(picture.pixels_HW3.tobytes() for picture in pictures))
        return {**batch, "pixels": np.array(pixels, object)}


def draw_missing_on_ray(
    run: NumberedRun,
    part: Shard,
    bundle: Path,
    workers: Workers,
    sampling: Sampling,
    advance: Callable[[int], None],
) -> None:
    """Draw the pictures of all files that are not there; each is written as soon as it has come.

    Args:
        run: where they go.
        part: of the run, that is to be drawn.
        bundle: what draws.
        workers: where, and with what.
        sampling: with these settings.
        advance: told how many more pictures are written.

    Raises:
        UsageError: there is no such cluster, or it has no room for one worker.
        ActVARError: Ray is not installed, a picture cannot be drawn, or a file not be written.
    """
    switch_off()
    with needs("ray", "to draw on Ray"):
        import ray
        import ray.data
    missing = {piece.first: piece for piece in run.missing(part)}
    with _connected(workers):
        number = _how_many(workers)
        say(f"{counted(number, 'worker')} of Ray: {workers.address}.")
        alive = _nodes_alive()
        spec, numbers = run.spec, [{"first": each.first, "count": each.count} for each in missing.values()]
        settings = (carried(bundle, workers.address != LOCAL), workers, sampling, spec)
        try:
            pieces = ray.data.from_items(numbers, override_num_blocks=min(len(numbers), _MOST_BLOCKS)).map_batches(
                PieceDrawer,
                batch_size=1,
                batch_format="numpy",
                compute=ray.data.ActorPoolStrategy(size=number),
                fn_constructor_args=settings,
                num_cpus=workers.cpus,
                num_gpus=workers.gpus or None,
            )
            for row in pieces.iter_rows():
                piece = missing[int(row["first"])]
                pictures_NHW3 = np.frombuffer(row["pixels"], np.uint8).reshape(piece.count, *run.shape[1:])
                run.save(piece, pictures_NHW3)
                advance(piece.count)
        except ray.exceptions.RayError as error:
            raise EngineError(f"Ray could not draw ({_reason(error)}). Give the same command again.") from None
        finally:
            lost = alive - _nodes_alive()
            if lost > 0:
                say(f"{counted(lost, 'machine')} of {alive} left meanwhile; others drew what was theirs again.")


@contextmanager
def _connected(workers: Workers) -> Iterator[None]:
    """Ray, from here; whoever was told of SIGTERM before is told of it again.

    Raises:
        UsageError: nothing answers there.
    """
    import ray
    import ray.data

    handler = signal.getsignal(signal.SIGTERM)
    local = workers.address == LOCAL
    room: dict[str, Any] = {"num_cpus": (os.cpu_count() or 1) + 1, "include_dashboard": False} if local else {}
    try:
        ray.init(
            address=workers.address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {name: os.environ[name] for name in OFF}},
            **room,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"--ray {workers.address}: Ray does not answer ({shown(str(error), 200)}).") from None
    try:
        signal.signal(signal.SIGTERM, handler)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, handler)


def _how_many(workers: Workers) -> int:
    """Of them; one CPU is left to Ray itself, which does not get on without.

    Raises:
        UsageError: there is no room for one.
    """
    import ray

    there = ray.cluster_resources()
    room = int((there.get("CPU", 0) - 1) // workers.cpus)
    if workers.gpus:
        room = min(room, int(there.get("GPU", 0) / workers.gpus))
    if room < 1:
        wanted = f"{counted(workers.cpus + 1, 'CPU')} and of GPUs {workers.gpus:g}"
        raise UsageError(f"--ray {workers.address}: a worker needs {wanted} of Ray's. Add machines, or ask for less.")
    return min(room, workers.workers or room)


def _nodes_alive() -> int:
    import ray

    return sum(bool(node["Alive"]) for node in ray.nodes())


def _reason(error: BaseException) -> str:
    """What a worker said, in one line, without where it was."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException) and cause is not error:
        return _reason(cause)
    if isinstance(error, ActVARError):
        return shown(str(error).rstrip("."), 300)
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return shown(lines[-1].strip().rstrip("."), 300)
