"""What the input `given` costs whoever edits nothing: every scale graph with it, all -1, against the same without it.

    python benchmarks/given_cost.py --preset mini --rounds 40 --json benchmarks/results/given-cost-mini.json
    python benchmarks/given_cost.py --preset d16 --rounds 4 --json benchmarks/results/given-cost-d16.json

Exports the preset's VAR with random weights if it is not there, takes `given` and the two nodes that read it out of a
copy of its graphs, and draws the same pictures by both in turn, in one process. The tokens must be the same. Times are
the sums of the scale graphs' for one picture, on one thread, and of the processor's own time: what else runs on the
machine does not count. The ratio is that of the medians; beside it are those of single rounds.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import onnx

from actvar.benchmarks.command import end_with
from actvar.benchmarks.pictures.graph_times import Lap, TimedEngine
from actvar.bundle.manifest import WEIGHTS_FILE, Manifest, read_manifest
from actvar.config import PRESETS
from actvar.export.onnx_export import export_bundle
from actvar.models.actvar import random_model
from actvar.provenance import typed
from actvar.runtime.backends import ort
from actvar.runtime.backends.protocol import Tensor
from actvar.runtime.pictures import Order
from actvar.runtime.pipeline import GraphSource

GIVEN = "given"


def without_given(path: Path, target: Path) -> None:
    """Write a scale graph that draws every code: `Where` and `Less` are gone, and what was drawn is `token_ids`."""
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    [chosen] = [node for node in graph.node if node.op_type == "Where" and "token_ids" in node.output]
    asked, drawn, _ = chosen.input
    [question] = [node for node in graph.node if asked in node.output]
    for node in (chosen, question):
        graph.node.remove(node)
    [maker] = [node for node in graph.node if drawn in node.output]
    maker.output[list(maker.output).index(drawn)] = "token_ids"
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == drawn:
                node.input[i] = "token_ids"
    [read] = [value for value in graph.input if value.name == GIVEN]
    graph.input.remove(read)
    onnx.save(model, target)


def copy_without(bundle: Path, copy: Path) -> Manifest:
    """A copy of a bundle whose scale graphs read no `given`, and a manifest for it; the weights are the same file."""
    copy.mkdir(parents=True)
    os.link(bundle / WEIGHTS_FILE, copy / WEIGHTS_FILE)
    for path in bundle.glob("*.onnx"):
        if path.stem.startswith("scale"):
            without_given(path, copy / path.name)
        else:
            shutil.copy(path, copy / path.name)
    manifest = read_manifest(bundle)
    graphs = {
        name: replace(spec, inputs=tuple(tensor for tensor in spec.inputs if tensor.name != GIVEN))
        for name, spec in manifest.graphs.items()
    }
    return replace(manifest, graphs=graphs)


class ProcessorTimes(TimedEngine):
    """What the runs of an engine on the CPU take of the processor's time."""

    def run(self, graph: str, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """See `Engine`."""
        began = time.process_time()
        outputs = self._engine.run(graph, inputs)
        self.laps.append(Lap(graph, began, time.process_time()))
        return outputs


def drawn(source: GraphSource, number: int) -> tuple[float, np.ndarray]:
    """Seconds of the processor that the scale graphs took for a picture, and its tokens."""
    engine = ProcessorTimes(source.engine)
    [picture] = replace(source, engine=engine).draw([Order(1, number)], source.model.sampling)
    scales = [lap.seconds for lap in engine.laps if lap.graph.startswith("scale")]
    return sum(scales), np.concatenate(picture.token_ids)


def main() -> None:
    """Export, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="mini")
    parser.add_argument("--bundle", type=Path, help="where it is, or is to be written; bundles/PRESET-given")
    parser.add_argument("--cpu-graph", choices=("scales", "each"), default="each")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    bundle = given.bundle or Path("bundles") / f"{given.preset}-given"
    if not bundle.exists():
        export_bundle(random_model(PRESETS[given.preset]), bundle, "fp32", f"random weights, preset {given.preset}")
    copy = bundle.with_name(f"{bundle.name}-without")
    if copy.exists():
        shutil.rmtree(copy)
    manifests = {"with": (bundle, read_manifest(bundle)), "without": (copy, copy_without(bundle, copy))}
    sources = {
        name: GraphSource(ort.load(folder, manifest, 1, "cpu", given.cpu_graph))
        for name, (folder, manifest) in manifests.items()
    }
    for source in sources.values():
        drawn(source, 0)
    seconds: dict[str, list[float]] = {name: [] for name in sources}
    for number in range(given.rounds):
        tokens = {}
        for name in sorted(sources, reverse=bool(number % 2)):
            taken, tokens[name] = drawn(sources[name], number)
            seconds[name].append(taken)
        np.testing.assert_array_equal(tokens["with"], tokens["without"])
    ratio = median(seconds["with"]) / median(seconds["without"])
    rounds = sorted(a / b for a, b in zip(seconds["with"], seconds["without"], strict=True))
    spread = f"single rounds {rounds[0]:.3f} to {rounds[-1]:.3f}"
    print(f"{given.preset}, {given.cpu_graph}: with / without {ratio:.4f}, {spread}")
    if given.json:
        figures = {
            "command": typed(["python", *sys.argv]),
            "preset": given.preset,
            "cpu_graph": given.cpu_graph,
            "rounds": given.rounds,
            "median_processor_seconds": {name: round(median(taken), 6) for name, taken in seconds.items()},
            "ratio": round(ratio, 4),
            "ratio_of_single_rounds": {
                "least": round(rounds[0], 4),
                "median": round(median(rounds), 4),
                "most": round(rounds[-1], 4),
            },
            "load": [round(load, 2) for load in os.getloadavg()],
        }
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    shutil.rmtree(copy)


if __name__ == "__main__":
    end_with(main)
