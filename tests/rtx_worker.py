"""A process that parses graphs with our plugins in TensorRT-RTX, and builds plans of them; no test itself.

It is a process of its own because the parser aborts where the wheel's library cannot be found under its unversioned
name, which only LD_LIBRARY_PATH at the start of a process cures.

Reads lines of JSON, {"model": path, "shapes": {input: shape} or null to parse only}, and answers each with one.
"""

import json
import sys
from pathlib import Path
from typing import Any

import tensorrt_rtx as trt


class Log(trt.ILogger):
    """Keeps the errors."""

    def __init__(self):
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        """Called by TensorRT."""
        if severity <= trt.ILogger.Severity.ERROR:
            self.errors.append(message)


def answer(builder: trt.Builder, log: Log, model: bytes, shapes: dict[str, list[int]] | None) -> dict[str, Any]:
    """What came of a model: its layers' types by name, the size of its plan, the errors."""
    log.errors.clear()
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parsed = trt.OnnxParser(network, log).parse(model)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    result = {"parsed": parsed, "layers": {layer.name: layer.type.name for layer in layers}, "plan": 0}
    if parsed and shapes is not None:
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, shape, shape, shape)
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        result["plan"] = plan.nbytes if plan else 0
    return {**result, "errors": list(log.errors)}


def main() -> None:
    """Load the library that the first argument names, say what it creates, answer line by line."""
    log = Log()
    builder = trt.Builder(log)
    registry = builder.get_plugin_registry()
    registry.load_library(sys.argv[1])
    ours = [c for c in registry.all_creators if c.plugin_namespace == "actvar"]
    print(json.dumps({"creators": [[c.name, c.plugin_version] for c in ours], "errors": log.errors}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(answer(builder, log, Path(request["model"]).read_bytes(), request["shapes"])), flush=True)


if __name__ == "__main__":
    main()
