"""The TensorRT backend: what it binds, what it refuses, and that its chain draws ONNX Runtime's pictures.

Without a GPU its code runs over the stand-ins of `gpu_on_host.py`, which compute the very graphs that plans are built
from; every name that it uses of the library is looked up in the real one, and the real parser is asked what a plan of
these graphs binds. With a GPU the mini model's plans are built and drawn with.
"""

import ast
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gpu_on_host
import numpy as np
import onnx
import pytest
from gpu_on_host import CAPABILITY, HostCuda, HostTensorRT
from small_models import small_config, vivid_model

from actvar.bundle.contract import TensorSpec, contract, graph_names
from actvar.bundle.manifest import WEIGHTS_FILE, Manifest, read_manifest
from actvar.bundle.memory import batch_memory, lanes_that_fit
from actvar.bundle.plans import MODULES, RTX, TENSORRT, PlanOptions, PlanTarget, read_plans, write_plans
from actvar.config import MINI, PRESETS, Activation, Sampling
from actvar.errors import ActVARError, BundleError, EngineError
from actvar.export.onnx_export import export_bundle
from actvar.export.operators.lowering import lower
from actvar.export.parity.check import check_parity
from actvar.export.plans.worker import BuildJob, profiles_of
from actvar.files import hash_file
from actvar.runtime.backends import cuda_memory, device_weights, trt, trt_library
from actvar.runtime.backends.cuda_memory import CudaMemory
from actvar.runtime.backends.device_weights import upload_weights
from actvar.runtime.backends.memory import Block
from actvar.runtime.backends.trt_library import DTYPES, EngineLibrary
from actvar.runtime.machine import CACHE_VARIABLE
from actvar.runtime.pictures import Order, Picture, ScaleEnd
from actvar.runtime.sources import open_engines, open_graphs

