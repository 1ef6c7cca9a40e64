"""The plugin library in the real TensorRT-RTX, which parses and builds without a GPU and runs nothing here.

Letters in shapes: R rows, L tokens, K kept tokens, C width, N experts, E hidden neurons of an expert, A active experts.
"""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from import_tree import ROOT
from onnx import TensorProto, helper
from plugin_build import cmake, plugin_library_path
from small_models import small_config, vivid_model

from actvar.bundle.plans import RTX
from actvar.config import Activation
from actvar.export.onnx_export import export_bundle
from actvar.export.operators.fused import ALL_OPERATORS
from actvar.export.operators.lowering import lower
from actvar.export.operators.sparse import DOMAIN, DOMAIN_VERSION, OPERATORS
from actvar.export.plans.engine_library import installed, library_path

FP32, FP16, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
INT32, INT64 = TensorProto.INT32, TensorProto.INT64
R, L, K, C, N, E, A = 4, 169, 127, 256, 16, 64, 12
Input = tuple[str, int, Sequence[int | str]]


class Rtx:
    """The process that parses; see rtx_worker.py."""

    def __init__(self, library: Path, folder: Path):
        self.folder = folder
        environment = {**os.environ, "LD_LIBRARY_PATH": library_path(RTX) or os.environ.get("LD_LIBRARY_PATH", "")}
        command = [sys.executable, str(ROOT / "tests" / "rtx_worker.py"), str(library)]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder
        )
        self.loaded = self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"TensorRT-RTX ended the process with {self.process.wait()}"
        return json.loads(line)

    def parse(self, model: onnx.ModelProto, shapes: dict[str, Sequence[int]] | None = None) -> dict[str, Any]:
        """What comes of a model; with `shapes` of its dynamic inputs, a plan too."""
        path = self.folder / "model.onnx"
        path.write_bytes(model.SerializeToString())
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"model": str(path), "shapes": shapes}) + "\n")
        self.process.stdin.flush()
        return self.answer()


@pytest.fixture(scope="module")
def rtx(tmp_path_factory) -> Iterator[Rtx]:
    """With the library loaded."""
    if not installed(RTX):
        pytest.skip("needs tensorrt-rtx")
    started = Rtx(plugin_library_path(), tmp_path_factory.mktemp("rtx"))
    yield started
    assert started.process.stdin is not None
    started.process.stdin.close()
    started.process.wait(timeout=60)


def model_of(
    nodes: list[onnx.NodeProto], inputs: list[Input], output: str, dtype: int, bodies: bool = False
) -> onnx.ModelProto:
    """A model of our nodes, with their bodies or without."""
    values = [helper.make_tensor_value_info(*value) for value in inputs]
    graph = helper.make_graph(nodes, "ours", values, [helper.make_tensor_value_info(output, dtype, None)])
    functions = [operator.function() for operator in ALL_OPERATORS.values()] if bodies else []
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10)


def inputs_of(dtype: int = FP16, rows: int | str = R) -> dict[str, Input]:
    """What the operators read, by name."""
    inputs: list[Input] = [
        ("scores", FP32, [rows, L]),
        ("x", dtype, [rows, L, C]),
        ("logits", FP32, [rows, K, N]),
        ("w1", dtype, [N, E, C]),
        ("b1", dtype, [N, E]),
        ("w2", dtype, [N, E, C]),
        ("b2", dtype, [C]),
        ("rows", FP32, [rows, L, C]),
        ("scale", FP32, [rows, 1, C]),
        ("shift", FP32, [rows, 1, C]),
        ("gamma", FP32, [rows, 1, C]),
    ]
    return {value[0]: value for value in inputs}


