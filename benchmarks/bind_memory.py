"""How much memory `actvar-trt bind` takes, beside the size of the checkpoint.

    python benchmarks/bind_memory.py --preset d16 --json benchmarks/results/bind-memory-d16.json

Writes a checkpoint of random weights in fp32 and one in fp16, and graphs without weights, each in a process of its own;
then binds either in a fresh process, whose peak (VmHWM: the interpreter and mapped pages count) is held against 1.3
times the file. What Python takes with all that binds is said beside it. Exit code 1 if a peak is above, where the file
is so large that the interpreter does not decide. Linux only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from actvar.benchmarks.command import end_with
from actvar.config import PRESETS
from actvar.provenance import typed

ALLOWED = 1.3
LARGE = 1e9
PEAK = """
from actvar.process_memory import process_memory
print(process_memory().peak)
"""
CHECKPOINT = """
import sys, torch
from pathlib import Path
from actvar.checkpoint.own import save_model
from actvar.config import PRESETS
from actvar.models.actvar import random_model
model = random_model(PRESETS[sys.argv[1]])
for dtype in ("float32", "float16"):
    save_model(model, Path(sys.argv[2]) / f"{dtype}.safetensors", getattr(torch, dtype))
"""
GRAPHS = """
import sys
from pathlib import Path
from actvar.config import PRESETS
from actvar.export.onnx_export import export_graphs
export_graphs(PRESETS[sys.argv[1]], Path(sys.argv[2]) / "bundle", "fp32", "a benchmark")
"""
ALONE = "import actvar.export.binder" + PEAK
BIND = (
    """
import sys
from pathlib import Path
from actvar.export.binder import bind
folder = Path(sys.argv[2])
bind(folder / "bundle", folder / sys.argv[1], None, folder / "bound")
"""
    + PEAK
)


def run(script: str, *arguments: object) -> str:
    """What a fresh process prints."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="d16")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    found, right = {}, True
    alone = int(run(ALONE))
    with tempfile.TemporaryDirectory(prefix="actvar-bind-") as scratch:
        run(CHECKPOINT, arguments.preset, scratch)
        run(GRAPHS, arguments.preset, scratch)
        for path in sorted(Path(scratch).glob("*.safetensors")):
            peak, size = int(run(BIND, path.name, scratch)), path.stat().st_size
            found[path.stem] = {"checkpoint": size, "peak": peak, "ratio": round(peak / size, 3)}
            right = right and (peak <= ALLOWED * size or size < LARGE)
            print(f"{path.stem}: {size / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB, {peak / size:.3f} of it")
    print(f"Python and what binds, alone: {alone / 1e6:.0f} MB; at most {ALLOWED} of the file is asked for")
    if arguments.json:
        figures = {"command": typed(["python", *sys.argv]), "preset": arguments.preset, "bytes": found}
        figures |= {"interpreter": alone, "allowed": ALLOWED}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if right else 1


if __name__ == "__main__":
    end_with(main)
