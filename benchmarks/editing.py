"""How well editing does what it is asked for: Glyphs-100 by the shipped models, judged by the shipped classifier.

    python benchmarks/editing.py --json benchmarks/results/editing-mini.json

Held-out pictures, which nothing was trained on, are edited by the graphs, in batches:

- *another class*: the middle of brown crescents is drawn anew as a red heart; how many are judged to be one.
- *in-painting*: a part beside the middle of pictures of all classes is drawn anew without a class; how many keep it.
- *the very middle*: the same of the middle, which hides most of a shape; and once more with the class named.
- *out-painting*: a part is kept and all around it drawn anew without a class, likewise.

Of every picture the kept codes are compared with those of the picture, and of some the tokens with PyTorch's.

Letters in shapes: N pictures, H height and W width of a picture.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from actvar.benchmarks.command import end_with
from actvar.editing.area import Keep, Rectangle, Replace
from actvar.provenance import commit, typed
from actvar.runtime.machine import this_machine

MODELS = ("var-mini", "actvar-mini")
AT_ONCE = 10
SEED = 0
STEP = 37  # from class to class, so that a few pictures are of all colours and shapes
COMPARED = 4  # with PyTorch, of each kind: one picture at a time takes long
FROM, TO = "brown-crescent", "red-heart"
NO_CLASS, OWN_CLASS = "none", "their own"
EDITS: dict[str, tuple[Rectangle, str]] = {
    "another class": (Replace(0.125, 0.125, 0.875, 0.875), TO),
    "in-painting": (Replace(0.5, 0.5, 0.75, 0.75), NO_CLASS),
    "the very middle": (Replace(0.375, 0.375, 0.625, 0.625), NO_CLASS),
    "the very middle, class named": (Replace(0.375, 0.375, 0.625, 0.625), OWN_CLASS),
    "out-painting": (Keep(0.125, 0.125, 0.875, 0.875), NO_CLASS),
}


def held_out(classes_N: np.ndarray) -> np.ndarray:
    """Pictures of these classes, uint8 [N, H, W, 3]."""
    from actvar.data.glyphs import HELD_OUT_SEED, render_glyphs

    pictures_N3HW = render_glyphs(classes_N, np.arange(len(classes_N)), HELD_OUT_SEED)
    return np.rint((pictures_N3HW.numpy().transpose(0, 2, 3, 1) + 1) * 127.5).astype(np.uint8)


def judged(pixels_NHW3: np.ndarray) -> np.ndarray:
    """The classes that the classifier sees, [N]."""
    import torch

    from actvar.evaluation.classifier import load_classifier

    pictures_N3HW = torch.from_numpy(pixels_NHW3.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)
    with torch.no_grad():
        return load_classifier()(pictures_N3HW).argmax(1).numpy()


def edited(source: Any, eager: Any, area: Rectangle, pixels_NHW3: np.ndarray, asked_N: np.ndarray) -> dict[str, Any]:
    """Pictures with this part of them drawn anew as the classes that are asked for, and what is to be said of them."""
    from actvar.bundle.contract import DRAWN
    from actvar.editing.edit import Edit
    from actvar.runtime.pictures import Order

    orders = []
    for number, pixels_HW3 in enumerate(pixels_NHW3):
        edit = Edit.of(source.model, pixels_HW3, area)
        orders.append(Order(int(asked_N[number]), number, given=edit.given(source.encode(pixels_HW3))))
    sampling = source.model.sampling
    drawn = list(source.draw(orders, sampling, SEED))
    wanted = list(eager.draw(orders[:COMPARED], sampling, SEED))
    changed = kept = 0
    for picture in drawn:
        for given_L, ids_L in zip(picture.order.given, picture.token_ids, strict=True):
            kept += int((given_L != DRAWN).sum())
            changed += int((ids_L != given_L)[given_L != DRAWN].sum())
    pairs = zip(drawn, wanted, strict=False)
    equal = sum(all(map(np.array_equal, one.token_ids, other.token_ids)) for one, other in pairs)
    pixels = np.stack([picture.pixels_HW3 for picture in drawn])
    facts = {"kept_codes": kept, "kept_codes_changed": changed, "pictures_with_pytorchs_tokens": [equal, len(wanted)]}
    return {"classes": judged(pixels), "facts": facts}


def measured(name: str, pictures: int, threads: int) -> dict[str, Any]:
    """The report of one shipped model."""
    from actvar.checkpoint.files import shipped_checkpoint
    from actvar.checkpoint.model import load_model
    from actvar.export.onnx_export import export_bundle
    from actvar.runtime.backends.torch_source import eager_source
    from actvar.runtime.sources import open_graphs

    checkpoint = shipped_checkpoint(name)
    model = load_model(checkpoint.path, checkpoint.vqvae)
    names, found = list(model.config.class_names), {}
    with TemporaryDirectory(prefix="actvar-editing-") as scratch:
        export_bundle(model, Path(scratch) / "bundle", "fp32", name)
        source, eager = open_graphs(Path(scratch) / "bundle", AT_ONCE, threads), eager_source(model)
        for kind, (area, asked) in EDITS.items():
            classes_N = np.full(pictures, names.index(FROM)) if asked == TO else np.arange(pictures) * STEP % len(names)
            wanted_N = np.full(pictures, names.index(TO)) if asked == TO else classes_N
            pixels_NHW3 = held_out(classes_N)
            asked_N = np.full(pictures, len(names)) if asked == NO_CLASS else wanted_N
            made = edited(source, eager, area, pixels_NHW3, asked_N)
            found[kind] = {
                "area": {"kind": type(area).__name__.lower(), **asdict(area)},
                "class": asked,
                "judged_as_wanted": float((made["classes"] == wanted_N).mean()),
                "of_the_pictures_themselves": float((judged(pixels_NHW3) == classes_N).mean()),
                **made["facts"],
            }
    return found


def main() -> None:
    """Edit, judge, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200, help="of each kind; 100 have all classes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    models = {name: measured(name, given.pictures, given.threads) for name in MODELS}
    for name, kinds in models.items():
        for kind, found in kinds.items():
            print(
                f"{name:12} {kind:28} {found['judged_as_wanted']:.1%} as wanted, {found['kept_codes_changed']} of "
                f"{found['kept_codes']} kept codes changed, {found['pictures_with_pytorchs_tokens']} as PyTorch"
            )
    facts = {"command": typed(["python", *sys.argv]), **commit(), "machine": asdict(this_machine())}
    setting = {"pictures": given.pictures, "seed": SEED, "threads": given.threads, "batch_size": AT_ONCE}
    report = {**facts, **setting, "models": models}
    given.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    end_with(main)
