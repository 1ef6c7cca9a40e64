"""Draws the same pictures again and again: memory must not grow after the first minute, and no picture may change.

    python benchmarks/soak.py --preset d16 --minutes 20 --json benchmarks/results/soak-d16.json

Exports the preset with random weights if the bundle is not there (they take the same memory and time as trained ones).
Eight pictures of various classes are drawn in turn, in one process and without a pause. After each its SHA-256, of
pixels and tokens, is held against the first time's, and the memory of the process (VmRSS now, VmHWM at most) is noted.
Exit code 1 if a picture differs, or if either figure rises by more than --allowed-mb over what it was at --settle
seconds. Linux only.
"""

import argparse
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

from actvar.benchmarks.command import end_with
from actvar.benchmarks.memory import export_preset
from actvar.bundle.manifest import Manifest
from actvar.config import PRESETS, ModelConfig
from actvar.console import progress_bar
from actvar.errors import UsageError, counted
from actvar.process_memory import ProcessMemory, process_memory
from actvar.provenance import commit, typed
from actvar.reports import check_json_option, write_report
from actvar.runtime.machine import Machine, this_machine, usable_cores
from actvar.runtime.pictures import Order, Picture, PictureSource
from actvar.runtime.sources import open_graphs

FORMAT, VERSION = "actvar-soak", 1
PICTURES, SEED, SAMPLES = 8, 0, 100
MEGABYTE = 1e6
NONE = ProcessMemory(0, 0)


@dataclass(frozen=True)
class Plan:
    """How long to draw, how much of that memory may take to settle, and by how much it may rise then."""

    seconds: float
    settle_seconds: float
    allowed_bytes: int


@dataclass(frozen=True)
class Sample:
    """A look at the process after a picture: seconds since the first was begun, pictures so far, bytes."""

    seconds: float
    pictures: int
    resident: int
    peak: int


@dataclass
class Found:
    """What a soak has seen so far; it does not grow with the pictures.

    `settled` and `after` are the largest figures up to the end of the settling time, and since then.
    """

    plan: Plan
    digests: dict[Order, str] = field(default_factory=dict)
    drawn: Counter[Order] = field(default_factory=Counter)
    changed: Counter[Order] = field(default_factory=Counter)
    first_change: dict[str, Any] | None = None
    settled: ProcessMemory = NONE
    after: ProcessMemory = NONE
    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, picture: Picture, seconds: float, memory: ProcessMemory) -> None:
        """One more picture."""
        order, self.seconds = picture.order, seconds
        self.drawn[order] += 1
        found = digest(picture)
        if self.digests.setdefault(order, found) != found:
            self.changed[order] += 1
            self.first_change = self.first_change or {**asdict(order), "seconds": seconds, "sha256": found}
        if seconds <= self.plan.settle_seconds:
            self.settled = _larger(self.settled, memory)
        else:
            self.after = _larger(self.after, memory)
        due = self.samples[-1].seconds + self.plan.seconds / SAMPLES if self.samples else 0.0
        if seconds >= min(due, self.plan.seconds):
            self.samples.append(Sample(seconds, self.drawn.total(), memory.resident, memory.peak))

    @property
    def grown(self) -> int:
        """Bytes by which the process rose after it had settled, at any moment or at its peak."""
        return max(self.after.resident - self.settled.resident, self.after.peak - self.settled.peak)

    def failures(self) -> list[str]:
        """What must not be, in words; empty if all is well."""
        said = []
        if self.first_change:
            said.append(
                f"{self.changed.total()} of {counted(self.drawn.total(), 'picture')} differ from the first of their "
                f"kind; the first was picture {self.first_change['number']} of class {self.first_change['class_id']}, "
                f"after {self.first_change['seconds']:.1f} s."
            )
        if not self.settled.peak or not self.after.peak or min(self.drawn.values()) < 2:
            said.append(
                f"{counted(self.drawn.total(), 'picture')} in {self.seconds:.1f} s are too few: each must be drawn "
                "twice, some before memory has settled and some after. Take more --minutes, or a longer --settle."
            )
        elif self.grown > self.plan.allowed_bytes:
            said.append(
                f"Memory grew by {self.grown / MEGABYTE:.1f} MB after the first {self.plan.settle_seconds:.0f} s; "
                f"at most {self.plan.allowed_bytes / MEGABYTE:.1f} MB are allowed."
            )
        return said

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        pictures = [
            {**asdict(order), "sha256": self.digests[order], "drawn": count, "changed": self.changed[order]}
            for order, count in self.drawn.items()
        ]
        return {
            **asdict(self.plan),
            "drawn_seconds": self.seconds,
            "drawn_pictures": self.drawn.total(),
            "pictures_per_second": self.drawn.total() / self.seconds,
            "settled": asdict(self.settled),
            "after": asdict(self.after),
            "grown_bytes": self.grown,
            "first_change": self.first_change,
            "failures": self.failures(),
            "pictures": pictures,
            "samples": [asdict(sample) for sample in self.samples],
        }


