"""A training's folder: `state.pt`, which it goes on from, and `log.jsonl`."""

import io
import json
import random
import tempfile
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from actvar.benchmarks.fuzz.changes import change_file
from actvar.training.loop import RunSettings, run
from actvar.training.update import Update

STATE, LOG = "state.pt", "log.jsonl"
_STEPS = 6


class _Stopped(Exception):
    """Stands for what ends a process between two steps."""


def samples(folder: Path) -> list[Path]:
    """A run that was stopped after five of six steps; its state holds four."""
    path = folder / "run"
    try:
        train(path, stop_at=5)
    except _Stopped:
        return [path]
    raise AssertionError("the run was not stopped")


def train(folder: Path, stop_at: int = _STEPS) -> dict[str, Tensor]:
    """Train a small network, or go on; returns its weights in the end."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2)
    update = Update(model, parameters, {"optimizer": optimizer}, decay=0.9)

    def step(number: int, learning_rate: float) -> Mapping[str, Tensor]:
        if number == stop_at:
            raise _Stopped
        x_B4 = torch.rand(8, 4, generator=torch.Generator().manual_seed(number))
        return update.step(learning_rate, [lambda: {"loss": (model(x_B4) - x_B4).square().mean()}])

    settings = RunSettings(folder, _STEPS, 8, 1e-2, warmup=2, log_every=1, save_every=2)
    run("Sample", step, {"model": model, **update.states}, settings, {"data": "noise"})
    update.finish()
    return model.state_dict()


def mutate(path: Path, rng: random.Random) -> None:
    """Change the state or the log."""
    if rng.random() < 0.3:
        change_log(path / LOG, rng)
    else:
        change_state(path / STATE, rng)


def change_log(path: Path, rng: random.Random) -> None:
    """Change bytes or lines."""
    if rng.random() < 0.5:
        change_file(path, rng)
        return
    lines = path.read_bytes().splitlines(keepends=True)
    odd = (
        b"\n", b"[]\n", b"null\n", b"{}\n", b'{"step": 1e999}\n', b'{"step": "x"}\n', b"\xff\xfe\n",
        b"[" * 100_000 + b"\n", b'{"step": ' + b"9" * 5000 + b"}\n", b'{"step": null}\n', b'{"step": [1]}\n',
        b'{"step": -1}\n', b'{"step": NaN}\n', b'{"step": 1, "step": 2}\n', b"x" * 1_000_000 + b"\n",
        b'{"step": true, "loss": "\\ud800"}\n',
    )  # fmt: skip
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(odd))
    path.write_bytes(b"".join(lines))


def change_state(path: Path, rng: random.Random) -> None:
    """Change bytes, a record of the zip, or what is in it."""
    kind = rng.randrange(3)
    if kind == 0:
        change_file(path, rng)
    elif kind == 1:
        path.write_bytes(_other_record(path.read_bytes(), rng))
    else:
        state = torch.load(path, weights_only=True)
        content = io.BytesIO()
        torch.save(_other_value(state, rng), content)
        path.write_bytes(content.getvalue())


def _other_record(data: bytes, rng: random.Random) -> bytes:
    """The same zip, with right checksums, and one record changed."""
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as new:
        chosen = rng.choice(old.namelist())
        for name in old.namelist():
            record = bytearray(old.read(name))
            if name == chosen and record:
                for _ in range(rng.choice((1, 1, 3))):
                    record[rng.randrange(len(record))] ^= 1 << rng.randrange(8)
            if name != chosen or rng.random() < 0.95:
                new.writestr(zipfile.ZipInfo(name), bytes(record))
    return content.getvalue()


def _other_value(state: Any, rng: random.Random) -> Any:
    """One place of the state changed: a tensor's values, shape, type or layout, a number, a name."""
    places: list[tuple[Any, Any]] = []

    def collect(value: Any) -> None:
        for step in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, step))
            collect(value[step])

    collect(state)
    inside, step = rng.choice(places)
    value = inside[step]
    kind = rng.random()
    if kind < 0.1:
        del inside[step]
    elif kind < 0.2 and isinstance(inside, dict):
        inside[rng.choice(("x", 0, -1, 10**9, None))] = inside.pop(step)
    elif isinstance(value, Tensor) and kind < 0.9:
        inside[step] = _other_tensor(value, rng)
    else:
        odd: tuple[Any, ...] = (
            None, -1, 0, 3, 10**6, 10**30, 1.5, float("nan"), float("inf"), "x", "\ud800", "\x1b[2J", b"x", [], {}, (),
            True, torch.zeros(3), torch.tensor(2.0), torch.zeros(0), 1j, slice, [[]] * 50,
        )  # fmt: skip
        inside[step] = rng.choice(odd[:-3] + odd[-1:]) if isinstance(value, Tensor) else rng.choice(odd[:-2])
    return state


def _other_tensor(value: Tensor, rng: random.Random) -> Tensor:
    kind = rng.randrange(12)
    if kind < 3:
        return value + rng.choice((1.0, 1e-3, 1e30))
    if kind == 3:
        return torch.full_like(value, rng.choice((float("nan"), float("inf"))))
    if kind == 4:
        return value.flatten()[:-1]
    if kind == 5:
        return value.unsqueeze(0)
    if kind == 6:
        return value.to(rng.choice((torch.float64, torch.int64, torch.bool, torch.bfloat16, torch.complex64)))
    if kind == 7:
        return value.to_sparse() if value.dim() else value.bool()
    if kind == 8:
        return torch.quantize_per_tensor(value, 0.1, 0, torch.qint8) if value.is_floating_point() else value + 1
    if kind == 9:
        return value.to("meta")
    if kind == 10:
        return torch.zeros(1).expand(1 << rng.choice((10, 20, 33)))
    return nn.Parameter(value + 1)


def read(path: Path) -> None:
    """Go on to the end, which must be that of a run that nobody touched."""
    weights = resume(path)
    for name, value in unbroken().items():
        if not torch.equal(weights[name], value):
            raise AssertionError(f"changed state was trained on: {name}")


def resume(path: Path) -> dict[str, Tensor]:
    """Go on to the end; the curves must be whole lines then."""
    weights = train(path)
    for line in (path / LOG).read_bytes().splitlines():
        if not isinstance(json.loads(line)["step"], int):
            raise AssertionError("the log holds a line that is none")
    return weights


@cache
def unbroken() -> dict[str, Tensor]:
    """The weights of a run that was never stopped."""
    with tempfile.TemporaryDirectory() as folder:
        return train(Path(folder))
