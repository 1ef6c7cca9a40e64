"""What fp32's products cost in tokens when a GPU multiplies them in less: the shipped models on a CPU, at equal inputs.

    python benchmarks/fp32_products.py --pictures 100 --json benchmarks/results/fp32-products.json

An fp16 or bf16 bundle keeps these in fp32: the head, selectors and routers, what leads tokens and classes in, phi and
the resizes of f_hat. Pictures are drawn by the eager model in fp32. Every scale is then computed once more from the
same inputs, as a GPU would: the numbers that go into a product are rounded, sums are fp32, and the type's own results
are rounded, too.

- `head in tf32`, `head in fp16`, `head in bf16`: the head alone.
- `all in tf32`: every one of these products, as TensorRT's flag has it, which knows no exceptions.

A token counts as changed if the same uniform number draws another code. The total variation between both distributions
is the least share that any way of drawing could change. TF32 is rounded by 13 bits, to the nearest.

Letters in shapes: B pictures, R = 2B rows of a guided scale, L tokens of a scale, C width, V codes, E code width.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from actvar.benchmarks.command import end_with
from actvar.checkpoint.files import shipped_checkpoint
from actvar.checkpoint.model import load_model
from actvar.generation import class_rows
from actvar.models.actvar import ActVAR
from actvar.models.kv_cache import KVCache
from actvar.models.var import Condition
from actvar.provenance import commit, typed
from actvar.reports import check_json_option, write_report
from actvar.runtime.machine import this_machine
from actvar.sampling import guide, sample
from actvar.uniforms import token_uniforms

MODELS = ("var-mini", "actvar-mini")
AT_ONCE = 20
SEED = 0

Rounding = Callable[[Tensor], Tensor]


def to_tf32(x: Tensor) -> Tensor:
    """Fp32 numbers with 10 bits behind the point, the nearest; ties to even."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def as_in(dtype: torch.dtype) -> Rounding:
    """Fp32 numbers as a type holds them."""
    return lambda x: x.to(dtype).float()


HEADS: dict[str, tuple[Rounding, Rounding]] = {
    "head in tf32": (to_tf32, lambda x: x),
    "head in fp16": (as_in(torch.float16), as_in(torch.float16)),
    "head in bf16": (as_in(torch.bfloat16), as_in(torch.bfloat16)),
}
"""How the numbers that go into the head's product are rounded, and those that come out."""

ALL = "all in tf32"


class _ProductsInTF32(TorchFunctionMode):
    """Rounds what goes into products and convolutions, but for those of `exact` weights; resizes are products, too."""

    def __init__(self, exact: frozenset[int]):
        super().__init__()
        self._exact = exact

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is F.interpolate:
            return self._resized(args[0], given["size"], given["mode"])
        if func in (F.linear, torch.conv2d) and args[1].data_ptr() not in self._exact:
            return func(to_tf32(args[0]), to_tf32(args[1]), *args[2:], **given)
        return func(*args, **given)

    @staticmethod
    def _resized(x_BEHH: Tensor, size: tuple[int, int], mode: str) -> Tensor:
        """U x U^T, as graphs have it."""
        before, after = x_BEHH.shape[-1], size[0]
        columns = torch.eye(before).reshape(1, before, before, 1)
        resize = to_tf32(F.interpolate(columns, size=(after, 1), mode=mode)[0, :, :, 0].T)
        return to_tf32(resize @ to_tf32(x_BEHH)) @ resize.T


@contextmanager
def products_in_tf32(model: ActVAR) -> Iterator[None]:
    """All products of fp32 in TF32, but for the blocks' own matrices, which such a bundle has in its half precision."""
    exact = [
        weight.data_ptr()
        for block in model.var.blocks
        for name, weight in block.named_parameters()
        if any(part in name for part in ("attn.mat_qkv", "attn.proj", "ffn.fc1", "ffn.fc2", "ada_lin"))
    ]
    with _ProductsInTF32(frozenset(exact)):
        yield


@dataclass
class Counts:
    """Of each scale: tokens that changed, of how many, the total variation, and f_hat's relative error."""

    changed: list[int] = field(default_factory=list)
    of: list[int] = field(default_factory=list)
    variation: list[float] = field(default_factory=list)
    f_hat: list[float] = field(default_factory=list)

    def add(self, si: int, batch: tuple[int, int, float, float], pictures: int) -> None:
        """What one of the batches, of `pictures` all have together, says of a scale."""
        changed, of, variation, f_hat = batch
        for values in (self.changed, self.of, self.variation, self.f_hat):
            if si == len(values):
                values.append(0)
        self.changed[si] += changed
        self.of[si] += of
        self.variation[si] += variation / pictures
        self.f_hat[si] = max(self.f_hat[si], f_hat)