SAMPLING = Sampling(cfg=2.0, top_k=20, top_p=0.9)
ORDERS = [Order(class_id, number) for class_id, number in ((3, 0), (0, 1), (4, 7), (3, 1), (1, 2**40), (2, 5), (2, 6))]
GPU = f"{CAPABILITY[0]}.{CAPABILITY[1]}"
CONFIG = small_config(activation=Activation(16, (3, 4), (0.75, 0.5), (0.5, 0.25)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    export_bundle(vivid_model(CONFIG), folder, "fp32", "a test")
    return folder


@pytest.fixture(params=[TENSORRT, RTX])
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def host(engine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HostTensorRT:
    """The stand-ins in the places of cuda-python and of one of the two libraries; the other is not installed."""
    stand_in = HostTensorRT(HostCuda(), rtx=engine == RTX)
    monkeypatch.setattr(cuda_memory, "cudart", stand_in.cuda)
    for name, module in MODULES.items():
        monkeypatch.setitem(sys.modules, module, stand_in if name == engine else None)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return stand_in


@pytest.fixture
def bundle(exported: Path, engine: str, tmp_path: Path) -> Path:
    """A bundle whose plans are the lowered graphs."""
    folder = tmp_path / "bundle"
    shutil.copytree(exported, folder)
    gpu_on_host.build_on_host(folder, PlanTarget(engine, HostTensorRT.__version__, (GPU,)), PlanOptions((1, 2, 4)))
    return folder


def plans_of(bundle: Path) -> Path:
    return next((bundle / "plans").iterdir())


def draw(source: Any, with_partials: bool = False, orders: list[Order] = ORDERS) -> list[Picture]:
    return list(source.draw(orders, SAMPLING, 7, with_partials))


def assert_same_pictures(found: list[Picture], wanted: list[Picture]) -> None:
    for picture, same in zip(found, wanted, strict=True):
        for tokens, same_tokens in zip(picture.token_ids, same.token_ids, strict=True):
            np.testing.assert_array_equal(tokens, same_tokens)
        assert np.abs(picture.pixels_HW3.astype(int) - same.pixels_HW3).max() <= 1  # bodies round otherwise
        assert len(picture.partials) == len(same.partials)


# ---- profiles


def test_one_picture_is_drawn_by_its_own_profile(host: HostTensorRT, bundle: Path):
    """Where the engines have one for it; a context never changes its profile."""
    wanted = draw(open_graphs(bundle, 1, threads=1), orders=ORDERS[:5])
    source = open_engines(bundle, 2)
    assert_same_pictures(draw(source, orders=ORDERS[:5]), wanted)  # two batches of two, and one picture
    found = {(context.profile, pictures) for context in host.contexts if (pictures := context.pictures)}
    assert found == ({(0, 1), (0, 2)} if host.rtx else {(0, 1), (1, 2)})


def test_tensorrt_alone_has_a_profile_for_the_fewest_pictures():
    """And only where it is made fastest for another number; every input is in every profile."""

    def profiles(engine: str, batch: tuple[int, int, int]) -> list[dict[str, list]]:
        shapes = {"x": [(2, pictures, 8) for pictures in batch], "uniform": [(pictures,) for pictures in batch]}
        return profiles_of(BuildJob(engine, (), "g", 1, "", (), shapes, "p", None, None, "all", None, None, False))

    apart, whole = profiles(TENSORRT, (1, 8, 64))
    assert apart == {"x": [(2, 1, 8)] * 3, "uniform": [(1,)] * 3}
    assert whole == {"x": [(2, 1, 8), (2, 8, 8), (2, 64, 8)], "uniform": [(1,), (8,), (64,)]}
    assert profiles(RTX, (1, 8, 64)) == [whole] and len(profiles(TENSORRT, (1, 1, 64))) == 1


# ---- memory


def test_a_lane_takes_what_inspect_says(host: HostTensorRT, bundle: Path):
    """Every tensor of a batch, but for what engines work in; and the weights once."""
    manifest = read_manifest(bundle)
    source = open_engines(bundle, 2)
    draw(source, orders=ORDERS[:4])
    for lane in source.engine._lanes:
        taken = sum(block.bytes for place, block in lane._blocks.items() if place != "scratch")
        assert taken == batch_memory(manifest, 2).tensors
    cache = next(block for place, block in source.engine._lanes[0]._blocks.items() if place == "past_kv")
    new_kv = next(block for place, block in source.engine._lanes[0]._blocks.items() if "new_kv" in place)
    assert cache.bytes + new_kv.bytes == batch_memory(manifest, 2).keys_and_values


def test_where_two_batches_do_not_fit_one_is_drawn_at_a_time(host: HostTensorRT, bundle: Path):
    """Known before anything is loaded; what does not fit at all is refused then, with the bytes of each."""
    manifest = read_manifest(bundle)
    weights, batch = manifest.weights.bytes, batch_memory(manifest, 2).tensors
    for lanes in (2, 1):
        host.cuda.memory = weights + lanes * batch + 100_000
        assert lanes_that_fit(manifest, 2, host.cuda.memory, 2) == lanes
    assert open_engines(bundle, 2).engine.lanes == 1
    host.cuda.memory = weights + batch - 1
    with pytest.raises(EngineError, match=r"and 2 pictures at once, .* do not fit a GPU of .* Draw fewer at a time"):
        open_engines(bundle, 2)


def test_the_memory_of_d20_at_64_pictures_is_known():
    """5 GB of keys and values, twice where two batches are under way (fp16: 2 bytes)."""
    model = replace(PRESETS["d20"], activation=Activation())
    shapes = {graph: contract(model, graph) for graph in graph_names(model)}

    def specs(tensors: dict[str, Any]) -> tuple[TensorSpec, ...]:
        halves = ("past_kv", "new_kv")
        return tuple(TensorSpec(n, "float16" if n in halves else "float32", shape) for n, shape in tensors.items())

    graphs = {name: SimpleNamespace(inputs=specs(i), outputs=specs(o)) for name, (i, o) in shapes.items()}
    manifest: Any = SimpleNamespace(model=model, graphs=graphs)
    cached = 20 * 2 * 128 * 20 * (255 + 127) * 64 * 2
    new = 20 * 2 * 128 * 20 * 127 * 64 * 2
    assert batch_memory(manifest, 64).keys_and_values == cached + new == pytest.approx(6.67e9, rel=0.01)


def test_an_engine_of_tensorrt_10_0_is_told_the_address_of_its_memory_alone():
    """It has no set_device_memory."""
    library, context = EngineLibrary(TENSORRT, HostTensorRT(HostCuda(), rtx=False)), SimpleNamespace(device_memory=0)
    library.give_memory(context, Block(4096, 256, None))
    assert context.device_memory == 4096


# ---- drawing


def test_the_chain_of_plans_draws_the_pictures_of_the_graphs(host: HostTensorRT, bundle: Path):
    """Names, shapes, offsets of the weights, the KV window, two lanes, recordings, and a smaller last batch.

    The stand-in fails where a context changes that was recorded, or memory is used that is nobody's.
    """
    wanted = draw(open_graphs(bundle, 2, threads=1))
    source = open_engines(bundle, 2)
    assert_same_pictures(draw(source), wanted)
    assert host.cuda.launches == 0  # two batches on each lane, of which one is smaller: nothing came a third time
    many = [*ORDERS[:-1], *ORDERS[:-1], *ORDERS[:-1]]
    wanted_many = [wanted[place % 6] for place in range(18)]
    assert_same_pictures(draw(source, orders=many), wanted_many)
    assert host.cuda.launches > 0
    assert_same_pictures(draw(source), wanted)  # the smaller batch between recordings


def test_partial_pictures_do_not_disturb_what_was_recorded(host: HostTensorRT, bundle: Path):
    """The decoder runs once for each scale then, from another place each time; its other recordings must stay right."""
    wanted = draw(open_graphs(bundle, 2, threads=1))
    source, pairs = open_engines(bundle, 2), ORDERS[:4]
    for with_partials in (False, False, False, True, True, True, False, True):
        assert_same_pictures(
            draw(source, with_partials, pairs),
            draw(open_graphs(bundle, 2, threads=1), with_partials, pairs) if with_partials else wanted[:4],
        )
    assert host.cuda.launches >= 4


def test_nothing_is_bound_or_allocated_any_more_once_a_chain_is_recorded(host: HostTensorRT, bundle: Path):
    """Zero host work between scales: a third batch of one size is one launch."""
    source = open_engines(bundle, 2)
    draw(source, orders=ORDERS[:6] * 2)
    bindings, blocks = [context.bindings for context in host.contexts], set(host.cuda.live)
    launches = host.cuda.launches
    draw(source, orders=ORDERS[:4])
    assert host.cuda.launches == launches + 2
    assert [context.bindings for context in host.contexts] == bindings
    assert set(host.cuda.live) == blocks


def test_partial_pictures_are_shown_in_the_middle_of_a_chain(host: HostTensorRT, bundle: Path):
    """What is recorded cannot call back, so such a chain is run anew; the recorded ones go on as before."""
    source, shown, pair = open_engines(bundle, 2), [], ORDERS[:2]
    with_partials = draw(source, with_partials=True, orders=pair)
    wanted = [replace(picture, partials=()) for picture in with_partials]
    draw(source, orders=pair * 6)
    launches = host.cuda.launches
    assert launches > 0
    assert_same_pictures(list(source.draw(pair, SAMPLING, 7, on_scale_end=shown.append)), wanted)
    assert host.cuda.launches == launches
    for i, picture in enumerate(with_partials):
        np.testing.assert_array_equal(np.stack([end.pixels_BHW3[i] for end in shown]), np.stack(picture.partials))
    assert_same_pictures(draw(source, orders=pair), wanted)
    assert host.cuda.launches == launches + 1


def test_contexts_are_bound_anew_and_not_made_anew_when_buffers_grow(host: HostTensorRT, bundle: Path):
    """A context takes memory of the GPU's: no more than one for each graph and size, whatever moved in between."""
    source = open_engines(bundle, 4)
    for pictures in (1, 2, 4, 1, 2, 4, 1, 2, 4):
        draw(source, orders=ORDERS[:pictures])
    graphs, lanes, sizes = len(source.engine.manifest.graphs), 2, 3
    assert graphs <= len(host.contexts) <= graphs * lanes * sizes


def test_contexts_of_runs_by_themselves_do_not_pile_up(host: HostTensorRT, bundle: Path, monkeypatch):
    """Parity uploads what every single run reads, mostly to places of its own: a context for each would fill a GPU."""
    monkeypatch.setattr(trt, "_MOST_BOUND", 4)
    engine = open_engines(bundle, 2).engine
    spec = engine.manifest.graphs["decoder"].inputs[0]
    values = np.random.default_rng(0).standard_normal((20, *spec.sized(1))).astype(spec.dtype)
    held = [engine.upload(value) for value in values]
    found = [engine.download(engine.run("decoder", {spec.name: tensor})["image"]) for tensor in held]
    assert len(host.contexts) == 4
    assert len({image.tobytes() for image in found}) == len(found)


def test_everything_is_given_back_when_the_engine_goes(host: HostTensorRT, bundle: Path):
    """A server that opens another bundle must find the memory of the first."""
    source = open_engines(bundle, 2)
    draw(source, orders=ORDERS * 2)
    host.contexts.clear()
    del source
    assert not host.cuda.live and not host.cuda.graphs and not host.cuda.streams


def test_a_batch_beyond_the_plans_is_refused_before_and_while_drawing(host: HostTensorRT, bundle: Path):
    """The profile's range is fixed when a plan is built."""
    with pytest.raises(BundleError, match="draw 1 to 4 pictures at once, and 5 were asked for"):
        open_engines(bundle, 5)
    source = open_engines(bundle, 4)
    too_many = replace(source, batch_size=6)
    with pytest.raises(
        BundleError, match=r"draw 1 to 4 pictures at once, and 6 are to be drawn\. Take another --batch"
    ):
        draw(too_many)
    assert_same_pictures(draw(source, orders=ORDERS[:2]), draw(open_graphs(bundle, 2, threads=1), orders=ORDERS[:2]))


def test_plans_of_two_pictures_and_more_draw_and_encode_one(host: HostTensorRT, exported: Path, engine: str, tmp_path):
    """The last batch of a run, a request by itself and the picture to be edited are fewer than the plans' fewest."""
    folder = tmp_path / "pairs"
    shutil.copytree(exported, folder)
    gpu_on_host.build_on_host(folder, PlanTarget(engine, HostTensorRT.__version__, (GPU,)), PlanOptions((3, 3, 4)))
    wanted, source = open_graphs(exported, 1, threads=1), open_engines(folder, 4)
    assert_same_pictures(draw(source, True, ORDERS[:5]), draw(wanted, True, ORDERS[:5]))
    shown: list[ScaleEnd] = []
    [picture] = source.draw(ORDERS[:1], SAMPLING, 7, on_scale_end=shown.append)
    assert {(end.orders, len(end.pixels_BHW3)) for end in shown} == {((ORDERS[0],), 1)}
    for found, same in zip(source.encode(picture.pixels_HW3), wanted.encode(picture.pixels_HW3), strict=True):
        np.testing.assert_array_equal(found, same)
    report = check_parity(vivid_model(CONFIG), source, 5, engine="the stand-in")
    assert report.pictures == 7, "a batch of four, and one of three"


# ---- kernels that are compiled where they run


@pytest.mark.parametrize("engine", [RTX], indirect=True)
def test_compiled_kernels_are_kept_and_a_damaged_file_is_no_harm(host: HostTensorRT, bundle: Path, tmp_path: Path):
    """They cost seconds a graph; the library says itself whether a file is of use."""
    draw(open_engines(bundle, 2), orders=ORDERS[:2])
    assert host.kernels == []
    (file,) = (tmp_path / "cache" / RTX).iterdir()
    assert file.name == "kernels-11.0.host-a-gpu-on-the-host-8.0.bin"
    assert file.read_bytes() == b"kernels"
    file.write_bytes(b"damaged")
    draw(open_engines(bundle, 2), orders=ORDERS[:2])
    assert host.kernels == [b"damaged"]
    assert file.read_bytes() == b"kernels"


@pytest.mark.parametrize("engine", [RTX], indirect=True)
def test_a_cache_that_cannot_be_written_is_said_and_is_no_harm(host, bundle: Path, tmp_path: Path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    draw(open_engines(bundle, 2), orders=ORDERS[:2])
    assert "kernels are compiled again next time" in caplog.text


# ---- refusals


def test_a_damaged_plan_is_refused_before_the_library_sees_it(host: HostTensorRT, bundle: Path):
    path = plans_of(bundle) / "scale_02.plan"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"scale_02\.plan was altered.*actvar-trt build"):
        open_engines(bundle, 2)


@pytest.mark.parametrize("damage", ["altered", "cut", "missing"])
def test_damaged_weights_are_refused_by_name(host: HostTensorRT, bundle: Path, damage: str):
    """They are hashed while they go to the GPU, so nothing may be drawn before."""
    path = bundle / WEIGHTS_FILE
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[:-1] if damage == "cut" else content)
    with pytest.raises(BundleError, match=rf"{WEIGHTS_FILE} (was|is) .*{damage}"):
        open_engines(bundle, 2)
    assert not host.cuda.live


def test_a_bundle_without_plans_or_with_those_of_another_gpu_says_how_to_build(host, bundle: Path, engine: str):
    host.cuda.cudaGetDeviceProperties = lambda device: (
        gpu_on_host.OK,
        SimpleNamespace(name=b"Another\0", major=9, minor=0, totalGlobalMem=1),
    )
    with pytest.raises(BundleError, match=rf"are for GPUs.*8\.0.*this is Another, 9\.0.*--engine {engine}"):
        open_engines(bundle, 2)


def test_a_plan_that_the_library_refuses_shows_what_it_said(host: HostTensorRT, bundle: Path, engine: str):
    folder = plans_of(bundle)
    (folder / "decoder.plan").write_bytes(b"no plan at all")
    plans = read_plans(folder)
    specs = {**plans.plans, "decoder": replace(plans.plans["decoder"], entry=hash_file(folder / "decoder.plan"))}
    write_plans(folder, replace(plans, plans=specs))
    with pytest.raises(
        EngineError, match=rf"With {engine} 11\.0\.host, .*decoder\.plan cannot be loaded: the magic tag"
    ):
        open_engines(bundle, 2)


def test_a_run_that_fails_shows_what_the_library_said(host: HostTensorRT, bundle: Path, monkeypatch):
    source = open_engines(bundle, 2)
    monkeypatch.setattr(gpu_on_host.HostContext, "execute_async_v3", lambda self, stream: False)
    with pytest.raises(EngineError, match="the graph condition cannot be run: it gave no reason"):
        draw(source)


def without_input(model: onnx.ModelProto) -> None:
    del model.graph.input[[value.name for value in model.graph.input].index("f_hat")]


def with_another_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(onnx.helper.make_tensor_value_info("stranger", 1, [1]))


def of_another_type(model: onnx.ModelProto) -> None:
    next(v for v in model.graph.input if v.name == "f_hat").type.tensor_type.elem_type = 10


def of_another_shape(model: onnx.ModelProto) -> None:
    weight = next(v for v in model.graph.input if v.name == "var.blocks.0.ffn.fc1.weight")
    weight.type.tensor_type.shape.dim[0].dim_value += 1


def for_one_batch(model: onnx.ModelProto) -> None:
    next(v for v in model.graph.input if v.name == "f_hat").type.tensor_type.shape.dim[0].dim_value = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_input, "does not bind the tensor f_hat"),
        (with_another_input, "binds, unknown to its graph, the tensor stranger"),
        (of_another_type, "f_hat as INPUT FLOAT .* and the plan has it as INPUT HALF"),
        (of_another_shape, r"var\.blocks\.0\.ffn\.fc1\.weight as INPUT FLOAT"),
        (for_one_batch, r"f_hat as INPUT FLOAT \[-1, .* as INPUT FLOAT \[1, "),
    ],
)
@pytest.mark.parametrize("engine", [TENSORRT], indirect=True)
def test_a_plan_that_binds_something_else_is_refused_by_name(exported: Path, engine: str, change, message: str):
    """A plan with the right hash may still be of other code: a tensor would be read past its end."""
    manifest, path = read_manifest(exported), Path("scale_02.plan")
    model = lower(exported / "scale_02.onnx").model
    described = described_as_engine(model)
    trt.check_bindings(HostTensorRT, described, manifest, "scale_02", manifest.graphs["scale_02"], path)
    change(model)
    with pytest.raises(BundleError, match=message):
        described = described_as_engine(model)
        trt.check_bindings(HostTensorRT, described, manifest, "scale_02", manifest.graphs["scale_02"], path)