def sparse_block(dtype: int, bodies: bool) -> onnx.ModelProto:
    """Select, gather, FFN, scatter, as in a block of a sparse scale, over a dynamic number of rows."""
    nodes = [
        OPERATORS["ActVarTokenSelect"].node(["scores"], "indices", "select", keep=K),
        OPERATORS["ActVarTokenGather"].node(["x", "indices"], "kept", "gather"),
        OPERATORS["ActVarRoutedFFN"].node(
            ["kept", "logits", "w1", "b1", "w2", "b2"], "updated", "ffn", experts=N, active=A
        ),
        OPERATORS["ActVarTokenScatter"].node(["x", "indices", "updated"], "y", "scatter"),
    ]
    names = ["scores", "x", "logits", "w1", "b1", "w2", "b2"]
    return model_of(nodes, [inputs_of(dtype, "R")[name] for name in names], "y", dtype, bodies)


def fused_block(dtype: int, bodies: bool) -> onnx.ModelProto:
    """The same with its ends fused, as the lowering leaves it: an fp32 residual around what is computed in `dtype`."""
    nodes = [
        OPERATORS["ActVarTokenSelect"].node(["scores"], "indices", "select", keep=K),
        ALL_OPERATORS["ActVarTokenGatherNorm"].node(
            ["rows", "indices", "scale", "shift"], "kept", "gather", "normed", to=dtype, epsilon=1e-6
        ),
        OPERATORS["ActVarRoutedFFN"].node(
            ["normed", "logits", "w1", "b1", "w2", "b2"], "change", "ffn", experts=N, active=A
        ),
        ALL_OPERATORS["ActVarTokenScatterGated"].node(["rows", "indices", "kept", "gamma", "change"], "y", "scatter"),
    ]
    names = ["scores", "rows", "scale", "shift", "gamma", "logits", "w1", "b1", "w2", "b2"]
    return model_of(nodes, [inputs_of(dtype, "R")[name] for name in names], "y", FP32, bodies)


def test_the_library_loads_into_the_registry(rtx):
    """All operators, under the namespace and version that the nodes name."""
    assert sorted(rtx.loaded["creators"]) == sorted([name, "1"] for name in ALL_OPERATORS)
    assert rtx.loaded["errors"] == []


@pytest.mark.parametrize("bodies", [False, True], ids=["without bodies", "with bodies"])
@pytest.mark.parametrize("block", [sparse_block, fused_block])
@pytest.mark.parametrize("dtype", [FP32, FP16, BF16], ids=["fp32", "fp16", "bf16"])
def test_our_nodes_become_plugins_and_build(rtx, dtype, block, bodies):
    """Four layers and no other: a body beside the node must not win. The plan holds the attributes alone."""
    model, given = block(dtype, bodies), inputs_of(dtype)
    shapes = {v.name: given[v.name][2] for v in model.graph.input if v.type.tensor_type.shape.dim[0].dim_param}
    result = rtx.parse(model, shapes)
    assert result["errors"] == []
    assert result["layers"] == dict.fromkeys(["select", "gather", "ffn", "scatter"], "PLUGIN_V3")
    assert 0 < result["plan"] < 100_000


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("plugins", [OPERATORS, ALL_OPERATORS], ids=["plain", "fused"])
def test_a_lowered_scale_of_a_small_model_builds_with_plugins(rtx, plugins, precision, tmp_path):
    """From the exporter through the lowering: every node that the lowering left is a plugin in the network."""
    config = small_config(activation=Activation(4, (3, 4), (0.5, 0.75), (0.75, 0.5)))
    export_bundle(vivid_model(config), tmp_path / "bundle", precision, "a test")
    for scale in (3, 4):
        lowered = lower(tmp_path / "bundle" / f"scale_{scale:02}.onnx", plugins=set(plugins))
        plain = {"ActVarTokenGather", "ActVarTokenScatter"} if len(plugins) > len(OPERATORS) else set()
        assert dict(lowered.plugins) == dict.fromkeys(set(plugins) - plain, config.depth)
        batch = 2
        shapes = {
            value.name: [
                d.dim_value or {"B": batch, "R": 2 * batch}[d.dim_param] for d in value.type.tensor_type.shape.dim
            ]
            for value in lowered.model.graph.input
            if any(d.dim_param for d in value.type.tensor_type.shape.dim)
        }
        result = rtx.parse(lowered.model, shapes)
        assert result["errors"] == []
        assert Counter(result["layers"].values())["PLUGIN_V3"] == sum(lowered.plugins.values())
        assert result["plan"] > 0


