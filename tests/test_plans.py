"""The manifest of a plan folder, and which plans may be loaded: nothing that does not fit reaches an engine."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_models import small_config

from actvar.bundle.contract import TensorSpec, contract, graph_names
from actvar.bundle.json_form import content_hash
from actvar.bundle.manifest import GraphSpec, Manifest, StoredTensor, WeightsSpec
from actvar.bundle.plans import (
    Gpu,
    PlanManifest,
    PlanOptions,
    PlanSpec,
    PlanTarget,
    plan_folder,
    read_plan,
    read_plans,
    usable_plans,
    write_plans,
)
from actvar.errors import BundleError
from actvar.files import FileEntry, hash_file

MODEL = small_config()
CARD = Gpu("NVIDIA GeForce RTX 4090", "8.9")
TARGET = PlanTarget("tensorrt-rtx", "1.7.1.116", ("8.6", "8.9", "12.0"))
OF_ONE_GPU = PlanTarget("tensorrt", "11.1.0.106", ("8.9",), CARD.name)
LIBRARY = "ab" * 32

Edit = Callable[[dict[str, Any]], object]


def sha256_of(number: int) -> str:
    return f"{number:064x}"


def bundle_manifest() -> Manifest:
    """A bundle whose graphs have the hashes 0, 1, 2, ..."""

    def tensors(shapes: dict[str, Any]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name, "float32", shape) for name, shape in shapes.items())

    graphs = {
        name: GraphSpec(FileEntry(f"{name}.onnx", 1, sha256_of(i)), *map(tensors, contract(MODEL, name)), {})
        for i, name in enumerate(graph_names(MODEL))
    }
    weights = WeightsSpec(24, None, {"a": StoredTensor("float32", (2, 3), 0)})
    return Manifest(MODEL, "fp16", "a test", {}, weights, graphs)


def plans_of(folder: Path, target: PlanTarget = TARGET, options: PlanOptions | None = None) -> PlanManifest:
    """Write a plan of a few bytes for every graph, and their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    plans = {}
    for i, name in enumerate(graph_names(MODEL)):
        (folder / f"{name}.plan").write_bytes(name.encode() * 100)
        (folder / f"{name}.log").write_text("it went well\n")
        files = hash_file(folder / f"{name}.plan"), hash_file(folder / f"{name}.log")
        plans[name] = PlanSpec(*files, sha256_of(i), {"TOPK": 2, "PLUGIN_V3": 1}, {"ActVarX": 1}, {}, 1.5, 1 << 30)
    manifest = PlanManifest(target, options or PlanOptions(), LIBRARY, LIBRARY, {"onnx": "1.23"}, plans)
    write_plans(folder, manifest)
    return manifest


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle's folder with plans for TARGET; nothing but the plans is in it."""
    plans_of(plan_folder(tmp_path / "bundle", TARGET))
    return tmp_path / "bundle"


def use(bundle: Path, target: PlanTarget = TARGET, gpu: Gpu = CARD, pictures: int = 1) -> tuple[Path, PlanManifest]:
    return usable_plans(bundle, bundle_manifest(), target.engine, target.version, gpu, pictures)


def edit(folder: Path, change: Edit, seal: bool = True) -> None:
    """Change the fields of a plan folder's manifest, and make its hash right again."""
    path = folder / "manifest.json"
    data = json.loads(path.read_bytes())
    data.pop("sha256")
    change(data)
    path.write_text(json.dumps({**data, "sha256": content_hash(data) if seal else LIBRARY}))


@pytest.mark.parametrize("target", [TARGET, OF_ONE_GPU])
@pytest.mark.parametrize("options", [PlanOptions(), PlanOptions((2, 2, 2), 512, 0)])
def test_what_is_written_is_read_back(tmp_path, target, options):
    """With a library and without, with options and without."""
    written = plans_of(tmp_path, target, options)
    assert read_plans(tmp_path) == written
    write_plans(tmp_path, replace(written, plugin_library=None, plans={}))
    assert read_plans(tmp_path) == replace(written, plugin_library=None, plans={})