def described_as_engine(model: onnx.ModelProto) -> Any:
    """A stand-in's engine that is asked, and not run."""
    engine = object.__new__(gpu_on_host.HostEngine)
    sides = (("INPUT", model.graph.input), ("OUTPUT", model.graph.output))
    engine.tensors = {v.name: (mode, *gpu_on_host._described(v)) for mode, values in sides for v in values}
    return engine


def test_without_a_gpu_it_is_said_before_anything_is_read(bundle: Path, monkeypatch):
    if cuda_memory.cudart.cudaGetDeviceCount()[1]:
        pytest.skip("there is a GPU")
    with pytest.raises(ActVARError, match=r"no GPU can be used|lists no GPU|Update the driver"):
        open_engines(bundle, 2)


def test_without_a_library_it_is_said_what_to_install(host: HostTensorRT, bundle: Path, monkeypatch):
    for module in MODULES.values():
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EngineError, match=r"There is no TensorRT .* pip install tensorrt for .* tensorrt-rtx for"):
        open_engines(bundle, 2)


def test_plans_with_plugins_need_the_very_library(host: HostTensorRT, bundle: Path, tmp_path: Path, monkeypatch):
    """Kernels of another version would draw something else."""
    folder = plans_of(bundle)
    plans = read_plans(folder)
    library = tmp_path / "plugins.so"
    library.write_bytes(b"plugins")
    specs = {name: replace(spec, plugins={"ActVarRoutedFFN": 2}) for name, spec in plans.plans.items()}
    write_plans(folder, replace(plans, plans=specs, plugin_library=hash_file(library).sha256))
    monkeypatch.setenv("ACTVAR_PLUGIN_LIBRARY", "")
    with pytest.raises(BundleError, match="need our plugins, and there is no plugin library here"):
        open_engines(bundle, 2)
    other = tmp_path / "other.so"
    other.write_bytes(b"others")
    monkeypatch.setenv("ACTVAR_PLUGIN_LIBRARY", str(other))
    with pytest.raises(BundleError, match=r"other\.so is not the plugin library that the plans were built with"):
        open_engines(bundle, 2)