def refusal(rtx: Rtx, node: onnx.NodeProto, inputs: list[Input]) -> str:
    """The errors of a model that must not parse or build, as one text."""
    result = rtx.parse(model_of([node], inputs, "y", FP32), {})
    assert result["plan"] == 0
    return "\n".join(result["errors"])


def select_node(keep: Any) -> onnx.NodeProto:
    return OPERATORS["ActVarTokenSelect"].node(["scores"], "y", "select", keep=keep)


@pytest.mark.parametrize(
    ("keep", "scores", "said"),
    [
        (170, (FP32, [R, L]), "ActVarTokenSelect: keep is 170, and a row has only 169 scores."),
        (0, (FP32, [R, L]), "ActVarTokenSelect: keep must be at least 1, and is 0."),
        (3, (FP32, [R, 1025]), "a row has 1025 scores, and at most 1024 are supported"),
        (3, (FP16, [R, L]), "ActVarTokenSelect: scores must be fp32, and is fp16."),
        (3, (FP32, [R, L, 1]), "scores [R, L] has 3 dimensions"),
    ],
)
def test_select_says_what_is_wrong(rtx, keep, scores, said):
    """In the builder's log, by name, before TensorRT's own code."""
    assert said in refusal(rtx, select_node(keep), [("scores", *scores)])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"x": (FP32, [R, K, C])}, "ActVarRoutedFFN: w1 must be fp32, and is fp16."),
        ({"x": (INT32, [R, K, C])}, "ActVarRoutedFFN: x must be fp32, fp16 or bf16, and is int32."),
        ({"logits": (FP16, [R, K, N])}, "ActVarRoutedFFN: scores must be fp32, and is fp16."),
        ({"w1": (FP16, [8, E, C])}, "w1 [N, E, C] has N = 8, and elsewhere it is experts = 16"),
        ({"w2": (FP16, [N, 72, C])}, "w2 [N, E, C] has E = 72, and elsewhere it is 64"),
        ({"logits": (FP32, [R, 5, N])}, "scores [R, K, N] has K = 5, and elsewhere it is 127"),
        (
            {"w1": (FP16, [N, 60, C]), "b1": (FP16, [N, 60]), "w2": (FP16, [N, 60, C])},
            "an expert's number of hidden neurons is 60, and must be a multiple of 8",
        ),
    ],
)
def test_routed_ffn_says_which_tensor_is_wrong(rtx, changed, said):
    """A width that the experts do not divide shows as a number of neurons that is no multiple of 8."""
    inputs = {**inputs_of(), "x": ("x", FP16, [R, K, C])}
    names = ["x", "logits", "w1", "b1", "w2", "b2"]
    given = [(name, *changed.get(name, inputs[name][1:])) for name in names]
    node = OPERATORS["ActVarRoutedFFN"].node(names, "y", "ffn", experts=N, active=A)
    assert said in refusal(rtx, node, given)


@pytest.mark.parametrize(
    ("experts", "active", "said"),
    [
        (16, 17, "active must be 1 to experts = 16, and is 17"),
        (16, 0, "and is 0"),
        (33, 4, "experts must be 1 to 32, and is 33"),
    ],
)
def test_routed_ffn_says_which_attribute_is_wrong(rtx, experts, active, said):
    """Before it looks at any tensor."""
    inputs = {**inputs_of(), "x": ("x", FP16, [R, K, C])}
    names = ["x", "logits", "w1", "b1", "w2", "b2"]
    node = OPERATORS["ActVarRoutedFFN"].node(names, "y", "ffn", experts=experts, active=active)
    if experts > N:
        inputs["logits"] = ("logits", FP32, [R, K, experts])
        inputs |= {name: (name, FP16, [experts, *inputs[name][2][1:]]) for name in ("w1", "b1", "w2")}
    assert said in refusal(rtx, node, [inputs[name] for name in names])


