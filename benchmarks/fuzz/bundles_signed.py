"""Bundles whose hashes fit what was changed: a manifest with other fields, graphs with other nodes and constants."""

import hashlib
import json
import random
from pathlib import Path

import onnx
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from actvar.benchmarks.fuzz.bundles import read, samples
from actvar.benchmarks.fuzz.changes import change_json, changed_bytes
from actvar.bundle.json_form import HASH_FIELD, content_hash
from actvar.bundle.manifest import MANIFEST_FILE

__all__ = ["mutate", "read", "samples"]

_SIZES = (0, 1, 2, 3, 255, 1 << 16, 1 << 20, 1 << 24, 1 << 31, 1 << 40, (1 << 63) - 1, -1, -2, -(1 << 40))
_OTHERS = ("Add", "MatMul", "Concat", "Expand", "Tile", "Loop", "Scan", "If", "Range", "ConstantOfShape", "Resize")


def mutate(path: Path, rng: random.Random) -> None:
    """Change the manifest or a graph, and put all hashes right."""
    if rng.random() < 0.4:
        change_json(path / MANIFEST_FILE, rng)
        _sign(path)
        return
    graph = rng.choice(sorted(path.glob("*.onnx")))
    if rng.random() < 0.3:
        graph.write_bytes(changed_bytes(graph.read_bytes(), rng))
    else:
        model = onnx.load(graph, load_external_data=False)
        for _ in range(rng.choice((1, 1, 2))):
            change = rng.choice((_other_node, _other_attribute, _other_constant, _other_constant, _other_wire, _more))
            change(model, rng)
        graph.write_bytes(model.SerializeToString())
    _sign(path)


def _other_node(model: ModelProto, rng: random.Random) -> None:
    rng.choice(model.graph.node).op_type = rng.choice(_OTHERS)


def _other_attribute(model: ModelProto, rng: random.Random) -> None:
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    attribute = rng.choice(attributes)
    if attribute.type == AttributeProto.INT:
        attribute.i = rng.choice(_SIZES)
    elif attribute.type == AttributeProto.INTS:
        attribute.ints[:] = [rng.choice(_SIZES) for _ in attribute.ints]
    else:
        attribute.name = "other"


def _other_constant(model: ModelProto, rng: random.Random) -> None:
    constants = [each for each in model.graph.initializer if each.data_type == TensorProto.INT64]
    if not constants:
        return
    constant = rng.choice(constants)
    values = numpy_helper.to_array(constant).copy()
    if values.size and rng.random() < 0.8:
        values.flat[rng.randrange(values.size)] = rng.choice(_SIZES)
        constant.CopyFrom(numpy_helper.from_array(values, constant.name))
    else:
        constant.dims.append(rng.choice((2, 1 << 20, 1 << 40)))


def _other_wire(model: ModelProto, rng: random.Random) -> None:
    node, other = (rng.choice(model.graph.node) for _ in range(2))
    if node.input and other.output:
        node.input[rng.randrange(len(node.input))] = rng.choice(other.output)


def _more(model: ModelProto, rng: random.Random) -> None:
    """A loop without an end, or a constant of no bounds."""
    if rng.random() < 0.5:
        turn = helper.make_tensor_value_info("turn", TensorProto.INT64, [])
        go, on = (helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "on"))
        body = helper.make_graph([helper.make_node("Identity", ["go"], ["on"])], "body", [turn, go], [on])
        yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
        model.graph.initializer.append(yes)
        model.graph.node.insert(0, helper.make_node("Loop", ["", "yes"], [], body=body))
    else:
        shape = helper.make_tensor("huge", TensorProto.INT64, [3], [rng.choice(_SIZES) for _ in range(3)])
        model.graph.initializer.append(shape)
        model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["huge"], ["huge_value"]))


def _sign(folder: Path) -> None:
    """Sizes and hashes of the files, and the manifest's own."""
    path = folder / MANIFEST_FILE
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return
    if not isinstance(content, dict):
        return
    for specs in (content.get("graphs"), content.get("scales")):
        for name, spec in specs.items() if isinstance(specs, dict) else ():
            file = folder / f"{name}.onnx"
            if isinstance(spec, dict) and len(name) < 100 and "\0" not in name and file.is_file():
                data = file.read_bytes()
                spec.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    fields = {name: value for name, value in content.items() if name != HASH_FIELD}
    path.write_bytes(json.dumps({**fields, HASH_FIELD: content_hash(fields)}).encode())
