"""What a build came to: a table for a person, and figures for a file."""

import os
import platform
import sys
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from rich.table import Table

from actvar.bundle.contract import EXPERTS_OPERATOR
from actvar.bundle.manifest import Manifest
from actvar.bundle.plans import PlanManifest, PlanSpec
from actvar.errors import counted
from actvar.provenance import typed


def plan_table(plans: PlanManifest) -> Table:
    """One row for each plan, and one for all.

    Plugin layers are counted by what they are for: choosing and moving tokens, or experts. Of a scale that leaves out
    neither, and of one whose experts are static, there are none.
    """
    table = Table()
    headings = ("graph", "layers", "plugins: tokens", "experts", "plan MB", "seconds", "peak MB")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "graph" else "right")
    for graph, plan in plans.plans.items():
        cost = _megabytes(plan.entry.bytes), f"{plan.seconds:.1f}", f"{plan.peak_bytes / 1e6:.0f}"
        table.add_row(graph, str(sum(plan.layers.values())), *map(str, _plugins([plan])), *cost)
    table.add_section()
    specs = plans.plans.values()
    seconds = sum(plan.seconds for plan in specs)
    peak = max((plan.peak_bytes for plan in specs), default=0)
    size = _megabytes(sum(plan.entry.bytes for plan in specs))
    table.add_row(f"all {len(specs)}", "", *map(str, _plugins(specs)), size, f"{seconds:.1f}", f"{peak / 1e6:.0f}")
    return table


def figures(manifest: Manifest, plans: PlanManifest, jobs: int, seconds: float) -> dict[str, Any]:
    """All that a build took.

    Args:
        manifest: the bundle's.
        plans: what is there now.
        jobs: plans that were built at the same time.
        seconds: of this run; less than it took in all if plans were there before.
    """
    specs = plans.plans
    peaks = sorted((plan.peak_bytes for plan in specs.values()), reverse=True)
    activation = manifest.model.activation
    cores = counted(os.cpu_count() or 1, "core")
    machine = f"{platform.system()} {platform.machine()}, {cores}, {plans.target.device or 'no GPU used'}"
    return {
        "command": typed(["actvar-trt", *sys.argv[1:]]),
        "machine": machine,
        "model": {"depth": manifest.model.depth, "activation": asdict(activation) if activation else None},
        "precision": manifest.precision,
        "target": asdict(plans.target),
        "options": asdict(plans.options),
        "versions": dict(plans.versions),
        "plugin_library": plans.plugin_library,
        "jobs": jobs,
        "seconds_of_this_run": round(seconds, 1),
        "plugin_layers": dict(zip(("tokens", "experts"), _plugins(specs.values()), strict=True)),
        "plan_bytes": sum(plan.entry.bytes for plan in specs.values()),
        "peak_bytes": {"largest_worker": sum(peaks[:1]), "workers_at_most": sum(peaks[:jobs])},
        "plans": {
            graph: {
                "bytes": plan.entry.bytes,
                "layers": sum(plan.layers.values()),
                "plugins": dict(plan.plugins),
                "bodies": dict(plan.bodies),
                "seconds": plan.seconds,
                "peak_bytes": plan.peak_bytes,
            }
            for graph, plan in specs.items()
        },
    }


def _plugins(plans: Collection[PlanSpec]) -> tuple[int, int]:
    """Plugin layers for tokens, and for experts."""
    experts = sum(plan.plugins.get(EXPERTS_OPERATOR, 0) for plan in plans)
    return sum(sum(plan.plugins.values()) for plan in plans) - experts, experts


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}"
