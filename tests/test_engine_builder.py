"""Plans from graphs, by the real TensorRT-RTX, which builds without a GPU: what is built, kept, refused and left."""

import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from plugin_build import plugin_library_path
from small_models import small_config

from actvar.bundle.contract import ENCODER, EXPERTS_OPERATOR, graph_names
from actvar.bundle.manifest import Manifest, read_manifest, write_manifest
from actvar.bundle.plans import (
    Gpu,
    PlanManifest,
    PlanOptions,
    PlanTarget,
    plan_folder,
    read_plan,
    read_plans,
    write_plans,
)
from actvar.config import DYNAMIC, FIXED, PRESETS, STATIC, Activation
from actvar.errors import BundleError, EngineError, UsageError
from actvar.export.onnx_export import export_graphs
from actvar.export.operators.lowering import lower
from actvar.export.plans import engine_library
from actvar.export.plans import worker as build_worker
from actvar.export.plans.builder import allows_tf32, build_plans, timing_cache_of
from actvar.export.plans.engine_library import capabilities, choose_target, library_path, load_engine
from actvar.export.plans.processes import Task, run_tasks
from actvar.export.plans.report import plan_table
from actvar.export.plans.worker import BuildJob, BuildResult
from actvar.files import hash_file, locked
from actvar.runtime.machine import CACHE_VARIABLE

pytest.importorskip("tensorrt_rtx", reason="builds plans by TensorRT-RTX: pip install tensorrt-rtx")

MODEL = small_config(activation=Activation(16, (3, 4), (0.75, 0.5), (0.5, 0.25)))
GRAPHS = (*graph_names(MODEL), ENCODER)
ACTIVE = ("scale_03", "scale_04")
OPTIONS = PlanOptions((1, 2, 4))
TOKEN_OPERATORS = ("ActVarTokenSelect", "ActVarTokenGather", "ActVarTokenScatter")

# What the parser makes of a node, where it makes one layer of one kind; other nodes become several or none.
LAYER_OF_NODE = {
    "Conv": "CONVOLUTION",
    "CumSum": "CUMULATIVE",
    "LayerNormalization": "NORMALIZATION",
    "Softmax": "SOFTMAX",
    "TopK": "TOPK",
}


@pytest.fixture(scope="module", autouse=True)
def no_plugins() -> Any:
    """Here sparse operators run as their bodies; with plugins they are the plugins' own tests' matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACTVAR_PLUGIN_LIBRARY", "")
        yield


@pytest.fixture(scope="module")
def target() -> PlanTarget:
    return choose_target("tensorrt-rtx", ("8.9",))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, target: PlanTarget) -> Path:
    """A bundle with all its plans; not to be changed."""
    bundle = tmp_path_factory.mktemp("built") / "bundle"
    export_graphs(MODEL, bundle, "fp16", "a test")
    build_plans(bundle, target, OPTIONS, jobs=2)
    return bundle


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(built, tmp_path / "bundle"))


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Which file each plan is, and of when: a plan that is built anew is another file, though a file system may give it
    the number of one that was removed."""
    states = {path.stem: path.stat() for path in folder.glob("*.plan")}
    return {graph: (state.st_ino, state.st_mtime_ns) for graph, state in states.items()}


def rebuilt(bundle: Path, target: PlanTarget, options: PlanOptions = OPTIONS, graphs: Any = None) -> set[str]:
    """Build, and say which graphs have new plans."""
    folder = plan_folder(bundle, target)
    before = stamps(folder)
    plans = build_plans(bundle, target, options, graphs)
    assert plans == read_plans(folder)
    return {graph for graph, stamp in stamps(folder).items() if before.get(graph) != stamp}


def replace_graph(bundle: Path, graph: str, change: Callable[[onnx.ModelProto], object]) -> None:
    """Change a graph, and the manifest with it, as another export would."""
    manifest, path = read_manifest(bundle), bundle / f"{graph}.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    graphs = {**manifest.graphs, graph: replace(manifest.graphs[graph], entry=hash_file(path))}
    write_manifest(bundle, replace(manifest, graphs=graphs))


def edit_plans(folder: Path, **changes: Any) -> None:
    """Make the plans' manifest say that they were made in another way."""
    write_plans(folder, replace(read_plans(folder), **changes))


