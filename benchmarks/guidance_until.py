"""What guidance that ends early costs in quality, and saves in time: Glyphs-100 by a shipped model, on a CPU.

    python benchmarks/guidance_until.py --model actvar-mini --json benchmarks/results/guidance-until-actvar-mini.json

Draws the same pictures (seed 0, all classes in turn) with `--guidance-until` 4 to 9 and with guidance at every scale.
The judge of `python -m actvar.evaluation` says how good each set is. The forms take turns, a batch each, and their time
is that of the processor, so that what else runs on the machine counts little.

Letters in shapes: N pictures, H height and W width of a picture.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from actvar.benchmarks.command import end_with
from actvar.provenance import commit, typed
from actvar.runtime.machine import this_machine

ENDS = (4, 5, 6, 7, 8, 9)
AT_ONCE = 25
SEED = 0
ALL = "all scales"


def drawn(sources: dict[str, Any], pictures: int) -> tuple[dict[str, np.ndarray], dict[str, list[float]]]:
    """Pictures 0, 1, ... of every form, [N, H, W, 3] bytes, and the processor's seconds for a picture of each batch."""
    from actvar.runtime.pictures import Order

    pixels: dict[str, list[np.ndarray]] = {name: [] for name in sources}
    seconds: dict[str, list[float]] = {name: [] for name in sources}
    for first in range(0, pictures, AT_ONCE):
        for name, source in sources.items():
            numbers = range(first, min(first + AT_ONCE, pictures))
            orders = [Order(number % source.model.num_classes, number) for number in numbers]
            started = time.process_time()
            batch = [picture.pixels_HW3 for picture in source.draw(orders, source.model.sampling, SEED)]
            seconds[name].append((time.process_time() - started) / len(orders))
            pixels[name] += batch
    return {name: np.stack(each) for name, each in pixels.items()}, seconds


def scored(pixels: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """What the judge says of each set, by its name."""
    import torch

    from actvar.evaluation.classifier import load_classifier
    from actvar.evaluation.glyph_report import make_report

    def values(of: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(of.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)

    draws = {name: lambda numbers_N, _, of=of: values(of[numbers_N]) for name, of in pixels.items()}
    report = make_report(draws, load_classifier(), len(next(iter(pixels.values()))), AT_ONCE)
    return {score.name: asdict(score) for score in report.scores}


def measured(name: str, pictures: int, threads: int) -> dict[str, Any]:
    """The report of one shipped model."""
    from actvar.checkpoint.files import shipped_checkpoint
    from actvar.checkpoint.model import load_checkpoint
    from actvar.export.onnx_export import export_bundle
    from actvar.flops import transformer_work
    from actvar.runtime.sources import open_graphs

    checkpoint = shipped_checkpoint(name)
    with TemporaryDirectory(prefix="actvar-guidance-") as scratch:
        sources = {}
        for end in (None, *reversed(ENDS)):
            model = load_checkpoint(replace(checkpoint, guidance_until=end))
            form = ALL if end is None else f"until {end}"
            export_bundle(model, Path(scratch) / form, "fp32", name)
            sources[form] = open_graphs(Path(scratch) / form, AT_ONCE, threads)
        for source in sources.values():
            drawn({ALL: source}, AT_ONCE)  # the first batch is not like the others
        pixels, seconds = drawn(sources, pictures)
        work = {form: transformer_work(source.model) for form, source in sources.items()}
    scores = scored(pixels)
    return {
        form: {
            **{key: scores[form][key] for key in ("class_accuracy", "frechet_distance")},
            "seconds_per_picture": median(seconds[form]),
            "share_of_time": median(a / b for a, b in zip(seconds[form], seconds[ALL], strict=True)),
            "share_of_transformer": work[form] / work[ALL],
        }
        for form in sources
    }


def main() -> None:
    """Draw, judge, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000, help="at least 100, so that all classes are there")
    parser.add_argument("--model", choices=("var-mini", "actvar-mini"), required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    if given.pictures < 100:
        parser.error("--pictures must be at least 100.")
    forms = measured(given.model, given.pictures, given.threads)
    for form, found in forms.items():
        print(
            f"{form:10} class {found['class_accuracy']:.1%}, Fréchet {found['frechet_distance']:.3f}, "
            f"{1000 * found['seconds_per_picture']:.0f} ms, {found['share_of_time']:.2f} of the time"
        )
    facts = {"command": typed(["python", *sys.argv]), **commit(), "machine": asdict(this_machine())}
    setting = {"model": given.model, "pictures": given.pictures, "seed": SEED, "threads": given.threads}
    report = {**facts, **setting, "batch_size": AT_ONCE, "forms": forms}
    given.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    end_with(main)