@pytest.mark.parametrize(
    ("indices", "said"),
    [
        ((INT32, [R, K]), "ActVarTokenScatter: indices must be int64, and is int32."),
        ((INT64, [R + 1, K]), "indices [R, K] has R = 5, and elsewhere it is 4"),
        ((INT64, [R, 200]), "200 tokens cannot have different places in a row of 169"),
    ],
)
def test_scatter_says_what_is_wrong(rtx, indices, said):
    """As gather does, which shares its checks."""
    node = OPERATORS["ActVarTokenScatter"].node(["x", "indices", "updated"], "y", "scatter")
    kept = indices[1][1]
    inputs: list[Input] = [("x", FP16, [R, L, C]), ("indices", *indices), ("updated", FP16, [R, kept, C])]
    assert said in refusal(rtx, node, inputs)


@pytest.mark.parametrize(
    ("name", "changed", "to", "said"),
    [
        ("ActVarTokenGatherNorm", {}, 7, "to must be 1 (fp32), 10 (fp16) or 16 (bf16), and is 7."),
        ("ActVarTokenGatherNorm", {"rows": (FP16, [R, L, C])}, 10, "x must be fp32, and is fp16."),
        ("ActVarTokenGatherNorm", {"scale": (FP32, [R, C])}, 10, "scale [R, 1, C] has 2 dimensions"),
        ("ActVarTokenGatherNorm", {"shift": (FP32, [R, 6, C])}, 10, "shift [R, 1, C] has 6 where it must have 1"),
        (
            "ActVarTokenGatherNorm",
            {"scale": (FP32, [R, 1, 64])},
            10,
            "scale [R, 1, C] has C = 64, and elsewhere it is 256",
        ),
        (
            "ActVarTokenScatterGated",
            {"change": (INT32, [R, K, C])},
            None,
            "change must be fp32, fp16 or bf16, and is int32",
        ),
        ("ActVarTokenScatterGated", {"kept": (FP16, [R, K, C])}, None, "kept must be fp32, and is fp16."),
        (
            "ActVarTokenScatterGated",
            {"kept": (FP32, [R, 5, C])},
            None,
            "kept [R, K, C] has K = 5, and elsewhere it is 127",
        ),
    ],
)
def test_fused_operators_say_what_is_wrong(rtx, name, changed, to, said):
    """By the operator's own names, whatever a graph calls its tensors."""
    inputs = {
        **inputs_of(),
        "indices": ("indices", INT64, [R, K]),
        "kept": ("kept", FP32, [R, K, C]),
        "change": ("change", FP16, [R, K, C]),
    }
    gather = name == "ActVarTokenGatherNorm"
    names = ["rows", "indices", *(["scale", "shift"] if gather else ["kept", "gamma", "change"])]
    given = [(n, *changed.get(n, inputs[n][1:])) for n in names]
    more, attributes = (["normed"], {"to": to, "epsilon": 1e-6}) if gather else ([], {})
    assert said in refusal(rtx, ALL_OPERATORS[name].node(names, "y", "ours", *more, **attributes), given)


def test_gather_norm_refuses_tokens_that_no_block_holds(rtx):
    """Of more than 8,192 values; a model of depth 128 would have them."""
    shapes = {"rows": [R, L, 8200], "indices": [R, K], "scale": [R, 1, 8200], "shift": [R, 1, 8200]}
    given: list[Input] = [(n, INT64 if n == "indices" else FP32, shape) for n, shape in shapes.items()]
    node = ALL_OPERATORS["ActVarTokenGatherNorm"].node(list(shapes), "y", "ours", "normed", to=1, epsilon=1e-6)
    assert "a token has 8200 values, and at most 8192 are supported" in refusal(rtx, node, given)


