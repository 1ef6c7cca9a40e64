"""Where the time of a picture goes on a CPU, operator by operator, in ONNX Runtime.

    python benchmarks/operator_times.py --bundle bundles/d16 --json FILE
    python benchmarks/operator_times.py --bundle bundles/actvar-d16 --beside bundles/d16 --json FILE

Runs every scale and the decoder of an fp32 or int8 bundle on random inputs, with the runtime's own session options and
ONNX Runtime's profiler, and adds up the medians of each operator's nodes. Profiling costs time itself: read shares, not
seconds. What is inside an `If` counts as itself, and the `If` not at all.

With `--beside`, a bundle of the dense model, the two take turns at every scale, and the FFNs are held against each
other: products, GELU and what chooses experts, without the norm before and the gate behind. *Realised* is time saved
for each operation saved; the ratio is taken turn by turn.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime

from actvar.benchmarks.command import end_with
from actvar.bundle.contract import DRAWN, MASKED_SCALES, SCALE_INPUT, SCALES, scale_name
from actvar.bundle.manifest import read_manifest
from actvar.config import ModelConfig
from actvar.flops import scale_work
from actvar.provenance import commit, typed
from actvar.runtime.backends.memory import keep_blocks
from actvar.runtime.backends.ort import UNWANTED, joined_scales, session_options
from actvar.runtime.machine import this_machine

_CONTROL = ("If", "Scan", "Loop")
_AROUND = ("norm", "one", "scaled", "shifted", "change", "gated", "residual", "reshape")
"""First words of the nodes' names in an FFN's scope that every model has for each token, before and behind it."""


def scale_inputs(session: onnxruntime.InferenceSession, model: ModelConfig, si: int) -> dict[str, np.ndarray]:
    """What a graph reads for one picture at scale index si: random numbers, and the model's own cuts."""
    sampling, random = model.sampling, np.random.default_rng(si)
    sizes = {"B": 1, "G": model.row_groups(si), "L": model.schedule.tokens[si], "P": model.cached_tokens[si]}
    given = {name: np.asarray(getattr(sampling, name)) for name in ("cfg", "top_k", "top_p")}
    given |= {SCALE_INPUT: np.array(si), "given": np.full((1, sizes["L"]), DRAWN)}
    inputs = {}
    for tensor in session.get_inputs():
        dtype = np.int64 if tensor.type == "tensor(int64)" else np.float32
        shape = [sizes.get(size, size) for size in tensor.shape]
        inputs[tensor.name] = np.asarray(given.get(tensor.name, random.random(shape)), dtype)
    return inputs


def operator_seconds(events: Iterable[dict]) -> dict[str, float]:
    """Seconds by operator, the most first: the sum over its nodes of each one's median."""
    of_node = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            of_node[event["args"]["op_name"], event["name"]].append(event["dur"] / 1e6)
    sums: dict[str, float] = defaultdict(float)
    for (operator, _), durations in of_node.items():
        if operator not in _CONTROL:
            sums[operator] += median(durations)
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def ffn_seconds(events: Iterable[dict]) -> list[float]:
    """Seconds of all blocks' FFNs together, run by run."""
    of_node = defaultdict(list)
    for event in events:
        path = event["name"].removesuffix("_kernel_time").split("/")
        is_node = event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and "ffn" in path
        if is_node and event["args"]["op_name"] not in _CONTROL and path[-1].split("_")[0] not in _AROUND:
            of_node[event["name"]].append(event["dur"] / 1e6)
    return [sum(run) for run in zip(*of_node.values(), strict=True)]


@contextmanager
def profiled(path: Path, threads: int) -> Iterator[tuple[onnxruntime.InferenceSession, Callable[[], list[dict]]]]:
    """A graph's session with the profiler on, and what ends it and gives its events."""
    with TemporaryDirectory() as scratch:
        options = session_options(threads, "cpu", packs=path.stem in (SCALES, MASKED_SCALES))
        options.enable_profiling, options.profile_file_prefix = True, f"{scratch}/profile"
        session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"], disabled_optimizers=UNWANTED
        )
        yield session, lambda: json.loads(Path(session.end_profiling()).read_text())


