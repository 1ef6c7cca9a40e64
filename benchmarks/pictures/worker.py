"""One contestant of a benchmark: opens what it is told to open, then draws a batch for every line that it reads.

    python -m actvar.benchmarks.pictures.worker ORDER

ORDER and all lines are JSON, and times are of `time.perf_counter`. The first answer says when the imports were done and
when the model was there; then each {first, pictures, looked_into} is answered with {began, ended, peak_bytes, laps},
and {} with {product}, the operations in a second of one. Whatever goes wrong is answered with {error}, and ends the
process. What libraries print goes to stderr.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from actvar.errors import ActVARError
from actvar.process_memory import process_memory


def main() -> None:
    """Work until there are no more lines."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        _work(json.loads(sys.argv[1]), answers)
    except ActVARError as error:
        _answer(answers, {"error": str(error)})
    except Exception as error:  # code of others: any checkout, any compiler
        reason = (str(error).strip().splitlines() or ["no reason given"])[0][:300]
        _answer(answers, {"error": f"{type(error).__name__}: {reason.rstrip('.')}. Leave it out."})
    except KeyboardInterrupt:
        sys.exit(130)


def _work(order: dict[str, Any], answers: TextIO) -> None:
    open_drawer = {"graphs": _graphs, "openvino": _openvino}.get(order["kind"], _torch)(order)
    imported = time.perf_counter()
    drawer = open_drawer()
    _answer(answers, {"imported": imported, "opened": time.perf_counter()})
    for line in sys.stdin:
        command = json.loads(line)
        if not command:
            _answer(answers, {"product": drawer.multiply()})
            continue
        began = time.perf_counter()
        laps = drawer.draw(**command)
        ended = time.perf_counter()
        _answer(answers, {"began": began, "ended": ended, "peak_bytes": process_memory().peak, "laps": laps})


def _graphs(order: dict[str, Any]) -> Callable[[], Any]:
    """Import what runs graphs; what is returned opens them."""
    from actvar.benchmarks.pictures.graph_times import GraphDrawer
    from actvar.benchmarks.pictures.products import onnxruntime_product
    from actvar.errors import needs
    from actvar.runtime.sources import open_engines, open_graphs

    bundle, largest = Path(order["path"]), order["largest_batch"]
    if order["backend"] == "tensorrt":
        with needs("gpu", "to run engines"):
            from actvar.runtime.backends import trt  # noqa: F401
        return lambda: GraphDrawer(open_engines(bundle, largest))
    with needs("cpu" if order["device"] == "cpu" else "gpu", "to run graphs"):
        from actvar.runtime.backends import ort  # noqa: F401
    threads, device = order["threads"], order["device"]

    product = partial(onnxruntime_product, order["precision"], threads) if device == "cpu" else None
    return lambda: GraphDrawer(open_graphs(bundle, largest, threads, device), product)


def _openvino(order: dict[str, Any]) -> Callable[[], Any]:
    """The same for the graphs in OpenVINO."""
    try:
        from actvar.benchmarks.pictures.openvino_graphs import open_openvino
    except ModuleNotFoundError:
        raise ActVARError("OpenVINO is not installed: pip install openvino") from None
    return lambda: open_openvino(Path(order["path"]), order["precision"], order["threads"], order["largest_batch"])


def _torch(order: dict[str, Any]) -> Callable[[], Any]:
    """Import PyTorch; what is returned opens the peer."""
    from actvar.config import ModelConfig
    from actvar.errors import needs

    with needs("train", "to compare with it"):
        from actvar.benchmarks.pictures import peers as torch_peers
    path, model = Path(order["path"]), ModelConfig.from_dict(order["model"])
    where = torch_peers.Where(order["threads"], order["device"], order["precision"])
    compiled = "compiled" in order["kind"]
    if order["kind"].startswith("official"):
        return lambda: torch_peers.open_official(path, model, compiled, where)
    return lambda: torch_peers.open_network(path, compiled, where)


def _answer(answers: TextIO, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
