"""The ways in which plans may come to a GPU: by which engine, and built for which compute capabilities.

TensorRT-RTX does not list every GPU that may run its plans. So plans of each way are tried on the GPU at hand, and what
follows takes the first way that ran.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from actvar.benchmarks.gpu.case import Places, Skipped
from actvar.bundle.manifest import PLANS_FOLDER
from actvar.bundle.plans import (
    MODULES,
    RTX,
    TENSORRT,
    Gpu,
    PlanManifest,
    PlanOptions,
    PlanTarget,
    plan_folder,
    write_plans,
)
from actvar.export.plans.builder import build_plans
from actvar.export.plans.engine_library import choose_target

OPTIONS = PlanOptions()


@dataclass(frozen=True)
class Way:
    """An engine and what it builds for: `architectures` are names such as "8.0", None all that it lists.

    `at_hand`: for the GPU at hand, listed or not.
    """

    engine: str
    architectures: Sequence[str] | None = None
    at_hand: bool = False

    @property
    def module(self) -> str:
        """The engine's Python package."""
        return MODULES[self.engine]

    def target(self, gpu: Gpu | None = None) -> PlanTarget:
        """What to build for."""
        return choose_target(self.engine, [gpu.capability] if self.at_hand and gpu else self.architectures)


WAYS = {
    "tensorrt": Way(TENSORRT),
    "current": Way(RTX, at_hand=True),
    "sm89": Way(RTX, ("8.9",)),
    "sm80": Way(RTX, ("8.0",)),
    "default": Way(RTX),
}
"""By name, those first that are taken first where several run."""

AHEAD = ("sm89", "sm80", "default")
"""Those that need no GPU to be built: made with the bundle whose plans are tried."""


def way_that_ran(places: Places) -> Way:
    """The first way whose pictures were drawn on this GPU.

    Raises:
        Skipped: there is none.
    """
    answers = places.findings("rtx_answer")
    for name, way in WAYS.items():
        if answers.get(name, {}).get("runs"):
            return way
    raise Skipped(f"No plans ran on this GPU; tried were {', '.join(answers) or 'none'} (rtx_answer).")


def built(bundle: Path, way: Way, gpu: Gpu) -> tuple[Path, PlanManifest]:
    """A bundle's plans, built if they are not there: their folder, and its manifest."""
    target = way.target(gpu)
    plans = build_plans(bundle, target, OPTIONS, jobs=os.cpu_count() or 1)
    return plan_folder(bundle, target), plans


def marked_for(folder: Path, plans: PlanManifest, gpu: Gpu) -> None:
    """Say of plans that they are for this GPU, so that the runtime, which would refuse them, tries them."""
    write_plans(folder, replace(plans, target=replace(plans.target, gpus=(gpu.capability,))))


def with_plans(source: Path, way: Way, gpu: Gpu, scratch: Path) -> Path:
    """A copy of a bundle in a scratch folder, with plans of this way alone, which the runtime takes for this GPU's."""
    bundle = copy_of(source, way, gpu, scratch)
    marked_for(*built(bundle, way, gpu), gpu)
    return bundle


def copy_of(source: Path, way: Way, gpu: Gpu, scratch: Path) -> Path:
    """A copy of a bundle in a scratch folder; of its plans those of this way alone."""
    bundle = scratch / source.name
    shutil.rmtree(bundle, ignore_errors=True)
    shutil.copytree(source, bundle, ignore=shutil.ignore_patterns(PLANS_FOLDER))
    ahead = plan_folder(source, way.target(gpu))
    if ahead.is_dir():
        shutil.copytree(ahead, plan_folder(bundle, way.target(gpu)))
    return bundle