def check_layers(bundle: Path, manifest: Manifest, plans: PlanManifest) -> None:
    """Every node of the lowered graphs that stands for one layer is one in the network that the parser made."""
    for graph, plan in plans.plans.items():
        lowered = lower(bundle / f"{graph}.onnx")
        nodes = Counter(node.op_type for node in lowered.model.graph.node)
        expected = {layer: nodes[node] for node, layer in LAYER_OF_NODE.items() if nodes[node]}
        assert {layer: plan.layers.get(layer) for layer in expected} == expected, graph
        assert plan.layers["MATRIX_MULTIPLY"] == nodes["MatMul"] + nodes["Gemm"] + nodes["Einsum"], graph
        assert plan.bodies == lowered.bodies and plan.plugins == {}
        assert not any(layer.startswith("PLUGIN") for layer in plan.layers)
    model = manifest.model
    for si in range(len(model.schedule)):
        plan = plans.plans[f"scale_{si + 1:02d}"]
        expected_bodies = {operator: model.depth for operator in plan.bodies}
        assert bool(plan.bodies) == model.is_active(si) and plan.bodies == expected_bodies
        # qkv, scores, values, projection and the FFN's two of each block, and the head; the rest is embedding and f_hat
        assert plan.layers["MATRIX_MULTIPLY"] >= 6 * model.depth + 1
        assert plan.layers["CUMULATIVE"] >= 1 and plan.layers["TOPK"] >= 1


def test_every_graph_becomes_a_plan(built, target):
    """With the layers that its nodes stand for, no weights inside, and a log and figures beside it."""
    folder = plan_folder(built, target)
    plans = read_plans(folder)
    assert tuple(plans.plans) == GRAPHS
    check_layers(built, read_manifest(built), plans)
    for graph, plan in plans.plans.items():
        assert len(read_plan(folder, plan)) == plan.entry.bytes > 10_000
        assert "Engine generation completed" in (folder / f"{graph}.log").read_text()
        assert plan.seconds > 0 and plan.peak_bytes > 1e8
    assert {path.name for path in folder.iterdir()} == {
        ".lock", "manifest.json", *(f"{graph}.{end}" for graph in GRAPHS for end in ("plan", "log"))
    }  # fmt: skip


@pytest.mark.parametrize("token_choice", [DYNAMIC, FIXED])
@pytest.mark.parametrize("expert_choice", [DYNAMIC, STATIC])
def test_every_choice_builds(tmp_path, target, token_choice, expert_choice):
    """Static experts as products with fewer rows; fixed tokens are moved once a scale, whatever the depth."""
    activation = replace(MODEL.activation, token_choice=token_choice, expert_choice=expert_choice)
    export_graphs(replace(MODEL, activation=activation), tmp_path / "bundle", "fp16", "a test")
    plan = build_plans(tmp_path / "bundle", target, OPTIONS, ["scale_04"]).plans["scale_04"]
    expected = dict.fromkeys(TOKEN_OPERATORS, 1 if token_choice == FIXED else MODEL.depth)
    assert plan.bodies == expected | ({EXPERTS_OPERATOR: MODEL.depth} if expert_choice == DYNAMIC else {})
    assert plan.plugins == {}
    nodes = Counter(node.op_type for node in lower(tmp_path / "bundle" / "scale_04.onnx").model.graph.node)
    assert plan.layers["MATRIX_MULTIPLY"] == nodes["MatMul"] + nodes["Gemm"]


@pytest.mark.parametrize(("precision", "scales"), [("fp32", ()), ("fp16", (1, 2)), ("bf16", (1, 2))])
def test_tf32_is_for_scales_of_half_precision_where_no_scores_choose(tmp_path, precision, scales):
    """Scales 3 and 4 have selectors and routers. The encoder chooses codes by distances of fp32."""
    manifest = export_graphs(MODEL, tmp_path / "bundle", precision, "a test")
    allowed = [graph for graph in manifest.graphs if allows_tf32(manifest, graph)]
    assert allowed == [f"scale_{scale:02d}" for scale in scales]


def test_the_builder_is_told_whether_tf32_is_allowed(target):
    """TensorRT allows it where nothing is said."""
    trt = pytest.importorskip("tensorrt_rtx")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    job = BuildJob(target.engine, (), "g", 1, "", (), {}, "p", None, None, "all", None, None, False)
    for is_allowed in (False, True):
        config = build_worker._config(trt, builder, network, replace(job, tf32=is_allowed))
        assert config.get_flag(trt.BuilderFlag.TF32) is is_allowed