# ---- the real library, as far as it goes without a GPU


@pytest.fixture
def rtx() -> ModuleType:
    return pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")


# What the variables of trt.py and trt_library.py hold.
HOLDS = {
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "config": "IRuntimeConfig",
    "registry": "IPluginRegistry",
    "_runtime": "Runtime",
    "_cache": "IRuntimeCache",
    "severity": "ILogger.Severity",
    "strategies": "DynamicShapesKernelSpecializationStrategy",
    "module": "",
    "ILogger": "ILogger",
    "TensorLocation": "TensorLocation",
    "ExecutionContextAllocationStrategy": "ExecutionContextAllocationStrategy",
    "CudaGraphStrategy": "CudaGraphStrategy",
}


def names_used() -> Iterator[tuple[str, str]]:
    """Class and attribute of everything that the backend uses of the library."""
    for source in (trt, trt_library):
        for node in ast.walk(ast.parse(Path(source.__file__).read_text())):
            if isinstance(node, ast.Attribute):
                holder = getattr(node.value, "id", None) or getattr(node.value, "attr", None)
                if holder in HOLDS and not (holder == "engine" and node.attr == "engine"):
                    yield HOLDS[holder], node.attr


def held(module: ModuleType, path: str) -> Any:
    for part in filter(None, path.split(".")):
        module = getattr(module, part)
    return module


