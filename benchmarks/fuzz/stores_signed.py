"""Token stores whose hashes fit what was changed."""

import hashlib
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from actvar.benchmarks.fuzz.changes import change_file, change_json
from actvar.benchmarks.fuzz.signatures import is_small_file, json_object
from actvar.benchmarks.fuzz.stores import read, samples
from actvar.bundle.json_form import HASH_FIELD, content_hash
from actvar.data.store_plan import LABEL

__all__ = ["mutate", "read", "samples"]

_PLAN = ("format", "version", "vqvae", "patch_nums", "data", "flips", "precision", "pictures", "chunk")


def mutate(path: Path, rng: random.Random) -> None:
    """Change one file of a store, and put all hashes right."""
    file = rng.choice(sorted(file for file in path.iterdir() if file.suffix in (".json", ".npy")))
    if file.suffix == ".json":
        change_json(file, rng)
    elif rng.random() < 0.6:
        file.write_bytes(_other_array(file, rng))
    else:
        change_file(file, rng)
    _sign(path)


def _other_array(file: Path, rng: random.Random) -> bytes:
    """Tokens out of range, of other shapes or types, or a header that claims more than there is."""
    rows = np.load(file)
    kind = rng.randrange(8)
    if kind < 3:
        rows[rng.randrange(rows.shape[0]), rng.randrange(rows.shape[1])] = rng.choice((47, 48, 4096, 65_535))
    elif kind == 3:
        rows = rows[:, : rng.randrange(rows.shape[1])]
    elif kind == 4:
        rows = rows[: rng.randrange(rows.shape[0])]
    elif kind == 5:
        rows = rows.astype(rng.choice(("<u1", ">u2", "<i8", "<f4", "<c8", "<U4", "<M8[s]", "V2")))
    elif kind == 6:
        rows = rng.choice((rows.T, rows[0], rows[None], rows[0, 0], np.asfortranarray(rows)))
    content = io.BytesIO()
    np.save(content, rows, allow_pickle=False)
    data = content.getvalue()
    if kind == 7:
        claimed = rng.choice(("(1000000000000, 39)", "(-1, 39)", "(4, " * 30, "(10**20,)", "(4L, 39)", "(4, 39, 0)"))
        shape = f"({rows.shape[0]}, {rows.shape[1]})"
        data = data.replace(shape.encode(), claimed.encode())
    return data


def _sign(folder: Path) -> None:
    label = json_object(folder / LABEL)
    if label is None:
        return
    if HASH_FIELD in label:
        _rewrite(folder / LABEL, {**label, HASH_FIELD: content_hash(_unsigned(label))})
    plan = {name: label[name] for name in _PLAN if name in label} | {"version": 1}
    plan_text = json.dumps(plan, indent=1, sort_keys=True) + "\n"
    for path in folder.glob("tokens_*.json"):
        record = json_object(path)
        tokens = path.with_suffix(".npy")
        if record is None or not is_small_file(tokens):
            continue
        digest = hashlib.sha256(tokens.read_bytes())
        digest.update(json.dumps(_unsigned(record), sort_keys=True).encode())
        digest.update(plan_text.encode())
        _rewrite(path, {**record, HASH_FIELD: digest.hexdigest()})


def _unsigned(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != HASH_FIELD}


def _rewrite(path: Path, value: dict[str, Any]) -> None:
    if not path.is_symlink():
        path.write_bytes(json.dumps(value).encode())
