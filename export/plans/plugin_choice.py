"""Which sparse parts become plugins where that is left open: those that are faster so, as was measured or is expected.

Tokens are always moved by plugins. A router's experts are where that pays at every scale that leaves experts out, and
on every GPU that the plans are for; elsewhere all of them are multiplied, with a mask. What `bench kernels` has
measured on the GPU at hand, and left in the cache, counts more than what is expected.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actvar.bundle.plans import PlanTarget
from actvar.config import DYNAMIC, ModelConfig
from actvar.errors import counted
from actvar.plugins.expected import routing_pays
from actvar.runtime.machine import cache_folder, first_gpu

EXPERTS, RANDOM = 16, "random"
"""Of what `bench kernels` measures: the experts in all, and the masks that no router made."""

_NEAR = math.log(4)
"""How far a measured number of tokens may be from the one in question: a quarter of it, or four times as many."""


@dataclass(frozen=True)
class PluginChoice:
    """`plugins` as `PlanOptions` has it, and a sentence that says why."""

    plugins: str
    why: str


def figures_file(gpu: str) -> Path:
    """Where `bench kernels` leaves what it measured on a GPU of this name."""
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return cache_folder() / "kernels" / f"{name}.json"


def chosen_plugins(model: ModelConfig, target: PlanTarget, pictures: int) -> PluginChoice:
    """For plans of a model.

    Args:
        model: which scales leave out what.
        target: the GPUs that they are for.
        pictures: drawn at once, for which the plans are made fastest.
    """
    activation = model.activation
    if activation is None or activation.expert_choice != DYNAMIC:
        return PluginChoice("all", "No experts are routed.")
    scales = [si for si in range(len(model.schedule)) if model.active_experts(si) < activation.experts]
    if not scales:
        return PluginChoice("all", "No experts are left out.")
    gpu = first_gpu()
    if gpu and target.serves(gpu) and (measured := _slowest(_measured(gpu.name), model, scales, pictures)) is not None:
        why = f"bench kernels measured {measured:.2f} of the dense time on this GPU ({figures_file(gpu.name)})."
        return PluginChoice("all" if measured < 1 else "tokens", why)
    most = max(model.active_experts(si) for si in scales)
    case = f"with {most} of {counted(activation.experts, 'expert')} that is"
    where = "to pay on compute capability"
    if lost := [each for each in target.gpus if not _pays(each, model, scales)]:
        return PluginChoice("tokens", f"{case} not expected {where} {', '.join(lost)}.")
    return PluginChoice("all", f"{case} expected {where} {', '.join(target.gpus)}.")


def _pays(capability: str, model: ModelConfig, scales: list[int]) -> bool:
    """At every one of these scales."""
    assert model.activation
    experts = model.activation.experts
    return all(routing_pays(capability, model.active_experts(si), experts) for si in scales)


def _measured(gpu: str) -> list[Mapping[str, Any]] | None:
    """Rows of the routed FFN; None where nothing was measured, or the file is of another form."""
    try:
        content = json.loads(figures_file(gpu).read_bytes())
        return list(content["routed"]) if content["machine"]["gpu"] == gpu else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _slowest(
    rows: list[Mapping[str, Any]] | None, model: ModelConfig, scales: list[int], pictures: int
) -> float | None:
    """The routed FFN's time as a multiple of the dense one's, where that is most; None if a scale was not measured."""
    found = [_ratio(rows or [], model, si, pictures) for si in scales]
    known = [ratio for ratio in found if ratio is not None]
    return max(known) if len(known) == len(found) else None


def _ratio(rows: list[Mapping[str, Any]], model: ModelConfig, si: int, pictures: int) -> float | None:
    """Of the measured case that is nearest to a scale, with a trained router's masks where there are any."""
    assert model.activation
    tokens, share = (
        model.row_groups(si) * pictures * model.kept_tokens(si),
        model.active_experts(si) / model.activation.experts,
    )
    found: list[tuple[float, bool, float]] = []
    for row in rows:
        try:
            distance = abs(math.log(row["tokens"] / tokens))
            if row["width"] == model.width and row["active"] == share * EXPERTS and distance <= _NEAR:
                found.append((distance, row["routing"] == RANDOM, float(row["ratios"][str(row["default"])])))
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return None
    return min(found)[2] if found else None
