"""Checkpoints as safetensors: one of ours, and a self-trained official one in two shards with an index."""

import json
import random
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from actvar.benchmarks.fuzz import checkpoints
from actvar.benchmarks.fuzz.changes import changed_bytes
from actvar.checkpoint.own import save_model
from actvar.config import Activation
from actvar.models.actvar import random_model

FOLLOWS_LINKS = True  # of the file itself, which may lie in a download's cache

_ACTIVATION = Activation(16, (2, 3), (0.5, 0.75), (0.5, 0.75))
_INDEX = "model.safetensors.index.json"


def samples(folder: Path) -> list[Path]:
    """A file, and a folder of shards."""
    save_model(random_model(replace(checkpoints.CONFIG, activation=_ACTIVATION)), folder / "own.safetensors")
    shards = folder / "shards"
    shards.mkdir()
    var, vqvae = checkpoints.official_states()
    flat = {f"trainer.var_wo_ddp.{name}": value for name, value in var.items()}
    flat |= {f"trainer.vae_local.{name}": value for name, value in vqvae.items()}
    _write_shards(shards, flat)
    return [folder / "own.safetensors", shards]


def _write_shards(folder: Path, state: dict[str, Tensor]) -> None:
    names = [f"model-{number}-of-2.safetensors" for number in (1, 2)]
    for i, name in enumerate(names):
        save_file({key: value.contiguous() for key, value in list(state.items())[i::2]}, folder / name)
    where = {key: names[i % 2] for i, key in enumerate(state)}
    (folder / _INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def mutate(path: Path, rng: random.Random) -> None:
    """Change the file; of shards, the index or one of them."""
    if path.is_dir():
        index = path / _INDEX
        chosen = rng.choice((index, index, *sorted(path.glob("*.safetensors"))))
        if chosen == index:
            _change_index(index, rng)
        else:
            _change_safetensors(chosen, rng)
    else:
        _change_safetensors(path, rng)


def read(path: Path) -> None:
    """As other checkpoints."""
    checkpoints.read(path / _INDEX if path.is_dir() else path)


def _change_safetensors(path: Path, rng: random.Random) -> None:
    """Change the header's JSON and put its length right, or change bytes."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    kind = rng.randrange(6)
    if kind == 0:
        path.write_bytes(changed_bytes(data, rng))
        return
    if kind == 1:
        header = changed_bytes(data[8 : 8 + length], rng)
    else:
        content = json.loads(data[8 : 8 + length])
        for _ in range(rng.choice((1, 1, 2))):
            _change_header(content, rng)
        header = json.dumps(content).encode()
    claimed = len(header) if rng.random() < 0.95 else rng.choice((0, 1, 1 << 20, 1 << 40, (1 << 64) - 1))
    path.write_bytes(struct.pack("<Q", claimed) + header + data[8 + length :])


def _change_header(content: dict[str, Any], rng: random.Random) -> None:
    names = [name for name in content if name != "__metadata__"]
    name = rng.choice(names or ["x"])
    entry = content.get(name)
    kind = rng.randrange(7)
    if kind == 0:
        content.pop(name, None)
    elif kind == 1:
        new = rng.choice(("", "x", "\x1b[2J", "\ud800", f"module.{name}", "var.blocks.9.x", "vqvae.x", "x" * 9999))
        content[new] = content.pop(name, None)
    elif kind == 2 and isinstance(entry, dict):
        types = ("F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F8_E8M0", "F4", "C64", "X", "", None, 3)
        entry["dtype"] = rng.choice(types)
    elif kind == 3 and isinstance(entry, dict):
        shape = entry.get("shape")
        turned = shape[::-1] if isinstance(shape, list) else []
        shapes: tuple[Any, ...] = ([], [0], [1 << 62], [1 << 32, 1 << 32], [-1], ["1"], None, [1.5], [1] * 1000, turned)
        entry["shape"] = rng.choice(shapes)
    elif kind == 4 and isinstance(entry, dict):
        another = content[names[0]].get("data_offsets") if isinstance(content[names[0]], dict) else []
        entry["data_offsets"] = rng.choice(([0, 0], [4, 0], [0, 1 << 62], [0], None, [-1, 3], another))
    elif kind == 5 and isinstance(content.get("__metadata__"), dict):
        _change_metadata(content["__metadata__"], rng)
    else:
        content[name] = rng.choice((None, {}, [], 3, "x"))


def _change_metadata(metadata: dict[str, Any], rng: random.Random) -> None:
    """Change one field, or one value of the configuration in it."""
    field = rng.choice([*metadata, "config", "config", "config"])
    nasty: tuple[Any, ...] = (
        None,
        0,
        -1,
        1,
        3,
        1 << 31,
        10**18,
        0.5,
        1e308,
        "",
        "\x1b[2J",
        "\ud800",
        [],
        {},
        [1],
        True,
    )
    if field != "config" or "config" not in metadata:
        metadata[field] = rng.choice((None, "", "2", "\x1b[2J", 3, {}))
        return
    if rng.random() < 0.2:
        metadata["config"] = rng.choice(("", "{", "[" * 100_000, "1" * 5000, "NaN", '{"depth": 1, "depth": 2}', "null"))
        return
    config = json.loads(metadata["config"])
    inside = rng.choice([config, *(value for value in config.values() if isinstance(value, dict) and value)])
    name = rng.choice(list(inside))
    if isinstance(inside[name], list) and rng.random() < 0.5:
        long, more = list(range(1, 10**5)), [*inside[name], rng.choice(nasty)]
        inside[name] = rng.choice((inside[name] * 2, inside[name][:-1], long, more))
    else:
        inside[name] = rng.choice(nasty)
    metadata["config"] = json.dumps(config)


def _change_index(path: Path, rng: random.Random) -> None:
    """Change what an index says, or what its files are."""
    content = json.loads(path.read_text())
    where = content["weight_map"]
    name, shard = rng.choice(list(where)), path.parent / rng.choice(list(where.values()))
    outside = path.parent.parent / "outside.safetensors"
    kind = rng.randrange(8)
    if kind == 0:
        path.write_bytes(changed_bytes(path.read_bytes(), rng))
        return
    if kind == 1:
        outside.write_bytes(shard.read_bytes())
        shard.unlink()
        shard.symlink_to(rng.choice((outside, Path("..") / outside.name, shard.name, Path("/dev/zero"))))
    elif kind == 2:
        outside.write_bytes(shard.read_bytes())
        nasty = ("../outside.safetensors", str(outside), "", ".", "..", "x" * 9999, "\0", "\ud800", "\x1b.safetensors")
        where[name] = rng.choice((*nasty, "x.bin", None, 3, []))
    elif kind == 3:
        where[rng.choice((f"{name}x", "", "\x1b[2J", "\ud800"))] = where.pop(name)
    elif kind == 4:
        content["weight_map"] = rng.choice(
            (None, {}, [], "x", where | {f"x{i}": f"{i}.safetensors" for i in range(2000)})
        )
    elif kind == 5:
        shard.unlink()
        rng.choice((lambda: None, shard.mkdir, shard.touch))()
    elif kind == 6:
        where.pop(name)
    else:
        path.write_text(rng.choice(("", "[" * 100_000, "{", "null", '{"weight_map": {"a": "b", "a": "c"}}')))
        return
    path.write_text(json.dumps(content))
