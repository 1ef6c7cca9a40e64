"""A bundle's manifest whose hash fits what was changed: other fields, sizes, names and configurations."""

import json
import random
from pathlib import Path
from typing import Any

from actvar.benchmarks.fuzz.bundles import read, samples
from actvar.benchmarks.fuzz.changes import change_json, write_json_text
from actvar.benchmarks.fuzz.signatures import sign_bundle
from actvar.bundle.manifest import MANIFEST_FILE

__all__ = ["mutate", "read", "samples"]

_SIZES = (0, 1, 2, 3, 64, 1 << 10, 1 << 16, 1 << 24, (1 << 24) + 1, 1 << 40, -1, 0.5)
_TYPES = ("float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool", "complex64", "")


def mutate(path: Path, rng: random.Random) -> None:
    """Change any value, or one that decides how much memory and time drawing takes, and put the hash right."""
    manifest = path / MANIFEST_FILE
    if rng.random() < 0.5:
        change_json(manifest, rng)
    else:
        content = json.loads(manifest.read_bytes())
        rng.choice((_other_model, _other_tensors, _other_weights, _other_graphs))(content, rng)
        write_json_text(manifest, content)
    sign_bundle(path)


def _other_model(content: dict[str, Any], rng: random.Random) -> None:
    """Another number of the configuration, or a list that is longer."""
    inside = rng.choice([content["model"], *(part for part in content["model"].values() if isinstance(part, dict))])
    name = rng.choice(list(inside))
    value = inside[name]
    longer = [*range(1, rng.choice((3, 64, 65, 5000)))]
    inside[name] = rng.choice((longer, value[::-1], value * 2)) if isinstance(value, list) else rng.choice(_SIZES)


def _other_tensors(content: dict[str, Any], rng: random.Random) -> None:
    """An input or output of a graph that is missing, doubled, or of another name, type or shape."""
    graph = rng.choice(list(content["graphs"].values()))
    tensors = graph[rng.choice(("inputs", "outputs"))]
    tensor = rng.choice(tensors)
    kind = rng.randrange(5)
    if kind == 0:
        tensors.remove(tensor)
    elif kind == 1:
        tensors.append(dict(tensor, name=rng.choice((tensor["name"], "other", "past_kv", "cfg"))))
    elif kind == 2:
        tensor["name"] = rng.choice((f"{tensor['name']}_", rng.choice(tensors)["name"]))
    elif kind == 3:
        tensor["dtype"] = rng.choice(_TYPES)
    elif tensor["shape"]:
        tensor["shape"][rng.randrange(len(tensor["shape"]))] = rng.choice(("B", "R", *_SIZES))


def _other_weights(content: dict[str, Any], rng: random.Random) -> None:
    """A weight that lies elsewhere, or is of another type or shape."""
    stored = rng.choice((content["weights"]["tensors"], *(spec["weights"] for spec in content["scales"].values())))
    tensor = stored[rng.choice(list(stored))]
    kind = rng.randrange(4)
    if kind == 0:
        tensor["offset"] = rng.choice((0, 1, 4, 64, 1 << 20, content["weights"]["bytes"]))
    elif kind == 1:
        tensor["dtype"] = rng.choice(_TYPES)
    elif kind == 2:
        tensor["shape"] = rng.choice((tensor["shape"][::-1], [], [1], [1, *tensor["shape"]], [1 << 24] * 3))
    else:
        content["weights"]["bytes"] = rng.choice((0, 1, 1 << 30, 1 << 40, (1 << 40) + 1))


def _other_graphs(content: dict[str, Any], rng: random.Random) -> None:
    """Graphs in each other's place, another precision, or weights that are somebody else's."""
    graphs, scales = content["graphs"], content["scales"]
    kind = rng.randrange(5)
    if kind == 0:
        one, other = rng.choice(list(graphs)), rng.choice(list(graphs))
        for side in rng.choice((("inputs",), ("outputs",), ("weights",), ("inputs", "outputs", "weights"))):
            graphs[one][side] = graphs[other][side]
    elif kind == 1:
        content["precision"] = rng.choice(("fp32", "fp16", "bf16", "int8", "fp16-weights", "fp8"))
    elif kind == 2:
        scales.pop(rng.choice(list(scales)))
    elif kind == 3:
        name = rng.choice(list(scales))
        scales[rng.choice(("scales", "scales_masked", "scales_other"))] = scales.pop(name)
    else:
        content["weights"]["sha256"] = None