def profile(path: Path, model: ModelConfig, si: int, threads: int, runs: int) -> dict[str, float]:
    """Seconds by operator of one graph."""
    with profiled(path, threads) as (session, events):
        inputs = scale_inputs(session, model, si)
        for _ in range(runs):
            session.run(None, inputs)
        return operator_seconds(events())


def ffns_beside(active: Path, dense: Path, si: int, threads: int, runs: int) -> dict[str, float]:
    """The FFNs of an ActVAR's and its dense model's bundle at scale index si, by turns: medians."""
    models = [read_manifest(bundle).model for bundle in (active, dense)]
    paths = [bundle / f"{joined_scales(read_manifest(bundle))}.onnx" for bundle in (active, dense)]
    with profiled(paths[0], threads) as (one, of_one), profiled(paths[1], threads) as (other, of_other):
        inputs = [scale_inputs(session, model, si) for session, model in zip((one, other), models, strict=True)]
        for _ in range(runs + 1):
            for session, given in zip((one, other), inputs, strict=True):
                session.run(None, given)
        ours, theirs = (ffn_seconds(events())[1:] for events in (of_one, of_other))  # the first run warms up
    works = [scale_work(model, si) for model in models]
    saved = 1 - (works[0].ffn + works[0].router) / works[1].ffn
    ratio = median(a / b for a, b in zip(ours, theirs, strict=True))
    found = {"seconds": median(ours), "dense_seconds": median(theirs), "ratio": ratio, "operations_saved": saved}
    return {**found, **({"realised": (1 - ratio) / saved} if saved else {})}


def show_ffns(given: argparse.Namespace, facts: dict) -> None:
    """What `--beside` asks for."""
    compared = {}
    for si in range(len(read_manifest(given.bundle).model.schedule)):
        found = ffns_beside(given.bundle, given.beside, si, given.threads, given.runs)
        compared[scale_name(si)] = found
        seconds = f"{found['seconds'] * 1000:.1f} ms, dense {found['dense_seconds'] * 1000:.1f} ms"
        shares = f"time {found['ratio']:.3f} of it, operations {1 - found['operations_saved']:.3f}"
        realised = f", realised {found['realised']:.2f}" if "realised" in found else ""
        print(f"{scale_name(si)}: FFNs {seconds}: {shares}{realised}")
    if given.json:
        given.json.write_text(json.dumps({**facts, "ffns": compared}, indent=1) + "\n")


def main() -> None:
    """Profile a bundle; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=0, help="0 is one for each core")
    parser.add_argument("--runs", type=int, default=5, help="of every graph")
    parser.add_argument(
        "--scales",
        choices=("fastest", SCALES, MASKED_SCALES),
        default="fastest",
        help="the graph that runs all of them",
    )
    parser.add_argument("--beside", type=Path, help="a bundle of the dense model: compare the FFNs, and nothing else")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    keep_blocks()
    facts = {"command": typed(["python", *sys.argv]), **commit(), "machine": asdict(this_machine())}
    if given.beside:
        show_ffns(given, facts)
        return
    manifest, last = read_manifest(given.bundle), 0
    model, scales = manifest.model, joined_scales(manifest, given.scales)
    found = {}
    for si in range(len(model.schedule)):
        found[scale_name(si)] = profile(given.bundle / f"{scales}.onnx", model, si, given.threads, given.runs)
        last = si
    found["decoder"] = profile(given.bundle / "decoder.onnx", model, last, given.threads, given.runs)
    for graph, seconds in found.items():
        whole = sum(seconds.values())
        parts = ", ".join(f"{name} {value / whole:.0%}" for name, value in list(seconds.items())[:8])
        print(f"{graph}: {whole * 1000:.0f} ms: {parts}")
    if given.json:
        given.json.write_text(json.dumps({**facts, "seconds": found}, indent=1) + "\n")


if __name__ == "__main__":
    end_with(main)
