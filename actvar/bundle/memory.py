"""What a bundle takes of a GPU's memory: its weights once, and for every batch that is under way its tensors.

Knows the tensors of the graphs; not what an engine takes to work in, which its plan decides.
"""

import math
from dataclasses import dataclass

from actvar.bundle.contract import ITEM_BYTES, TensorSpec, graph_names
from actvar.bundle.manifest import Manifest
from actvar.config import HEAD_WIDTH
from actvar.errors import EngineError, counted

_OF_A_SCALE = ("uniform", "noise", "given")
"""Inputs that the host gives each scale for itself."""


@dataclass(frozen=True)
class BatchMemory:
    """Bytes of one batch: all of its tensors, and of these its keys and values."""

    tensors: int
    keys_and_values: int


def batch_memory(manifest: Manifest, pictures: int) -> BatchMemory:
    """What so many pictures at once take: every tensor has a place, and all scales' new keys and values share one."""
    model, given, made, new_kv = manifest.model, dict[str, int](), 0, [0]
    cache = model.depth * 2 * model.row_groups(0) * pictures * model.heads * model.cached_tokens[-1] * HEAD_WIDTH
    item = 0
    for name in graph_names(model):
        graph = manifest.graphs[name]
        for tensor in graph.outputs:
            size = _bytes(tensor, pictures)
            if tensor.name == "new_kv":
                new_kv.append(size)
                item = ITEM_BYTES[tensor.dtype]
            else:
                made += size
        for tensor in graph.inputs:
            own = f"{name}/{tensor.name}" if tensor.name in _OF_A_SCALE else tensor.name
            given[own] = _bytes(tensor, pictures)
    made_by = (manifest.graphs[name] for name in graph_names(model))
    passed = {tensor.name for graph in made_by for tensor in graph.outputs} | {"past_kv", "tokens_in"}
    read = sum(size for name, size in given.items() if name not in passed)
    keys_and_values = cache * item + max(new_kv)
    return BatchMemory(made + read + keys_and_values, keys_and_values)


def lanes_that_fit(manifest: Manifest, pictures: int, memory: int, lanes: int) -> int:
    """How many batches may be under way on a GPU with so many bytes, of those that are wanted; one is the least.

    Raises:
        EngineError: not even one fits beside the weights.
    """
    weights, batch = manifest.weights.bytes, batch_memory(manifest, pictures)
    fitting = (memory - weights) // max(batch.tensors, 1)
    if fitting < 1:
        raise EngineError(
            f"Weights of {gigabytes(weights)} and {counted(pictures, 'picture')} at once, {gigabytes(batch.tensors)} "
            f"({gigabytes(batch.keys_and_values)} of it keys and values), do not fit a GPU of {gigabytes(memory)}. "
            "Draw fewer at a time."
        )
    return min(lanes, fitting)


def gigabytes(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.1f} GB"


def _bytes(tensor: TensorSpec, pictures: int) -> int:
    return math.prod(tensor.sized(pictures)) * ITEM_BYTES[tensor.dtype]