def test_folders_of_different_targets_have_different_names():
    """The name is for people, and must hold what tells targets apart; it must not lead anywhere else."""
    others = (
        replace(TARGET, version="1.8.0"),
        replace(TARGET, gpus=("8.9",)),
        replace(TARGET, engine="tensorrt"),
        OF_ONE_GPU,
        replace(OF_ONE_GPU, device="../NVIDIA L4"),
    )
    names = {target.folder for target in (TARGET, *others)}
    assert len(names) == 6
    assert TARGET.folder == "tensorrt-rtx-8.6+8.9+12.0-1.7.1.116"
    assert OF_ONE_GPU.folder == "tensorrt-nvidia-geforce-rtx-4090-8.9-11.1.0.106"
    assert not any("/" in name or name.startswith(".") for name in names)


@pytest.mark.parametrize(
    ("batch", "workspace", "aux_streams"),
    [
        ((0, 1, 1), None, None),
        ((2, 1, 3), None, None),
        ((1, 1, 1 << 17), None, None),
        ((1, 1, 1), 0, None),
        ((1, 1, 1), None, -1),
    ],
)
def test_options_that_no_library_takes_are_refused(batch, workspace, aux_streams):
    with pytest.raises(ValueError, match="must"):
        PlanOptions(batch, workspace, aux_streams)
    with pytest.raises(ValueError, match="must be all, tokens, none, got 'some'"):
        PlanOptions(plugins="some")