@pytest.mark.parametrize("value", [None, 3.5, [1, 2]], ids=["missing", "a float", "two integers"])
def test_an_attribute_that_is_no_integer_is_refused(rtx, value):
    """TensorRT would pass whatever the graph holds."""
    node = select_node(3)
    kept = [attribute for attribute in node.attribute if attribute.name != "keep"]
    del node.attribute[:]
    node.attribute.extend(kept)
    if value is not None:
        node.attribute.append(helper.make_attribute("keep", value))
    assert "ActVarTokenSelect needs the attribute keep, one integer." in refusal(rtx, node, [("scores", FP32, [R, L])])


@pytest.mark.parametrize("value", [None, 1], ids=["missing", "an integer"])
def test_an_epsilon_that_is_no_float_is_refused(rtx, value):
    """As the other way round."""
    names = ["rows", "indices", "scale", "shift"]
    node = ALL_OPERATORS["ActVarTokenGatherNorm"].node(names, "y", "ours", "normed", to=1, epsilon=1e-6)
    kept = [attribute for attribute in node.attribute if attribute.name != "epsilon"]
    del node.attribute[:]
    node.attribute.extend(kept)
    if value is not None:
        node.attribute.append(helper.make_attribute("epsilon", value))
    given = [(n, *({**inputs_of(), "indices": ("indices", INT64, [R, K])})[n][1:]) for n in names]
    assert "ActVarTokenGatherNorm needs the attribute epsilon, one float." in refusal(rtx, node, given)


# ---- the library and its build


def test_the_library_needs_nothing_that_a_user_may_lack():
    """Neither TensorRT's library nor the CUDA toolkit: one file serves TensorRT and TensorRT-RTX. It shows its own
    functions alone, so that no other library in the process is linked to the CUDA runtime inside it."""
    library = plugin_library_path()
    if not (shutil.which("readelf") and shutil.which("nm")):
        pytest.skip("needs binutils")
    dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    needed = {line.split("[")[1].split(".so")[0] for line in dynamic.splitlines() if "NEEDED" in line}
    assert needed <= {
        "libstdc++",
        "libgcc_s",
        "libc",
        "libm",
        "ld-linux-x86-64",
        "ld-linux-aarch64",
        "libdl",
        "libpthread",
        "librt",
    }
    shown = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1] for line in shown.splitlines()}
    assert {name for name in names if not name.startswith("actvar")} == {"getCreators", "setLoggerFinder"}
    assert "actvarRoutedFfn" in names


@pytest.mark.parametrize(
    ("lacking", "said"),
    [("NVCC", "kernels and plugins: they need nvcc"), ("TENSORRT_INCLUDE_DIR", "plugins: they need NvInferRuntime.h")],
)
def test_configuring_goes_on_without(lacking, said, tmp_path):
    """And says what it left out: the Python packages need none of it."""
    if shutil.which("cmake") is None or (lacking != "NVCC" and shutil.which("nvcc") is None):
        pytest.skip("needs cmake, and nvcc where it is not the one that lacks")
    done = cmake("-S", str(ROOT), "-B", str(tmp_path), f"-D{lacking}=OFF", "-DCMAKE_CUDA_ARCHITECTURES=89")
    assert done.returncode == 0, done.stderr
    assert f"left out          {said}" in done.stdout


def test_an_older_nvcc_builds_for_the_gpus_that_it_knows(tmp_path):
    """One of before Blackwell would refuse the newest. PTX is of the last data centre's GPU that it knows."""
    real = shutil.which("nvcc")
    if shutil.which("cmake") is None or real is None:
        pytest.skip("needs cmake and nvcc")
    older = tmp_path / "nvcc"
    known = "".join(f"compute_{n}\\n" for n in (75, 80, 86, 87, 89, 90))
    older.write_text(f'#!/bin/sh\n[ "$1" = --list-gpu-arch ] && exec printf "{known}"\nexec {real} "$@"\n')
    older.chmod(0o755)
    done = cmake("-S", str(ROOT), "-B", str(tmp_path / "build"), f"-DNVCC={older}")
    assert done.returncode == 0, done.stderr
    assert "architectures     75-real;80-real;86-real;89-real;90-real;90-virtual\n" in done.stdout
