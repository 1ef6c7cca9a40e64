"""What the small decoder costs in quality, and saves in time: Glyphs-100 by the shipped models, on a CPU.

    python benchmarks/decoder_quality.py --json benchmarks/results/decoder-quality.json

Draws pictures (seed 0, all classes in turn) once with the graphs, and gives every f_hat to both decoders, so that only
the decoder differs. The judge of `python -m actvar.evaluation` says how good each set is. Beside that: decibels between
the small decoder's pictures and the large one's; and the processor's time of each decoder's graph, a picture at a time
and in turns.

Letters in shapes: N pictures, T tokens of all scales, E code width, S side of f_hat, H height and W width of a picture.
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
from actvar.config import Decoder
from actvar.provenance import commit, typed
from actvar.runtime.machine import this_machine

MODELS = ("var-mini", "actvar-mini", "actvar-mini-guidance-free")
DECODERS: tuple[Decoder, ...] = ("full", "small")
AT_ONCE = 25
SEED = 0


def decoded(
    sources: dict[str, Any], quantizer: Any, ids_NT: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The pictures of both decoders in [-1, 1], [N, 3, H, W] each, and their seconds for every picture."""
    import torch

    pictures: dict[str, list[np.ndarray]] = {name: [] for name in DECODERS}
    seconds: dict[str, list[float]] = {name: [] for name in DECODERS}
    for row_1T in np.split(ids_NT, len(ids_NT)):
        with torch.no_grad():
            f_hat_1ESS = quantizer.decode(torch.from_numpy(row_1T)).numpy()
        for name in DECODERS:
            engine = sources[name].engine
            f_hat = engine.upload(f_hat_1ESS, "float32")
            started = time.process_time()
            image = engine.run("decoder", {"f_hat": f_hat})["image"]
            seconds[name].append(time.process_time() - started)
            pictures[name].append(engine.download(image) * 2 - 1)
    return {name: np.concatenate(each) for name, each in pictures.items()}, seconds


def decibels(one: np.ndarray, other: np.ndarray) -> float:
    """PSNR of pictures in [-1, 1], over all of them."""
    return float(-10 * np.log10(np.mean(np.square((one - other) / 2, dtype=np.float64))))


def measured(name: str, pictures: int, threads: int) -> dict[str, Any]:
    """The report of one shipped model."""
    import torch

    from actvar.checkpoint.files import shipped_checkpoint
    from actvar.checkpoint.model import load_checkpoint
    from actvar.evaluation.classifier import load_classifier
    from actvar.evaluation.glyph_report import make_report
    from actvar.export.onnx_export import export_bundle
    from actvar.flops import decoder_work
    from actvar.runtime.pictures import Order
    from actvar.runtime.sources import open_graphs

    checkpoint = shipped_checkpoint(name)
    models = {of: load_checkpoint(replace(checkpoint, decoder=of)) for of in DECODERS}
    with TemporaryDirectory(prefix="actvar-decoder-") as scratch:
        sources: dict[str, Any] = {}
        for of, model in models.items():
            export_bundle(model, Path(scratch) / of, "fp32", name)
            sources[of] = open_graphs(Path(scratch) / of, AT_ONCE, threads)
        config = models["full"].config
        orders = [Order(number % config.num_classes, number) for number in range(pictures)]
        drawn = [np.concatenate(each.token_ids) for each in sources["full"].draw(orders, config.sampling, SEED)]
        values, seconds = decoded(sources, models["full"].vqvae.quantize, np.stack(drawn))
    draws = {of: lambda numbers_N, _, its=its: torch.from_numpy(its[numbers_N]) for of, its in values.items()}
    scores = {score.name: score for score in make_report(draws, load_classifier(), pictures, AT_ONCE).scores}
    forms = {
        of: {
            "class_accuracy": scores[of].class_accuracy,
            "frechet_distance": scores[of].frechet_distance,
            "gflop": decoder_work(models[of].config) / 1e9,
            "seconds_per_picture": median(seconds[of]),
        }
        for of in DECODERS
    }
    return {"psnr": decibels(values["small"], values["full"]), "decoders": forms}


def main() -> None:
    """Draw, decode, judge, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=500, help="at least 100, so that all classes are there")
    parser.add_argument("--model", action="append", choices=MODELS, help="all, if left out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    if given.pictures < 100:
        parser.error("--pictures must be at least 100.")
    facts = {"command": typed(["python", *sys.argv]), **commit(), "machine": asdict(this_machine())}
    report = {**facts, "pictures": given.pictures, "seed": SEED, "threads": given.threads, "models": {}}
    for name in given.model or MODELS:
        report["models"][name] = found = measured(name, given.pictures, given.threads)
        print(f"{name}: the small decoder's pictures are {found['psnr']:.1f} dB from the large one's")
        for of, each in found["decoders"].items():
            print(
                f"  {of:6} class {each['class_accuracy']:.1%}, Fréchet {each['frechet_distance']:.3f}, "
                f"{each['gflop']:.2f} GFLOP, {1000 * each['seconds_per_picture']:.1f} ms"
            )
    given.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    end_with(main)