def test_the_real_library_has_every_name_that_is_used(rtx: ModuleType):
    """No GPU will tell: a misspelt name would show on the machine of whoever draws first."""
    used = set(names_used())
    assert {("IExecutionContext", "execute_async_v3"), ("ICudaEngine", "num_io_tensors"), ("", "Runtime")} <= used
    assert len(used) > 30
    missing = [name for path, name in used if not hasattr(held(rtx, path), name)]
    assert missing == []
    assert set(DTYPES.values()) <= set(rtx.DataType.__members__)
    assert {"INPUT", "OUTPUT"} <= set(rtx.TensorIOMode.__members__)


def test_the_stand_in_has_no_name_that_the_real_library_lacks(rtx: ModuleType):
    """Or the tests above would prove nothing."""
    stand_ins = {"HostRuntime": "Runtime", "HostEngine": "ICudaEngine", "HostContext": "IExecutionContext"}
    stand_ins |= {"HostConfig": "IRuntimeConfig", "HostRuntimeCache": "IRuntimeCache"}
    own = {"bindings", "pictures", "tensors", "session", "strategy"}
    for name, path in stand_ins.items():
        public = {attribute for attribute in vars(getattr(gpu_on_host, name)) if not attribute.startswith("_")} - own
        assert public and not [attribute for attribute in public if not hasattr(held(rtx, path), attribute)]


