"""How much memory a picture takes through ONNX Runtime, and how much it may take.

    python benchmarks/memory.py --preset d16 --bundle bundles/d16-fp32
    python benchmarks/memory.py --preset d36 --precision fp16-weights --pictures 1

Exports the preset with random weights if the bundle is not there (random weights take the same memory as trained ones),
draws two pictures in a fresh process, one after the other, and holds its peak (VmHWM) against 1.25 × (weights + KV +
largest activation). Weights count once, in the type that they are multiplied in, and those of the encoder not at all.
Exit code 1 if it is above. Linux only.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import get_args

from actvar.benchmarks.command import end_with
from actvar.bundle.contract import ENCODER, ITEM_BYTES, Precision
from actvar.bundle.manifest import Manifest, read_manifest
from actvar.config import HEAD_WIDTH, PRESETS, ModelConfig
from actvar.provenance import typed

ALLOWED = 1.25
MEGABYTE = 1e6

DRAW = """
import sys
from pathlib import Path
from typing import get_args
from actvar.runtime.pictures import Order
from actvar.process_memory import process_memory
from actvar.runtime.sources import open_graphs

source = open_graphs(Path(sys.argv[1]), batch_size=1, threads=0)
for _ in source.draw([Order(0, number) for number in range(int(sys.argv[2]))], source.model.sampling):
    pass
print(process_memory().peak)
"""


def weights_bytes(manifest: Manifest) -> int:
    """What drawing reads, in the type in which it is multiplied: fp16-weights are widened when a session is made."""
    read = {name for graph, spec in manifest.graphs.items() if graph != ENCODER for name in spec.weights}
    stored = [tensor for name, tensor in manifest.weights.tensors.items() if name in read]
    if manifest.precision == "fp16-weights":
        return sum(4 * math.prod(tensor.shape) for tensor in stored)
    return sum(tensor.length for tensor in stored)


def kv_bytes(manifest: Manifest) -> int:
    """The cache of one picture at its largest: what the last scale reads."""
    model = manifest.model
    dtypes = {tensor.dtype for graph in manifest.graphs.values() for tensor in graph.inputs if tensor.name == "past_kv"}
    values = model.depth * 2 * model.row_groups(0) * model.heads * model.cached_tokens[-1] * HEAD_WIDTH
    return values * ITEM_BYTES[dtypes.pop()]


def largest_activation_bytes(model: ModelConfig) -> int:
    """The largest single tensor that one picture makes, in fp32: in a block, in the head or in the decoder."""
    vqvae = model.vqvae
    values = []
    for si, tokens in enumerate(model.schedule.tokens):
        kept, rows = model.kept_tokens(si), model.row_groups(si)
        values.append(rows * kept * model.hidden)
        values.append(rows * model.heads * kept * (model.cached_tokens[si] + kept))  # attention's scores
        values.append(rows * tokens * vqvae.vocab_size)
    side, before = model.schedule.side, vqvae.ch * vqvae.ch_mult[-1]
    for level, mult in reversed(list(enumerate(vqvae.ch_mult))):
        channels = vqvae.ch * mult
        values.append(max(before, channels) * side**2)
        if level:
            side *= 2
            values.append(channels * side**2)
        before = channels
    return 4 * max(values)


def export_preset(preset: str, bundle: Path, precision: str = "fp32") -> None:
    """Write the bundle in a process of its own, so that this one stays small."""
    command = "from actvar.cli.main import main; main()"
    options = ["--preset", preset, "--dense", "--precision", precision, "--out", str(bundle)]
    subprocess.run([sys.executable, "-c", command, "export", *options], check=True)


def peak_bytes(bundle: Path, pictures: int = 2) -> int:
    """The peak of a fresh process that draws so many pictures, one after the other."""
    command = [sys.executable, "-c", DRAW, str(bundle), str(pictures)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="d16")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32")
    parser.add_argument("--pictures", type=int, default=2, help="that are drawn, one after the other")
    parser.add_argument(
        "--bundle", type=Path, help="where it is, or is to be written; bundles/PRESET-PRECISION if left out"
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    bundle = arguments.bundle or Path("bundles") / f"{arguments.preset}-{arguments.precision}"
    if not bundle.exists():
        export_preset(arguments.preset, bundle, arguments.precision)
    manifest = read_manifest(bundle)
    parts = {
        "weights": weights_bytes(manifest),
        "kv": kv_bytes(manifest),
        "largest_activation": largest_activation_bytes(manifest.model),
    }
    peak = peak_bytes(bundle, arguments.pictures)
    ratio = peak / sum(parts.values())
    for name, count in {**parts, "peak": peak}.items():
        print(f"{name.replace('_', ' '):20}{count / MEGABYTE:10.1f} MB")
    print(f"peak / (weights + KV + largest activation) = {ratio:.3f}, at most {ALLOWED}")
    if arguments.json:
        figures = {"command": typed(["python", *sys.argv]), "preset": arguments.preset}
        figures |= {"precision": manifest.precision, "pictures": arguments.pictures}
        figures |= {"bytes": {**parts, "peak": peak}, "ratio": ratio, "allowed": ALLOWED}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if ratio <= ALLOWED else 1


if __name__ == "__main__":
    end_with(main)