EDITS: dict[str, tuple[Edit, str]] = {
    "another format": (lambda data: data.update(format="actvar-bundle"), "format"),
    "a version to come": (lambda data: data.update(version=2), "version"),
    "a field too many": (lambda data: data.update(more=1), "more"),
    "no recipe": (lambda data: data.pop("recipe"), "recipe"),
    "an unknown engine": (lambda data: data["target"].update(engine="openvino"), "target.engine"),
    "no GPU": (lambda data: data["target"].update(gpus=[]), "target.gpus"),
    "an unreadable GPU": (lambda data: data["target"].update(gpus=["sm89"]), "target.gpus"),
    "an unknown choice of plugins": (lambda data: data["options"].update(plugins="some"), "options.plugins"),
    "a batch of two numbers": (lambda data: data["options"].update(batch=[1, 8]), "options.batch"),
    "a descending batch": (lambda data: data["options"].update(batch=[1, 8, 4]), "options.batch"),
    "a workspace of words": (lambda data: data["options"].update(workspace="1G"), "options.workspace"),
    "a short hash": (lambda data: data.update(plugin_library="ab"), "plugin_library"),
    "a graph of another name": (lambda data: data["plans"].update({"../x": data["plans"]["decoder"]}), "plans"),
    "a file elsewhere": (lambda data: data["plans"]["decoder"]["plan"].update(file="../decoder.plan"), "plan.file"),
    "another graph's file": (lambda data: data["plans"]["decoder"]["plan"].update(file="condition.plan"), "plan.file"),
    "a size below 0": (lambda data: data["plans"]["decoder"]["log"].update(bytes=-1), "log.bytes"),
    "layers without number": (lambda data: data["plans"]["decoder"]["layers"].update(TOPK=None), "layers.TOPK"),
    "seconds that are none": (lambda data: data["plans"]["decoder"].update(seconds=-1), "seconds"),
    "memory as a float": (lambda data: data["plans"]["decoder"].update(peak_bytes=1e9), "peak_bytes"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_manifest_out_of_form_is_refused(bundle, name):
    """Whoever can compute the hash can write anything: the form must hold all the same, by file and field."""
    change, field = EDITS[name]
    folder = plan_folder(bundle, TARGET)
    edit(folder, change)
    with pytest.raises(BundleError) as refused:
        read_plans(folder)
    assert field in str(refused.value) and str(folder / "manifest.json") in str(refused.value)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        use(bundle)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"format": NaN}', b"\xff\xfe"])
def test_a_manifest_that_is_no_json_is_refused(bundle, content):
    folder = plan_folder(bundle, TARGET)
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        use(bundle)


def test_an_edited_manifest_is_refused(bundle):
    """An edit in form shows by the hash."""
    edit(plan_folder(bundle, TARGET), lambda data: data["options"].update(batch=[1, 1, 999]), seal=False)
    with pytest.raises(BundleError, match="was edited"):
        use(bundle)


def test_usable_plans_are_found_among_others(bundle):
    """Folders of other targets, damaged ones and stray files do not stand in the way."""
    plans_of(plan_folder(bundle, OF_ONE_GPU), OF_ONE_GPU)
    plans_of(bundle / "plans" / "a-copy-of-another-version", replace(TARGET, version="1.6"))
    (bundle / "plans" / "a-stray-file").write_text("")
    (bundle / "plans" / "an-empty-folder").mkdir()
    folder, plans = use(bundle)
    assert folder == plan_folder(bundle, TARGET) and plans.target == TARGET
    assert use(bundle, OF_ONE_GPU)[0] == plan_folder(bundle, OF_ONE_GPU)


def drop_decoder(data: dict[str, Any]) -> None:
    del data["plans"]["decoder"]


def of_another_depth(data: dict[str, Any]) -> None:
    for plan in data["plans"].values():
        plan["graph_sha256"] = LIBRARY


@pytest.mark.parametrize(
    ("change", "asked", "says"),
    [
        (lambda data: None, {"target": OF_ONE_GPU}, "are tensorrt-rtx's, and tensorrt was asked for"),
        (lambda data: None, {"target": replace(TARGET, version="1.8")}, "1.7.1.116, and 1.8 is installed"),
        (lambda data: None, {"gpu": Gpu("NVIDIA H100", "9.0")}, "this is NVIDIA H100, 9.0"),
        (lambda data: None, {"pictures": 65}, "draw 1 to 64 pictures at once, and 65 were asked for"),
        (of_another_depth, {}, "are of other graphs than this bundle's: condition, scale_01"),
        (drop_decoder, {}, "are not complete: decoder"),
    ],
)
def test_plans_that_do_not_fit_are_refused_by_what_is_wrong(bundle, change, asked, says):
    """And the message ends with the command that builds the right ones."""
    edit(plan_folder(bundle, TARGET), change)
    with pytest.raises(BundleError) as refused:
        use(bundle, **asked)
    assert says in str(refused.value) and str(plan_folder(bundle, TARGET)) in str(refused.value)
    assert f"actvar-trt build --model {bundle}" in str(refused.value)


def test_the_fault_of_the_closest_plans_is_named(bundle):
    """Of plans for another engine and plans that lack a graph, the latter are what the user meant."""
    plans_of(plan_folder(bundle, OF_ONE_GPU), OF_ONE_GPU)
    edit(plan_folder(bundle, TARGET), drop_decoder)
    with pytest.raises(BundleError, match="not complete"):
        use(bundle)


def test_a_plan_for_one_gpu_is_for_no_other_of_its_capability(bundle):
    """TensorRT times its kernels on the very GPU."""
    plans_of(plan_folder(bundle, OF_ONE_GPU), OF_ONE_GPU)
    with pytest.raises(BundleError, match=r"this is NVIDIA L4, 8\.9"):
        use(bundle, OF_ONE_GPU, Gpu("NVIDIA L4", "8.9"))


def test_a_bundle_without_plans_says_how_to_build(tmp_path):
    with pytest.raises(BundleError, match=r"has no plans.*--engine tensorrt-rtx --gpu-arch 8\.9"):
        use(tmp_path)


@pytest.mark.parametrize("linked", ["plans", "its folder"])
def test_plans_that_lie_elsewhere_are_not_read(bundle, tmp_path, linked):
    """A bundle may come from anywhere, and a link could lead anywhere."""
    folder = bundle / "plans" if linked == "plans" else plan_folder(bundle, TARGET)
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=f"{re.escape(folder.name)} must be a folder, and is a link"):
        use(bundle)


def test_a_plan_is_read_whole(bundle):
    folder, plans = use(bundle)
    assert read_plan(folder, plans.plans["decoder"]) == b"decoder" * 100


@pytest.mark.parametrize(
    "damage",
    [
        lambda plan: plan.write_bytes(plan.read_bytes()[:-1]),
        lambda plan: plan.write_bytes(plan.read_bytes()[:-1] + b"!"),
        lambda plan: plan.unlink(),
        lambda plan: shutil.move(plan, plan.with_name("x")) and plan.symlink_to("x"),
    ],
)
def test_a_damaged_plan_is_refused_by_name(bundle, damage):
    """Cut, altered, missing, or a link."""
    folder, plans = use(bundle)
    damage(folder / "decoder.plan")
    with pytest.raises(BundleError, match=r"decoder\.plan.*Build the plans again"):
        read_plan(folder, plans.plans["decoder"])