def test_the_real_library_says_why_it_refuses_a_plan(rtx: ModuleType, caplog: pytest.LogCaptureFixture, capfd):
    """Its own logger class, called from C++: the lines are in the error, and nothing is printed."""
    library = EngineLibrary(RTX, rtx)
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(EngineError, match=r"With tensorrt-rtx .*a plan cannot be loaded: ") as refused,
    ):
        library.engine_of(b"\0" * 4096, "a plan")
    assert "it gave no reason" not in str(refused.value)
    assert caplog.messages
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_networks_that_plans_are_built_from_bind_what_the_backend_binds(
    rtx: ModuleType, tmp_path: Path, precision: str
):
    """Names, types and shapes as TensorRT's own parser sees them, for every graph and every weight.

    Plans themselves are loaded on a GPU alone.
    """
    folder = tmp_path / "bundle"
    manifest = export_bundle(vivid_model(CONFIG), folder, precision, "a test")
    library = EngineLibrary(RTX, rtx)
    for graph, spec in manifest.graphs.items():
        builder = rtx.Builder(library._logger)
        network = builder.create_network(0)
        parser = rtx.OnnxParser(network, library._logger)
        assert parser.parse(lower(folder / spec.entry.file).model.SerializeToString()), graph
        described = NetworkAsEngine(rtx, network)
        trt.check_bindings(rtx, described, manifest, graph, spec, folder / f"{graph}.plan")