def _larger(a: ProcessMemory, b: ProcessMemory) -> ProcessMemory:
    return ProcessMemory(max(a.resident, b.resident), max(a.peak, b.peak))


def digest(picture: Picture) -> str:
    """SHA-256 of the pixels and of the tokens of every scale."""
    found = hashlib.sha256(picture.pixels_HW3.tobytes())
    for token_ids_L in picture.token_ids:
        found.update(token_ids_L.astype("<i8").tobytes())
    return found.hexdigest()


def orders(model: ModelConfig) -> list[Order]:
    """Classes from all over the model's."""
    return [Order(number * model.num_classes // PICTURES, number) for number in range(PICTURES)]


def soak(source: PictureSource, plan: Plan, progress: Callable[[float], None]) -> Found:
    """Draw until the time is over."""
    found, started = Found(plan), time.perf_counter()
    for picture in source.draw(cycle(orders(source.model)), source.model.sampling, SEED):
        seconds = time.perf_counter() - started
        found.add(picture, seconds, process_memory())
        progress(min(seconds / plan.seconds, 1.0))
        if seconds >= plan.seconds:
            break
    return found


def report(given: argparse.Namespace, machine: Machine, manifest: Manifest, found: Found) -> str:
    """All that was found, of what, and where, as JSON; memory in bytes."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "command": typed(["python", *sys.argv]),
        **commit(),
        "machine": asdict(machine),
        "threads": given.threads or usable_cores(),
        "batch": given.batch,
        "bundle": {
            "source": manifest.source,
            "precision": manifest.precision,
            "model": manifest.model.to_dict() | {"class_names": []},
        },
        **found.to_dict(),
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def parsed() -> argparse.Namespace:
    """The options.

    Raises:
        UsageError: a number makes no sense.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="mini")
    parser.add_argument("--bundle", type=Path, help="where it is, or is to be written; bundles/PRESET-fp32 if left out")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--batch", type=int, default=1, help="pictures drawn at a time")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0 is one for each core")
    parser.add_argument("--settle", type=float, default=60.0, help="seconds in which memory may still grow")
    parser.add_argument("--allowed-mb", type=float, default=8.0, help="what it may grow by after that")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    if given.batch < 1 or given.threads < 0 or not 0 < given.settle < given.minutes * 60 < float("inf"):
        raise UsageError("--batch must be 1 or more, --threads 0 or more, and --minutes longer than --settle seconds.")
    check_json_option(given.json)
    return given


def main() -> int:
    """Draw, tell, write; returns the exit code."""
    given = parsed()
    bundle = given.bundle or Path("bundles") / f"{given.preset}-fp32"
    if not bundle.exists():
        export_preset(given.preset, bundle)
    machine = this_machine()
    source = open_graphs(bundle, given.batch, given.threads)
    plan = Plan(given.minutes * 60, given.settle, round(given.allowed_mb * MEGABYTE))
    with progress_bar(f"Drawing for {given.minutes:g} minutes") as progress:
        found = soak(source, plan, progress)
    print(f"{counted(found.drawn.total(), 'picture')} of {counted(len(found.drawn), 'kind')} in {found.seconds:.1f} s")
    for when, memory in (("settled", found.settled), ("after", found.after)):
        print(f"{when:8} {memory.resident / MEGABYTE:10.1f} MB, peak {memory.peak / MEGABYTE:10.1f} MB")
    for failure in found.failures():
        print(f"FAILED: {failure}")
    if given.json:
        write_report(given.json, report(given, machine, source.engine.manifest, found), "--json")
    return 1 if found.failures() else 0


if __name__ == "__main__":
    end_with(main)