@pytest.mark.slow
@pytest.mark.parametrize("token_choice", [DYNAMIC, FIXED])
def test_static_experts_have_no_plugin_beside_those_that_move_tokens(tmp_path, target, monkeypatch, token_choice):
    """With the library at hand, and the table says so."""
    monkeypatch.setenv("ACTVAR_PLUGIN_LIBRARY", str(plugin_library_path()))
    activation = replace(MODEL.activation, token_choice=token_choice, expert_choice=STATIC)
    export_graphs(replace(MODEL, activation=activation), tmp_path / "bundle", "fp16", "a test")
    plans = build_plans(tmp_path / "bundle", target, OPTIONS, ["scale_04"])
    plan, times = plans.plans["scale_04"], 1 if token_choice == FIXED else MODEL.depth
    assert plan.bodies == {} and plan.layers["PLUGIN_V3"] == sum(plan.plugins.values()) == 3 * times
    assert EXPERTS_OPERATOR not in plan.plugins
    rows = [list(column.cells) for column in plan_table(plans).columns]
    assert rows[2][-1] == str(3 * times) and rows[3][-1] == "0"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_mini_models_graphs_become_plans(tmp_path, precision, target):
    """All thirteen of ActVAR-mini."""
    config = replace(PRESETS["mini"], activation=Activation())
    manifest = export_graphs(config, tmp_path / "mini", precision, "a test")
    plans = build_plans(tmp_path / "mini", target, PlanOptions(), jobs=2)
    assert len(plans.plans) == 13
    check_layers(tmp_path / "mini", manifest, plans)


@pytest.mark.slow
def test_the_graphs_of_d16_become_plans(tmp_path, target):
    """All thirteen at full size, in the memory that a small machine has."""
    config = replace(PRESETS["d16"], activation=Activation())
    manifest = export_graphs(config, tmp_path / "d16", "fp16", "a test")
    plans = build_plans(tmp_path / "d16", target, PlanOptions(), jobs=2)
    assert len(plans.plans) == 13
    check_layers(tmp_path / "d16", manifest, plans)
    assert sum(plan.entry.bytes for plan in plans.plans.values()) < 400e6
    assert max(plan.peak_bytes for plan in plans.plans.values()) < 2e9


def test_plans_that_are_right_are_kept(bundle, target):
    """A second call builds nothing and says nothing of progress."""
    told: list[float] = []
    folder = plan_folder(bundle, target)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"}
    build_plans(bundle, target, OPTIONS, progress=told.append)
    assert told == []
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"}


def test_a_changed_graph_is_built_again_and_no_other(bundle, target):
    replace_graph(bundle, "scale_02", lambda model: setattr(model, "producer_name", "another export"))
    assert rebuilt(bundle, target) == {"scale_02"}


@pytest.mark.parametrize(
    "changed", [PlanOptions((1, 2, 8)), PlanOptions((1, 2, 4), 64), PlanOptions((1, 2, 4), None, 0)]
)
def test_other_options_build_all_again(bundle, target, changed):
    """Only some are asked for here: the others go all the same, for a folder's plans are all of one kind."""
    assert rebuilt(bundle, target, changed, ["condition"]) == {"condition"}
    assert tuple(read_plans(plan_folder(bundle, target)).plans) == ("condition",)
    assert list(stamps(plan_folder(bundle, target))) == ["condition"]


@pytest.mark.parametrize("changes", [{"recipe": "ab" * 32}, {"versions": {"onnx": "1.0"}}])
def test_other_code_builds_all_again(bundle, target, changes):
    """A fault that is mended in the lowering must reach the plans."""
    edit_plans(plan_folder(bundle, target), **changes)
    assert rebuilt(bundle, target, graphs=["condition"]) == {"condition"}
    assert tuple(read_plans(plan_folder(bundle, target)).plans) == ("condition",)


def test_another_plugin_library_builds_what_has_our_operators(bundle, target):
    """Dense graphs hold no plugin, whatever the library."""
    edit_plans(plan_folder(bundle, target), plugin_library="ab" * 32)
    assert rebuilt(bundle, target) == set(ACTIVE)


def test_another_target_has_plans_of_its_own(bundle, target):
    """Several capabilities share one plan; building for them leaves the others' plans alone."""
    before = stamps(plan_folder(bundle, target))
    both = choose_target("tensorrt-rtx", ("12.0", "8.9", "12.0"))
    assert both.gpus == ("8.9", "12.0")
    plans = build_plans(bundle, both, OPTIONS, ["condition"])
    assert plans.target == both and stamps(plan_folder(bundle, target)) == before