class NetworkAsEngine:
    """A parsed network that answers as an engine does that was built from it."""

    def __init__(self, module: ModuleType, network: Any):
        self._module = module
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        outputs = [network.get_output(i) for i in range(network.num_outputs)]
        self._tensors = {t.name: (module.TensorIOMode.INPUT, t) for t in inputs}
        self._tensors |= {t.name: (module.TensorIOMode.OUTPUT, t) for t in outputs}
        self.num_io_tensors = len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self._tensors[name][0]

    def get_tensor_dtype(self, name: str) -> Any:
        return self._tensors[name][1].dtype

    def get_tensor_shape(self, name: str) -> Any:
        return self._tensors[name][1].shape

    def get_tensor_location(self, name: str) -> Any:
        return (
            self._module.TensorLocation.HOST
            if self._tensors[name][1].is_shape_tensor
            else self._module.TensorLocation.DEVICE
        )


# ---- weights


@pytest.mark.parametrize("engine", [TENSORRT], indirect=True)
def test_weights_that_grow_while_they_are_read_do_not_leave_their_memory(host: HostTensorRT):
    """The size was right when the file was opened; what has come since is refused at the end, by the hash."""
    upload = device_weights._Upload(CudaMemory(), 5)
    for content in (b"abc", b"defg", b"h"):
        upload.take(content)
    upload.flush()
    upload.stream.wait()
    assert host.cuda.at(upload.block.address, 5).tobytes() == b"abcde"


