"""What int8 costs in quality: Glyphs-100 by the shipped models, on a CPU, the transformer and the decoder apart.

    python benchmarks/int8_quality.py --pictures 1000 --json benchmarks/results/int8-quality.json

Draws the same pictures (seed 0, all classes in turn) with the graphs of both precisions, and decodes the tokens of each
with the decoder of each. The judge of `python -m actvar.evaluation` says how good the four sets are. Beside that: the
share of tokens that agree at each scale, when both draw freely (one token that differs changes all that follow), and
when both are given the same inputs.

Letters in shapes: N pictures, L tokens of a scale, E code width, S side of f_hat, H height and W width of a picture.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from actvar.benchmarks.command import end_with
from actvar.benchmarks.decoder_quality import decibels
from actvar.provenance import typed

PRECISIONS = ("fp32", "int8")
AT_ONCE = 25
SEED = 0

TokenIds = tuple[np.ndarray, ...]
"""Of every scale, [N, L]."""


def drawn_tokens(pipeline: Any, pictures: int) -> TokenIds:
    """The tokens of pictures 0, 1, ..., of all classes in turn."""
    from actvar.runtime.pictures import Order

    model = pipeline.model
    orders = [Order(number % model.num_classes, number) for number in range(pictures)]
    drawn = [picture.token_ids for picture in pipeline.draw(orders, model.sampling, SEED)]
    return tuple(np.stack(of_scale) for of_scale in zip(*drawn, strict=True))


def decoded(pipeline: Any, quantizer: Any, token_ids: TokenIds) -> np.ndarray:
    """Pictures in [-1, 1], [N, 3, H, W], by the decoder of a bundle."""
    import torch

    batches = []
    for first in range(0, len(token_ids[0]), AT_ONCE):
        ids_NT = np.concatenate([of_scale[first : first + AT_ONCE] for of_scale in token_ids], axis=1)
        with torch.no_grad():
            f_hat_NESS = quantizer.decode(torch.from_numpy(ids_NT)).numpy()
        outputs = pipeline.engine.run("decoder", {"f_hat": pipeline.engine.upload(f_hat_NESS, "float32")})
        batches.append(pipeline.engine.download(outputs["image"]) * 2 - 1)
    return np.concatenate(batches)


def agreement(one: TokenIds, other: TokenIds) -> list[float]:
    """The share of tokens that are the same, of each scale."""
    return [float(np.mean(mine == theirs)) for mine, theirs in zip(one, other, strict=True)]


def agreement_at_equal_inputs(model: Any, folder: Path, pictures: int) -> dict[str, list[float]]:
    """Of each scale the share of equal tokens and the relative error of the logits, from the same inputs."""
    from actvar.bundle.contract import scale_name
    from actvar.export.onnx_export import export_bundle
    from actvar.export.parity.check import check_parity
    from actvar.runtime.sources import open_graphs

    export_bundle(model, folder, "int8", "compared", debug=True)
    found = check_parity(model, open_graphs(folder, AT_ONCE, 0), pictures, SEED).found
    names = [scale_name(si) for si in range(len(model.config.schedule))]
    shares: dict[str, list[float]] = {"tokens": [], "logits": []}
    for name in names:
        tokens, logits = found[name, "token_ids"], found[name, "logits"].relative
        assert tokens.equal is not None and tokens.choices and logits is not None  # tokens are chosen, logits are not
        shares["tokens"].append(tokens.equal / tokens.choices)
        shares["logits"].append(logits)
    return shares


def scores(pictures: dict[str, np.ndarray]) -> Sequence[dict[str, Any]]:
    """What the judge says of each set."""
    from dataclasses import asdict

    import torch

    from actvar.evaluation.classifier import load_classifier
    from actvar.evaluation.glyph_report import make_report

    draws = {
        name: lambda numbers_N, _, of=pixels_N3HW: torch.from_numpy(of[numbers_N])
        for name, pixels_N3HW in pictures.items()
    }
    report = make_report(draws, load_classifier(), len(next(iter(pictures.values()))), AT_ONCE)
    return [asdict(score) for score in report.scores]


def decoder_error(pictures: dict[str, np.ndarray]) -> float:
    """The decoder alone: decibels between the same tokens' pictures, of a range of 1."""
    return decibels(pictures["transformer fp32, decoder int8"], pictures["transformer fp32, decoder fp32"])


def judged(model: Any, pipelines: dict[str, Any], tokens: dict[str, TokenIds]) -> dict[str, Any]:
    """The report of one model, but for equal inputs."""
    pictures = {
        f"transformer {of}, decoder {by}": decoded(pipelines[by], model.vqvae.quantize, tokens[of])
        for of in PRECISIONS
        for by in PRECISIONS
    }
    return {
        "scores": scores(pictures),
        "decoder_psnr": decoder_error(pictures),
        "tokens_equal_drawing_freely": agreement(*tokens.values()),
    }


def compared(name: str, pictures: int, equal_inputs: int) -> dict[str, Any]:
    """The report of one shipped model."""
    from actvar.checkpoint.files import shipped_checkpoint
    from actvar.checkpoint.model import load_model
    from actvar.export.onnx_export import export_bundle
    from actvar.runtime.sources import open_graphs

    checkpoint = shipped_checkpoint(name)
    model = load_model(checkpoint.path, checkpoint.vqvae)
    with TemporaryDirectory(prefix="actvar-int8-quality-") as scratch:
        pipelines = {}
        for precision in PRECISIONS:
            export_bundle(model, Path(scratch) / precision, precision, name)
            pipelines[precision] = open_graphs(Path(scratch) / precision, AT_ONCE, 0)
        tokens = {precision: drawn_tokens(pipeline, pictures) for precision, pipeline in pipelines.items()}
        report = judged(model, pipelines, tokens)
        report["at_equal_inputs"] = agreement_at_equal_inputs(model, Path(scratch) / "debug", equal_inputs)
    return report


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000, help="at least 100, so that all classes are there")
    parser.add_argument("--equal-inputs", type=int, default=50, help="pictures that are compared at equal inputs")
    parser.add_argument("--model", action="append", choices=("var-mini", "actvar-mini"), help="both, if left out")
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    if given.pictures < 100 or given.equal_inputs < 1:
        parser.error("--pictures must be at least 100, and --equal-inputs at least 1.")
    report: dict[str, Any] = {"command": typed(["python", *sys.argv]), "pictures": given.pictures, "seed": SEED}
    for name in given.model or ("var-mini", "actvar-mini"):
        report[name] = compared(name, given.pictures, given.equal_inputs)
        for score in report[name]["scores"]:
            print(name, score["name"], f"class {score['class_accuracy']:.4f}, Fréchet {score['frechet_distance']:.4f}")
    given.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    end_with(main)