@pytest.mark.parametrize("name", ["condition.plan", "condition.log"])
def test_a_damaged_file_is_built_again(bundle, target, name):
    (plan_folder(bundle, target) / name).write_bytes(b"")
    assert rebuilt(bundle, target) == {"condition"}


def test_a_damaged_manifest_builds_again(bundle, target):
    (plan_folder(bundle, target) / "manifest.json").write_text("{")
    assert rebuilt(bundle, target, graphs=["condition"]) == {"condition"}


def test_leftovers_of_killed_builds_are_removed(bundle, target):
    """They are as large as plans."""
    leftover = plan_folder(bundle, target) / ".scale_01.plan.0a1b2c3d.tmp"
    leftover.write_bytes(b"half a plan")
    build_plans(bundle, target, OPTIONS)
    assert not leftover.exists()


@pytest.mark.parametrize("linked", ["plans", "its folder"])
def test_nothing_is_removed_behind_a_link(bundle, target, tmp_path, linked):
    """A bundle may come from anywhere, and plans and logs that it does not know are removed: not those of others."""
    folder = plan_folder(bundle, target)
    link = bundle / "plans" if linked == "plans" else folder
    link.rename(tmp_path / "elsewhere")
    link.symlink_to(tmp_path / "elsewhere")
    of_another = folder.resolve() / "mail.log"
    of_another.write_text("")
    with pytest.raises(BundleError, match=f"{link.name} must be a folder, and is a link"):
        build_plans(bundle, target, OPTIONS)
    assert of_another.exists()


def test_an_unknown_graph_is_refused(bundle, target):
    with pytest.raises(UsageError, match=r"no graph scale_09.*scale_04"):
        build_plans(bundle, target, OPTIONS, ["scale_09"])


def test_an_altered_graph_reaches_no_engine(bundle, target):
    """Its hash is not the manifest's; the plans that are there stay."""
    path = bundle / "condition.onnx"
    path.write_bytes(path.read_bytes() + b"\x00")
    shutil.rmtree(plan_folder(bundle, target))
    with pytest.raises(BundleError, match=r"condition\.onnx was cut or altered.*Export"):
        build_plans(bundle, target, OPTIONS, ["condition"])


def test_a_graph_that_the_parser_refuses_says_why_and_leaves_the_rest(bundle, target):
    """The user gets the engine's own words, and the log."""

    def break_it(model: onnx.ModelProto) -> None:
        next(node for node in model.graph.node if node.op_type == "Softmax").op_type = "Frobnicate"

    replace_graph(bundle, "scale_02", break_it)
    with pytest.raises(EngineError) as failed:
        build_plans(bundle, target, OPTIONS)
    folder = plan_folder(bundle, target)
    message = str(failed.value)
    assert "no plan for scale_02" in message and "Frobnicate" in message
    assert str(folder / "scale_02.log") in message and "[ERROR]" in message
    assert "Frobnicate" in (folder / "scale_02.log").read_text()
    assert tuple(read_plans(folder).plans) == tuple(graph for graph in GRAPHS if graph != "scale_02")
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("fault", "says", "last_words"),
    [
        ("os.abort()", "died of SIGABRT", "terminate called"),
        ("os._exit(3)", "ended with code 3", "terminate called"),
        ("1 / 0", "ended with code 1", "ZeroDivisionError"),
    ],
)
def test_a_library_that_ends_its_process_is_an_error_of_ours(
    bundle, target, tmp_path, monkeypatch, fault, says, last_words
):
    """TensorRT aborts where it meets what it takes for impossible. Its last words are in the message."""
    fake = f"import os\nos.write(2, b'terminate called without a reason\\n')\n{fault}\n"
    (tmp_path / "fakes").mkdir()
    (tmp_path / "fakes" / "tensorrt_rtx.py").write_text(fake)
    monkeypatch.syspath_prepend(tmp_path / "fakes")
    shutil.rmtree(plan_folder(bundle, target))
    with pytest.raises(EngineError) as failed:
        build_plans(bundle, target, OPTIONS, jobs=2)
    assert says in str(failed.value) and last_words in str(failed.value)
    assert not list(plan_folder(bundle, target).glob(".*.tmp"))