@pytest.mark.parametrize("size", [1, (8 << 20) - 1, 8 << 20, (8 << 20) + 1, (20 << 20) + 12345])
@pytest.mark.parametrize("engine", [TENSORRT], indirect=True)
def test_weights_arrive_whole_in_pieces(host: HostTensorRT, tmp_path: Path, size: int):
    """Pieces that end in the middle of a block of the file, files that end with a piece, and files below one."""
    content = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    path = tmp_path / WEIGHTS_FILE
    path.write_bytes(content.tobytes())
    block = upload_weights(path, hash_file(path), CudaMemory())
    np.testing.assert_array_equal(host.cuda.at(block.address, size), content)
    assert len(host.cuda.live) == 1


# ---- on a GPU


@pytest.fixture(scope="module")
def on_gpu(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The mini model's bundle with plans for the GPU at hand, built once for each precision."""
    made: dict[str, Path] = {}

    def get(precision: str) -> Path:
        from actvar.export.plans.builder import build_plans
        from actvar.export.plans.engine_library import choose_target, installed
        from actvar.runtime.machine import first_gpu

        if precision not in made:
            folder = tmp_path_factory.mktemp("on-gpu") / "bundle"
            export_bundle(vivid_model(replace(MINI, class_names=(), num_classes=5)), folder, precision, "a test")
            architectures = None if installed(TENSORRT) else [first_gpu().capability]
            build_plans(folder, choose_target(None, architectures), PlanOptions((1, 2, 4)))
            made[precision] = folder
        return made[precision]

    return get


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_on_a_gpu_the_mini_chain_draws_onnx_runtimes_tokens(on_gpu: Callable[[str], Path], precision: str):
    """Token by token, run, recorded and replayed. In fp32 all of them; in fp16 one early flip changes what follows,
    so the first scale is compared, which only a flip of its own can change."""
    folder = on_gpu(precision)
    wanted = draw(open_graphs(folder, 2, threads=0))
    source = open_engines(folder, 2)
    first, *again = (draw(source) for _ in range(4))
    for pictures in again:
        for picture, same in zip(pictures, first, strict=True):
            np.testing.assert_array_equal(picture.pixels_HW3, same.pixels_HW3)
    scales = len(wanted[0].token_ids) if precision == "fp32" else 1
    for picture, same in zip(first, wanted, strict=True):
        for si in range(scales):
            np.testing.assert_array_equal(picture.token_ids[si], same.token_ids[si], err_msg=f"scale {si + 1}")


@pytest.mark.gpu
@pytest.mark.slow
def test_on_a_gpu_a_chain_is_recorded(on_gpu: Callable[[str], Path], caplog: pytest.LogCaptureFixture):
    """No engine may need the host between two scales."""
    source = open_engines(on_gpu("fp16"), 2)
    with caplog.at_level(logging.WARNING):
        draw(source, orders=ORDERS[:4] * 3)
    assert "cannot be recorded" not in caplog.text


def test_a_manifest_without_weights_is_refused(host: HostTensorRT, bundle: Path):
    """A bundle that was built before there was a checkpoint."""
    manifest: Manifest = read_manifest(bundle)
    bare = replace(manifest, weights=replace(manifest.weights, sha256=None))
    with pytest.raises(BundleError, match="has no weights yet"):
        trt.load(bundle, bare, 2)
