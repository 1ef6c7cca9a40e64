"""What guidance distilled away costs in quality: Glyphs-100 by VAR-mini with and without guidance, and by its students.

    python benchmarks/guidance_free.py --row "VAR-mini, freed=runs/var/actvar.safetensors@0" \
        --row "ActVAR-mini, freed=runs/actvar-0/actvar.safetensors@0" --json benchmarks/results/guidance-free-mini.json

Each row draws as many pictures as a cell of the study, with its own seed; rows of one seed share random numbers. The
judge of `python -m actvar.evaluation` says how good they are. Beside that: how far the predictions are from those of
guided VAR-mini, on held-out pictures with their true tokens as inputs; with --distances nothing else is measured. A row
that is in the file already, with all that is asked for, is kept.

Letters in shapes: B pictures, T tokens, V codes.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from actvar.benchmarks.command import end_with
from actvar.errors import CheckpointError
from actvar.provenance import typed

STRENGTH = 1.5
HELD_OUT_PICTURES = 100
REFERENCE_PICTURES = 10_000
AT_ONCE = 50
TEACHER, OFF = "VAR-mini, guided", "VAR-mini, guidance off"
ACTVAR, ACTVAR_OFF = "ActVAR-mini, guided", "ActVAR-mini, guidance off"
SHIPPED = {TEACHER: "var-mini", OFF: "var-mini", ACTVAR: "actvar-mini", ACTVAR_OFF: "actvar-mini"}


def shipped(name: str) -> Any:
    """A model of the package."""
    from actvar.checkpoint.files import shipped_checkpoint
    from actvar.checkpoint.model import load_model

    checkpoint = shipped_checkpoint(name)
    return load_model(checkpoint.path, checkpoint.vqvae)


def model_of(name: str, file: Path | None) -> Any:
    """The model of a row."""
    from actvar.checkpoint.files import shipped_checkpoint
    from actvar.checkpoint.model import load_model

    if file is None:
        model = shipped(SHIPPED[name])
        if name in (OFF, ACTVAR_OFF):
            model.config = replace(model.config, guided_scales=0)
        return model
    try:
        return load_model(file)
    except CheckpointError:  # it shares the VQVAE of the package
        return load_model(file, shipped_checkpoint("actvar-mini").path)


def predictions(model: Any) -> Callable[[Any, Any], Any]:
    """Classes B and inputs to the logits that a model draws from, BTV: guided where it is."""
    from actvar.distill.guidance import guided_pass

    def predict(class_ids_B: Any, tokens_in_BTE: Any) -> Any:
        if model.config.is_guided:
            return guided_pass(model.var, class_ids_B, tokens_in_BTE, STRENGTH).logits_BTV
        return model.var(class_ids_B, tokens_in_BTE)[0]

    return predict


def distances(model: Any, folder: Path) -> dict[str, float]:
    """KL between a model's predictions and those of guided VAR-mini, in either order, means over held-out tokens."""
    import torch

    from actvar.data.encoding import EncodeSettings, build_token_store
    from actvar.data.glyphs import HELD_OUT_SEED, GlyphPictures
    from actvar.distill.guidance import guidance_loss
    from actvar.distill.losses import output_loss

    teacher = shipped("var-mini")
    store = build_token_store(folder, teacher.vqvae, GlyphPictures(HELD_OUT_PICTURES, HELD_OUT_SEED), EncodeSettings())
    ours, theirs, sums = predictions(model), predictions(teacher), [0.0, 0.0]
    with torch.no_grad():
        for places in torch.arange(len(store)).split(20):
            token_ids_BT, class_ids_B = store.batch(places)
            tokens_in_BTE, _ = teacher.vqvae.quantize.teacher_forcing(token_ids_BT)
            found, wanted = (predict(class_ids_B, tokens_in_BTE) for predict in (ours, theirs))
            share = len(places) / len(store)
            sums[0] += share * float(output_loss(found, wanted))
            sums[1] += share * float(guidance_loss(found, wanted))
    return {"kl": sums[0], "kl_of_guided": sums[1]}


def judged(model: Any, seed: int, pictures: int, reference: Any) -> dict[str, float]:
    """What the judge says of a model's pictures."""
    import numpy as np

    from actvar.data.glyphs import balanced_classes
    from actvar.evaluation.classifier import load_classifier
    from actvar.evaluation.draws import generated_pictures
    from actvar.evaluation.frechet import FeatureStatistics, frechet_distance
    from actvar.evaluation.glyph_report import judge

    draw = generated_pictures(model, replace(model.config.sampling, cfg=STRENGTH), seed)
    named_N, features_NF = judge(load_classifier(), draw, pictures, AT_ONCE)
    return {
        "class_accuracy": float(np.mean(named_N == balanced_classes(np.arange(pictures)))),
        "frechet_distance": frechet_distance(FeatureStatistics.of(features_NF), reference),
    }


def added(path: Path, row: dict[str, Any], head: dict[str, Any]) -> None:
    """Put a row into the file; several processes may do so."""
    from actvar.files import locked

    with locked(path.with_suffix(".lock")):
        others = [each for each in kept_rows(path, head) if (each["name"], each["seed"]) != (row["name"], row["seed"])]
        rows = [*others, row]
        rows.sort(key=lambda each: (each["name"], each["seed"]))
        path.write_text(json.dumps({**head, "rows": rows}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    path.with_suffix(".lock").unlink(missing_ok=True)


def kept_rows(path: Path, head: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of an earlier call with the same settings."""
    if not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    if any(found[name] != head[name] for name in head):
        raise SystemExit(f"{path} was measured with other settings. Name another --json.")
    return found["rows"]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", action="append", default=[], metavar="NAME=FILE@SEED", help="a student, and its seed")
    parser.add_argument("--shipped", default=f"{OFF}@0;{ACTVAR}@0;{TEACHER}@0", help="rows of the package's models")
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--distances", action="store_true", help="draw nothing")
    parser.add_argument("--work", type=Path, default=Path("runs/guidance-free"), help="folder for encoded pictures")
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    wanted: list[tuple[str, Path | None, int]] = []
    for text in given.row:
        name, _, rest = text.partition("=")
        file, _, seed = rest.rpartition("@")
        wanted.append((name, Path(file), int(seed)))
    for text in filter(None, given.shipped.split(";")):
        name, _, seed = text.rpartition("@")
        if name not in SHIPPED:
            parser.error(f"--shipped takes {'; '.join(SHIPPED)}, each with @ and a seed.")
        wanted.append((name, None, int(seed)))

    from actvar.evaluation.classifier import load_classifier
    from actvar.study.inputs import real_reference

    given.work.mkdir(parents=True, exist_ok=True)
    reference = real_reference(load_classifier(), REFERENCE_PICTURES, given.work)
    head = {
        "strength": STRENGTH,
        "pictures": given.pictures,
        "held_out_pictures": HELD_OUT_PICTURES,
        "reference_pictures": REFERENCE_PICTURES,
    }
    for name, file, seed in wanted:
        there = [row for row in kept_rows(given.json, head) if (row["name"], row["seed"]) == (name, seed)]
        if any(given.distances or "frechet_distance" in row for row in there):
            continue
        model = model_of(name, file)
        row = {"name": name, "seed": seed, "command": typed(["python", *sys.argv])}
        row |= distances(model, given.work / "held-out")
        row |= {} if given.distances else judged(model, seed, given.pictures, reference)
        print(json.dumps(row), flush=True)
        added(given.json, row, head)


if __name__ == "__main__":
    end_with(main)