def test_a_file_of_the_current_folder_hides_no_module(bundle, target, tmp_path, monkeypatch):
    """A worker starts where the user is, and a bundle's folder is not to be trusted."""
    monkeypatch.chdir(tmp_path)
    for name in ("onnx", "json", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    shutil.rmtree(plan_folder(bundle, target))
    assert rebuilt(bundle, target, graphs=["condition"]) == {"condition"}


def test_progress_rises_to_the_end(bundle, target):
    """One number for all graphs, whichever ends first."""
    told: list[float] = []
    shutil.rmtree(plan_folder(bundle, target))
    build_plans(bundle, target, OPTIONS, ["condition", "scale_01"], jobs=2, progress=told.append)
    assert told[0] == 0 and told == sorted(told) and told[-1] == pytest.approx(1)
    assert len(set(told)) > 4


def test_a_second_build_waits_for_the_first(bundle, target):
    """Two writers of one folder would remove each other's files."""
    folder, done = plan_folder(bundle, target), threading.Event()

    def build() -> None:
        build_plans(bundle, target, OPTIONS)
        done.set()

    with locked(folder / ".lock"):
        thread = threading.Thread(target=build)
        thread.start()
        assert not done.wait(0.5)
    thread.join(60)
    assert done.is_set()


def test_a_bundle_that_cannot_be_written_is_said(bundle, target, monkeypatch):
    def full(path: Path, content: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    shutil.rmtree(plan_folder(bundle, target))
    monkeypatch.setattr("actvar.export.plans.builder.write_plans", full)
    with pytest.raises(BundleError, match="No space left on device"):
        build_plans(bundle, target, OPTIONS, ["condition"])


# ---- the libraries


@pytest.mark.slow
def test_with_the_plugin_library_our_operators_become_plugins(bundle, target, monkeypatch):
    """All of them, in the active scales alone; the plans of dense graphs stay as they are."""
    library = plugin_library_path()
    monkeypatch.setenv("ACTVAR_PLUGIN_LIBRARY", str(library))
    assert rebuilt(bundle, target) == set(ACTIVE)
    plans = read_plans(plan_folder(bundle, target))
    assert plans.plugin_library == hash_file(library).sha256
    for graph in ACTIVE:
        plan = plans.plans[graph]
        expected = lower(bundle / f"{graph}.onnx", plan.plugins).plugins
        assert plan.plugins == expected and plan.layers["PLUGIN_V3"] == sum(expected.values()) == 4 * MODEL.depth
        assert plan.bodies == {}


def test_the_ffn_can_stay_a_body_beside_the_plugins_that_move_tokens(bundle, target, monkeypatch):
    """Dense FFNs are the engine library's own trade: a plugin of ours must win before it is taken."""
    monkeypatch.setenv("ACTVAR_PLUGIN_LIBRARY", str(plugin_library_path()))
    options = replace(OPTIONS, plugins="tokens")
    plans = build_plans(bundle, target, options, ["scale_04"])
    plan = plans.plans["scale_04"]
    assert plan.bodies == {"ActVarRoutedFFN": MODEL.depth}
    assert sum(plan.plugins.values()) == plan.layers["PLUGIN_V3"] == 3 * MODEL.depth
    none = build_plans(bundle, target, replace(OPTIONS, plugins="none"), ["scale_04"])
    assert none.plugin_library is None and none.plans["scale_04"].plugins == {}


def test_a_plugin_library_that_is_none_is_said(bundle, target, tmp_path, monkeypatch):
    """It is loaded by a worker: what cannot be loaded, or ends its process, is an error with the log's words."""
    (tmp_path / "library.so").write_text("no library")
    monkeypatch.setenv("ACTVAR_PLUGIN_LIBRARY", str(tmp_path / "library.so"))
    shutil.rmtree(plan_folder(bundle, target))
    with pytest.raises(EngineError, match=r"library\.so cannot be loaded"):
        build_plans(bundle, target, OPTIONS, ["condition"])
    monkeypatch.setenv("ACTVAR_PLUGIN_LIBRARY", str(tmp_path / "nothing.so"))
    with pytest.raises(UsageError, match=r"nothing\.so, which is no file"):
        build_plans(bundle, target, OPTIONS, ["condition"])


def test_the_default_is_every_capability_that_our_graphs_run_on():
    """Turing has no fp32 matrix products in TensorRT-RTX, and the graphs have some."""
    listed = list(capabilities(load_engine("tensorrt-rtx")))
    assert listed[0] == "7.5" and {"8.6", "8.9", "12.0"} <= set(listed)
    assert choose_target("tensorrt-rtx", None).gpus == tuple(listed[1:])


def test_an_unknown_architecture_is_refused():
    with pytest.raises(UsageError, match=r"builds for 7\.5, 8\.0.*not for '8\.7'"):
        choose_target("tensorrt-rtx", ("8.7",))


def test_tensorrt_takes_no_architecture():
    with pytest.raises(UsageError, match="GPU at hand"):
        choose_target("tensorrt", ("8.9",))


def test_architectures_want_tensorrt_rtx_and_the_message_denies_no_gpu(monkeypatch):
    """With TensorRT alone, and a GPU, what is wrong is the option."""
    monkeypatch.setattr(engine_library, "first_gpu", lambda: Gpu("a card", "8.9"))
    monkeypatch.setattr(engine_library, "installed", lambda engine: engine == "tensorrt")
    with pytest.raises(EngineError, match=r"--gpu-arch is for TensorRT-RTX, which is not installed"):
        choose_target(None, ("8.9",))


@pytest.mark.parametrize("error", [ImportError, FileNotFoundError])
def test_a_module_whose_libraries_are_missing_is_an_error_of_ours(monkeypatch, error):
    """Loaders of shared libraries raise either."""

    def fail(module: str) -> None:
        raise error("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(engine_library, "import_module", fail)
    with pytest.raises(EngineError, match=r"installed and cannot be loaded: libnvinfer\.so\.10"):
        load_engine("tensorrt-rtx")


def test_the_parser_finds_its_library_by_the_name_it_looks_for(tmp_path, monkeypatch):
    """The wheel brings libtensorrt_rtx.so.1, and its parser aborts for want of libtensorrt_rtx.so."""
    monkeypatch.setenv("ACTVAR_CACHE", str(tmp_path))
    monkeypatch.setenv("LD_LIBRARY_PATH", "/somewhere")
    for _ in range(2):
        path = library_path("tensorrt-rtx")
        assert path and path.endswith(":/somewhere")
        assert (Path(path.split(":")[0]) / "libtensorrt_rtx.so").resolve(strict=True).name == "libtensorrt_rtx.so.1"
    assert library_path("tensorrt") is None


def test_a_process_that_was_killed_at_the_librarys_link_is_in_nobodys_way(tmp_path, monkeypatch):
    """It had made the link under another name; the next process of the same number could not."""
    monkeypatch.setenv("ACTVAR_CACHE", str(tmp_path))
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        library_path("tensorrt-rtx")
    path = library_path("tensorrt-rtx")
    assert path
    names = sorted(file.name for file in Path(path.split(":")[0]).iterdir())
    assert names == ["libtensorrt_rtx.lock", "libtensorrt_rtx.so"]


@pytest.mark.parametrize("known", [None, b"not a timing cache"])
def test_a_timing_cache_is_kept_and_may_be_damaged(built, tmp_path, known):
    """TensorRT's, for the GPU at hand; TensorRT-RTX has the same calls, and times nothing."""
    spec, cache = read_manifest(built).graphs["condition"], tmp_path / "cache"
    if known:
        cache.write_bytes(known)
    shapes = {tensor.name: [tensor.sized(n) for n in (1, 2, 4)] for tensor in spec.inputs if "B" in tensor.shape}
    plan, log, graph = (str(tmp_path / name) for name in ("plan", "log", "condition.onnx"))
    shutil.copy(built / "condition.onnx", graph)
    file, weights = (spec.entry.bytes, spec.entry.sha256), tuple(spec.weights)
    job = BuildJob(
        "tensorrt-rtx", ("8.9",), graph, *file, weights, shapes, plan, None, None, "all", None, str(cache), False
    )
    outcomes: list[object] = []
    run_tasks(
        [Task("condition", job, Path(plan), Path(log))], 1, dict(os.environ), quiet, lambda _, o: outcomes.append(o)
    )
    assert isinstance(outcomes[0], BuildResult) and "timing cache" in Path(log).read_text()
    assert cache.read_bytes() not in (b"", known)


def test_times_of_another_plugin_library_are_not_taken(monkeypatch, tmp_path):
    """TensorRT would take them for those of a plugin of the same name and attributes."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    target = PlanTarget("tensorrt", "11.1", ("8.9",), "a GPU")
    plans = PlanManifest(target, PlanOptions(), "", None, {}, {})
    files = [timing_cache_of(replace(plans, plugin_library=library)) for library in (None, "a" * 64, "b" * 64)]
    assert len(set(files)) == 3 and all(file and target.folder in file.name for file in files)
    assert timing_cache_of(replace(plans, target=replace(target, device=""))) is None


def quiet(graph: str, share: float) -> None:
    """Progress that nobody follows."""