@torch.no_grad()
def compared(name: str, pictures: int) -> dict[str, Counts]:
    """What each way changes in one shipped model."""
    checkpoint = shipped_checkpoint(name)
    model = load_model(checkpoint.path, checkpoint.vqvae)
    found = {kind: Counts() for kind in (*HEADS, ALL)}
    for first in range(0, pictures, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, pictures))
        for si, (kind, batch) in _of_batch(model, numbers):
            found[kind].add(si, batch, pictures)
    return found


def _of_batch(model: ActVAR, numbers: range) -> Iterator[tuple[int, tuple[str, tuple[int, int, float, float]]]]:
    """Scale by scale and way by way, what changes in a batch; each scale begins as fp32 has left the one before."""
    config, var, quantizer = model.config, model.var, model.vqvae.quantize
    schedule, top_k, top_p = config.schedule, config.sampling.top_k, config.sampling.top_p
    class_ids_R = class_rows(config, [number % config.num_classes for number in numbers])
    condition, cache = var.condition(class_ids_R), KVCache(config, len(class_ids_R), var.pos_start)
    with products_in_tf32(model):
        rounded_condition = var.condition(class_ids_R)
    f_hat_BEHH = torch.zeros(len(numbers), quantizer.width, schedule.side, schedule.side)
    for si, tokens in enumerate(schedule.tokens):
        uniform_BL = torch.from_numpy(np.stack([token_uniforms(SEED, number, si, tokens) for number in numbers]))
        with _recorded_input(var.head) as inputs_RLC:
            exact_BLV, new_kv = _guided_logits(model, condition, cache, f_hat_BEHH, si)
        head_input_BLC = _guided(model, inputs_RLC[0], len(numbers), si)
        exact_BL = sample(exact_BLV, uniform_BL, top_k, top_p)
        added_BEHH = quantizer.contribution(exact_BL, si)
        with products_in_tf32(model):
            rounded_BLV, _ = _guided_logits(model, rounded_condition, cache, f_hat_BEHH, si)
            error = float((quantizer.contribution(exact_BL, si) - added_BEHH).norm() / added_BEHH.norm())
        ways = {kind: (_product(var.head, head_input_BLC, *HEADS[kind]), 0.0) for kind in HEADS}
        for kind, (logits_BLV, f_hat_error) in {**ways, ALL: (rounded_BLV, error)}.items():
            changed = int((sample(logits_BLV, uniform_BL, top_k, top_p) != exact_BL).sum())
            apart = float((logits_BLV.softmax(-1) - exact_BLV.softmax(-1)).abs().sum(-1).mean(-1).sum() / 2)
            yield si, (kind, (changed, exact_BL.numel(), apart, f_hat_error))
        cache.append(new_kv)
        f_hat_BEHH = f_hat_BEHH + added_BEHH


def _guided_logits(
    model: ActVAR, condition: Condition, cache: KVCache, f_hat_BEHH: Tensor, si: int
) -> tuple[Tensor, Tensor]:
    """Of one scale the guided logits BLV, and the keys and values that it leaves."""
    groups, batch = model.config.row_groups(si), len(f_hat_BEHH)
    tokens_in_RLE = model.vqvae.quantize.tokens_in(f_hat_BEHH, si).repeat(groups, 1, 1) if si else None
    rows = groups * batch
    logits_RLV, new_kv = model.var.infer(tokens_in_RLE, condition.of_rows(rows), cache.past[:, :, :rows], si)
    return _guided(model, logits_RLV, batch, si), new_kv


def _guided(model: ActVAR, of_rows: Tensor, batch: int, si: int) -> Tensor:
    """Of rows, or what stands for them: R... -> B...; the head is linear, so its input may be guided, too."""
    strength = model.config.sampling.cfg * model.config.schedule.cfg_ramp(si)
    return guide(of_rows, strength) if len(of_rows) > batch else of_rows


@contextmanager
def _recorded_input(layer: nn.Module) -> Iterator[list[Tensor]]:
    """What a layer is given inside."""
    inputs: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    try:
        yield inputs
    finally:
        hook.remove()


def _product(head: nn.Linear, x_BLC: Tensor, put_in: Rounding, taken_out: Rounding) -> Tensor:
    return taken_out(put_in(x_BLC) @ put_in(head.weight).T + put_in(head.bias))


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    check_json_option(given.json)
    code = commit(besides=given.json)
    report: dict[str, Any] = {"command": typed(["python", *sys.argv]), **code, "machine": asdict(this_machine())}
    for name in MODELS:
        found = compared(name, given.pictures)
        report[name] = {kind: asdict(counts) for kind, counts in found.items()}
        for kind, counts in found.items():
            changed, of, error = sum(counts.changed), sum(counts.of), max(counts.f_hat)
            print(f"{name:12} {kind:13} {changed} of {of:,} ({100 * changed / of:.3f} %), f_hat {error:.1e}")
    write_report(given.json, json.dumps(report, indent=1) + "\n", "--json")


if __name__ == "__main__":
    end_with(main)
