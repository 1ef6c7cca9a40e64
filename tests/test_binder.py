"""Graphs before there are weights, and weights for graphs that are there: the same bundle either way, at any moment."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import in_process
from import_tree import ROOT
from small_models import SMALL_VQVAE, small_config, vivid_model

from actvar.bundle.manifest import Manifest, read_manifest, require_weights, verify, write_manifest
from actvar.checkpoint.model import load_model
from actvar.checkpoint.own import save_model
from actvar.config import Activation, ModelConfig, Sampling
from actvar.errors import ActVARError, BundleError, CheckpointError, UsageError
from actvar.export import bundle_folder
from actvar.export.binder import bind, bind_random
from actvar.export.onnx_export import export_bundle, export_graphs
from actvar.generation import generate
from actvar.models.actvar import ActVAR
from actvar.runtime.pictures import Order
from actvar.runtime.sources import open_graphs

SPARSE = Activation(16, (3, 4), (0.75, 0.5), (0.5, 0.25))
ACTIVE = small_config(activation=SPARSE)
OTHER_CHOICES = small_config(activation=replace(SPARSE, token_choice="fixed", expert_choice="static"))
SAMPLING = Sampling(cfg=2.0, top_k=20, top_p=0.9)


@dataclass(frozen=True)
class Bound:
    """A bundle with weights and plans, and the checkpoints of two models of its shape."""

    bundle: Path
    first: Path
    second: Path

    def contents(self) -> dict[str, bytes]:
        return contents(self.bundle)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its place."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def without_weights(content: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in content.items() if name not in ("weights.bin", "manifest.json")}


def checkpoint(path: Path, model: ActVAR, dtype: torch.dtype = torch.float32) -> Path:
    save_model(model, path, dtype)
    return path


@pytest.fixture
def bound(tmp_path: Path) -> Bound:
    """Alone in its folder, so that what is left behind shows."""
    files, home = tmp_path / "files", tmp_path / "home"
    files.mkdir()
    export_bundle(vivid_model(ACTIVE), home / "bundle", "fp32", "the first")
    plans = home / "bundle" / "plans" / "tensorrt-rtx-8.9"
    plans.mkdir(parents=True)
    for name in ("manifest.json", "scale_01.plan"):
        (plans / name).write_bytes(name.encode())
    (plans / ".lock").touch()
    first, second = (checkpoint(files / f"{seed}.safetensors", vivid_model(ACTIVE, seed)) for seed in (0, 1))
    return Bound(home / "bundle", first, second)


def assert_draws_like(folder: Path, model: ActVAR) -> None:
    """Token by token as the eager model."""
    orders = [Order(3, 0), Order(0, 5)]
    for picture in open_graphs(folder, 2, threads=1).draw(orders, SAMPLING, 7):
        eager = generate(model, [picture.order.class_id], SAMPLING, 7, [picture.order.number])
        for found, wanted in zip(picture.token_ids, eager.token_ids, strict=True):
            np.testing.assert_array_equal(found, wanted[0].numpy())


# ---- graphs without weights


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(
    "config",
    [ACTIVE, small_config(shared_adaln=True), OTHER_CHOICES],
    ids=["active", "dense, shared AdaLN", "fixed tokens, static experts"],
)
def test_graphs_made_without_a_model_are_those_made_with_one(tmp_path, config: ModelConfig, precision: str):
    """Byte for byte, with every offset: a plan built from the one must fit the weights of the other."""
    alone = export_graphs(config, tmp_path / "alone", precision, "test")
    whole = export_bundle(vivid_model(config), tmp_path / "whole", precision, "test")
    assert without_weights(contents(tmp_path / "alone")) == without_weights(contents(tmp_path / "whole"))
    assert alone == replace(whole, weights=replace(whole.weights, sha256=None))
    assert alone == read_manifest(tmp_path / "alone")
    assert (tmp_path / "whole" / "weights.bin").stat().st_size == alone.weights.bytes
    assert not (tmp_path / "alone" / "weights.bin").exists()
    verify(tmp_path / "alone", alone)
    with pytest.raises(BundleError, match=r"has graphs and no weights: .* actvar-trt bind .* --model"):
        require_weights(tmp_path / "alone", alone)


def test_the_weights_file_holds_each_tensor_where_the_manifest_says(tmp_path):
    """Read back by offset alone, against the model: a tensor that is shifted draws noise and no error."""
    model = vivid_model(ACTIVE)
    manifest = export_bundle(model, tmp_path / "bundle", "fp32", "test")
    data, state = (tmp_path / "bundle" / "weights.bin").read_bytes(), model.state_dict()
    kept = {name: state[name] for name in manifest.weights.tensors if name in state}
    kept |= {name: state[name.removesuffix("_t")].T for name in manifest.weights.tensors if name.endswith("weight_t")}
    assert len(kept) > 60
    for name, tensor in kept.items():
        stored = manifest.weights.tensors[name]
        found = np.frombuffer(data, "<f4", tensor.numel(), stored.offset).reshape(stored.shape)
        np.testing.assert_array_equal(found, tensor.numpy(), err_msg=name)


@pytest.mark.slow
def test_graphs_of_the_largest_model_take_little_memory_and_no_disk(tmp_path):
    """Its layout is known from shapes: 9 GB of weights are neither allocated nor written."""
    code = """
import sys
from pathlib import Path
from actvar.config import PRESETS
from actvar.export.onnx_export import export_graphs
from actvar.process_memory import process_memory
manifest = export_graphs(PRESETS["d36"], Path(sys.argv[1]), "fp32", "test")
print(manifest.weights.bytes, process_memory().peak)
"""
    size, peak = map(int, run_python(code, tmp_path / "bundle").stdout.split())
    assert size > 9e9
    assert peak < 0.8e9
    assert sum(path.stat().st_size for path in (tmp_path / "bundle").iterdir()) < 20e6


# ---- weights for graphs


def test_one_export_serves_the_checkpoints_of_two_models(tmp_path, bound):
    """Graphs and plans are the same bytes before and after; each bundle is what an export of its model gives."""
    before = without_weights(bound.contents())
    for path, seed in ((bound.second, 1), (bound.first, 0)):
        manifest = bind(bound.bundle, path)
        assert without_weights(bound.contents()) == before
        model = vivid_model(ACTIVE, seed)
        exported = export_bundle(model, tmp_path / "exported", "fp32", f"checkpoint {path.name}")
        assert manifest == read_manifest(bound.bundle) == exported
        verify(bound.bundle, manifest)
        assert_draws_like(bound.bundle, model)
    assert os.listdir(bound.bundle.parent) == ["bundle"]


def test_graphs_without_weights_are_bound_to_official_files(tmp_path):
    """As torch.save writes them, with buffers or without; class names and sampling are then the checkpoint's."""
    config = small_config(
        vqvae=replace(SMALL_VQVAE, ch=32, norm_groups=32), patch_nums=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    )
    model = vivid_model(config, seed=3)
    torch.save(model.var.state_dict(), tmp_path / "var.pth")
    torch.save(model.vqvae.state_dict(), tmp_path / "vae.pth")
    made_for = replace(config, class_names=("a", "b", "c", "d", "e"), sampling=Sampling(cfg=3.0))
    export_graphs(made_for, tmp_path / "bundle", "fp32", "no weights yet")
    manifest = bind(tmp_path / "bundle", tmp_path / "var.pth", tmp_path / "vae.pth")
    assert manifest.model == config
    assert manifest.source == "checkpoint var.pth"
    assert_draws_like(tmp_path / "bundle", model)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_checkpoint_of_few_bits_is_computed_with_in_fp32(tmp_path, bound, dtype, precision):
    """Sums of embeddings and phi are not rounded on the way: the bytes are those of the model in memory."""
    path = checkpoint(bound.first.parent / "half.safetensors", vivid_model(ACTIVE), dtype)
    export_graphs(ACTIVE, tmp_path / "bundle", precision, "none")
    found = bind(tmp_path / "bundle", path)
    assert found == export_bundle(load_model(path), tmp_path / "exported", precision, found.source)


def test_a_new_folder_leaves_the_old_bundle_as_it_is(bound):
    """And takes no room for what is the same in both, unless the file system knows no second names."""
    before, new = bound.contents(), bound.bundle.parent / "new"
    manifest = bind(bound.bundle, bound.second, target=new)
    assert bound.contents() == before
    assert read_manifest(new) == manifest
    assert without_weights(contents(new)) == without_weights(before)
    for name in ("scale_01.onnx", "plans/tensorrt-rtx-8.9/scale_01.plan"):
        assert (new / name).samefile(bound.bundle / name)
    assert not (new / "weights.bin").samefile(bound.bundle / "weights.bin")


def test_files_are_copied_where_they_cannot_have_two_names(bound, monkeypatch):
    def refuse(*names: Any, **options: Any) -> None:
        raise OSError(95, "Operation not supported")

    before = without_weights(bound.contents())
    monkeypatch.setattr(os, "link", refuse)
    manifest = bind(bound.bundle, bound.second)
    assert without_weights(bound.contents()) == before
    verify(bound.bundle, manifest)


def test_random_weights_fill_a_bundle_of_graphs(tmp_path):
    """For size and speed: it draws, and the manifest says what it is."""
    export_graphs(ACTIVE, tmp_path / "bundle", "fp16", "none")
    manifest = bind_random(tmp_path / "bundle")
    assert manifest.source == "random weights"
    verify(tmp_path / "bundle", manifest)
    assert len(list(open_graphs(tmp_path / "bundle", 1, threads=1).draw([Order(0, 0)], SAMPLING, 0))) == 1


def test_progress_rises_to_one(bound):
    shares: list[float] = []
    bind(bound.bundle, bound.second, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_plan_that_was_built_once_serves_both(tmp_path, precision):
    """Built by TensorRT-RTX before there are weights; after each binding there is nothing to build."""
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("onnx_graphsurgeon")
    from actvar.bundle.plans import PlanOptions
    from actvar.export.plans.builder import build_plans
    from actvar.export.plans.engine_library import choose_target

    def build(told: list[float]) -> dict[str, bytes]:
        target = choose_target("tensorrt-rtx", ["8.9"])
        plans = build_plans(tmp_path / "bundle", target, PlanOptions((1, 1, 2)), ["scale_04"], progress=told.append)
        assert set(plans.plans) == {"scale_04"}
        return contents(tmp_path / "bundle" / "plans")

    export_graphs(ACTIVE, tmp_path / "bundle", precision, "none")
    told: list[float] = []
    built = build(told)
    assert told
    for seed in (0, 1):
        bind(tmp_path / "bundle", checkpoint(tmp_path / f"{seed}.safetensors", vivid_model(ACTIVE, seed)))
        told = []
        assert build(told) == built
        assert told == []


# ---- as a command


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`actvar-trt bind` in this process: its code, what it printed, and what it said."""
    return in_process(monkeypatch, capsys, "bind")


def test_the_command_binds_in_place_or_to_a_new_folder(bound, command):
    code, out, err = command(bound.bundle, "--model", bound.second)
    assert (code, read_manifest(bound.bundle).source) == (0, "checkpoint 1.safetensors")
    assert f"{bound.bundle}: " in out and out.endswith(" MB of weights, fp32, checkpoint 1.safetensors\n")
    assert "See what is in it: actvar-trt inspect" in err
    new = bound.bundle.parent / "new"
    code, out, err = command(bound.bundle, "--random", "--out", new)
    assert (code, read_manifest(new).source) == (0, "random weights")
    assert "draws nothing that means anything" in err
    assert read_manifest(bound.bundle).source == "checkpoint 1.safetensors"


def test_the_command_says_that_a_router_is_random(bound, command):
    path = checkpoint(bound.first.parent / "dense.safetensors", vivid_model(ACTIVE.dense()))
    code, out, err = command(bound.bundle, "--model", path)
    assert (code, out) == (1, "")
    assert "--random-router draws them at random, which only shows size and speed" in err
    code, out, err = command(bound.bundle, "--model", path, "--random-router")
    assert code == 0
    assert "its router and selector are random, and only show size and speed" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "Give one of them"),
        (("--random", "--model", "x.pth"), "Give one of them"),
        (("--random", "--vqvae", "x.pth"), "--vqvae belongs to a --model"),
        (("--random", "--bundle-rates"), "--bundle-rates belongs to a --model"),
    ],
)
def test_the_command_refuses_options_that_contradict_each_other(bound, command, options, message):
    before = bound.contents()
    code, out, err = command(bound.bundle, *options)
    assert (code, out) == (2, "")
    assert message in err
    assert bound.contents() == before


# ---- what does not fit

UNFIT = {
    "depth": (replace(ACTIVE, depth=1), "the depth is 1, and the graphs were made for 2"),
    "patch_nums": (small_config((1, 2, 3, 4), SPARSE), r"patch_nums is \(1, 2, 3, 4\), and the graphs were made for"),
    "classes": (replace(ACTIVE, num_classes=7), "the number of classes is 7, and the graphs were made for 5"),
    "AdaLN": (replace(ACTIVE, shared_adaln=True), "shared AdaLN is True, and the graphs were made for False"),
    "VQVAE": (replace(ACTIVE, vqvae=replace(SMALL_VQVAE, norm_groups=4)), "the VQVAE's norm_groups is 4, and the"),
    "dense": (ACTIVE.dense(), "is a dense VAR without the selectors and routers that the graphs of"),
    "experts": (replace(ACTIVE, activation=replace(SPARSE, experts=8)), "has 8 experts, and the graphs of .* for 16"),
    "fixed": (
        replace(ACTIVE, activation=replace(SPARSE, token_choice="fixed")),
        "has a fixed token_choice, and the graphs of .* were made for a dynamic one",
    ),
    "static": (
        replace(ACTIVE, activation=replace(SPARSE, expert_choice="static")),
        "has a static expert_choice, and the graphs of .* were made for a dynamic one",
    ),
    "rates": (
        replace(ACTIVE, activation=replace(SPARSE, token_rates=(0.75, 0.25))),
        "keeps 6 tokens and 4 experts at scale 4, and the graphs of .* keep 13 and 4",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_checkpoint_of_another_shape_is_refused_by_name(bound, case: str):
    """Before anything is written: the bundle stays as it is, and nothing stands beside it."""
    config, message = UNFIT[case]
    path = checkpoint(bound.first.parent / "other.safetensors", vivid_model(config))
    assert_refused(bound, CheckpointError, rf"other\.safetensors .*{message}", path)


def test_an_activated_checkpoint_is_no_dense_one(tmp_path, bound):
    """Dense graphs would run it, without what makes it what it is."""
    export_graphs(ACTIVE.dense(), tmp_path / "dense", "fp32", "none")
    with pytest.raises(CheckpointError, match=r"is an ActVAR, and the graphs of .*dense are dense"):
        bind(tmp_path / "dense", bound.first)
    with pytest.raises(UsageError, match=r"--random-router is for a dense checkpoint .* the graphs of .* are dense"):
        bind(
            tmp_path / "dense",
            checkpoint(tmp_path / "dense.safetensors", vivid_model(ACTIVE.dense())),
            random_router=True,
        )


def test_a_dense_checkpoint_is_given_a_random_router_if_asked_for(tmp_path, bound):
    """As an export does it: the same scorers, and the manifest says that they are random."""
    path = checkpoint(tmp_path / "dense.safetensors", vivid_model(ACTIVE.dense()))
    manifest = bind(bound.bundle, path, random_router=True)
    source = "checkpoint dense.safetensors, router and selector random"
    assert manifest == export_bundle(load_model(path, activation=SPARSE), tmp_path / "exported", "fp32", source)
    with pytest.raises(UsageError, match=r"0\.safetensors is an ActVAR\. Leave it out"):
        bind(bound.bundle, bound.first, random_router=True)


def test_a_checkpoint_is_run_at_the_rates_of_the_graphs_if_asked_for(tmp_path, bound):
    """Its tensors are the same for all rates."""
    model = vivid_model(replace(ACTIVE, activation=Activation(16, (2,), (0.5,), (0.5,))))
    manifest = bind(bound.bundle, checkpoint(tmp_path / "other.safetensors", model), bundle_rates=True)
    assert manifest.model.activation == SPARSE
    assert_draws_like(bound.bundle, vivid_model(ACTIVE))


def assert_refused(bound: Bound, kind: type[ActVARError], message: str, path: Path, **options: Any) -> None:
    """And nothing has changed, nor is anything left."""
    before = bound.contents()
    with pytest.raises(kind, match=message):
        bind(bound.bundle, path, **options)
    assert bound.contents() == before
    assert os.listdir(bound.bundle.parent) == ["bundle"]


def test_values_that_cannot_be_used_are_refused_by_name(tmp_path):
    """In the middle of the work; the bundle that was there stays."""
    model = vivid_model(ACTIVE)
    path = checkpoint(tmp_path / "first.safetensors", model)
    export_bundle(model, tmp_path / "home" / "bundle", "fp16", "the first")
    bound = Bound(tmp_path / "home" / "bundle", path, path)
    model.var.blocks[1].ffn.fc1.weight[0, 0] = -1e5
    large = checkpoint(tmp_path / "large.safetensors", model)
    assert_refused(bound, CheckpointError, r"var\.blocks\.1\.ffn\.fc1\.weight holds values that fp16 cannot", large)
    model.var.blocks[1].ffn.fc1.weight[0, 0] = torch.nan
    torch.save(model.var.state_dict(), tmp_path / "nan.pth")
    assert_refused(bound, CheckpointError, "VQVAE", tmp_path / "nan.pth")
    raw = bytearray(large.read_bytes())
    at = raw.index(np.float32(-1e5).tobytes())
    raw[at : at + 4] = np.float32(np.nan).tobytes()
    large.write_bytes(raw)
    assert_refused(bound, CheckpointError, r"large\.safetensors: var\.blocks\.1\.ffn\.fc1\.weight: .* found NaN", large)


def test_a_bundle_that_is_not_whole_is_refused(bound):
    """A graph that was altered would be given weights, and be trusted for them."""
    graph = bound.bundle / "scale_02.onnx"
    graph.write_bytes(graph.read_bytes() + b" ")
    assert_refused(bound, BundleError, r"scale_02\.onnx was cut or altered", bound.second)


def test_a_layout_that_is_not_ours_is_refused(bound):
    """The graphs would read every tensor at the wrong place."""
    manifest = read_manifest(bound.bundle)
    tensors = dict(manifest.weights.tensors)
    one, other = "var.blocks.0.attn.proj.bias", "var.blocks.1.attn.proj.bias"
    tensors[one], tensors[other] = tensors[other], tensors[one]
    write_manifest(bound.bundle, replace(manifest, weights=replace(manifest.weights, tensors=tensors)))
    assert_refused(bound, BundleError, "lays its weights out in a way that this version does not write", bound.second)


def test_a_link_among_the_plans_is_refused(bound, tmp_path):
    """It could lead to any file, which would then seem to be part of the bundle."""
    (tmp_path / "secret").write_text("")
    (bound.bundle / "plans" / "tensorrt-rtx-8.9" / "scale_02.plan").symlink_to(tmp_path / "secret")
    assert_refused(bound, BundleError, r"scale_02\.plan must be a plain file", bound.second)


def test_plans_that_lie_elsewhere_are_refused(bound, tmp_path):
    """The folder itself may be a link, too, and all that it leads to would seem to be part of the bundle."""
    (bound.bundle / "plans").rename(tmp_path / "elsewhere")
    (bound.bundle / "plans").symlink_to(tmp_path / "elsewhere")
    assert_refused(bound, BundleError, r"plans must be a plain file or a folder", bound.second)


def test_folders_in_folders_among_the_plans_are_refused(bound):
    """There may be as many as a path is long, and no build makes them."""
    (bound.bundle / "plans" / Path(*"abcdefghijkl")).mkdir(parents=True)
    assert_refused(bound, BundleError, "h lies deeper than any plan does", bound.second)


@pytest.mark.parametrize("target", ["plans/new", "new"])
def test_a_bundle_is_not_written_into_itself(bound, target):
    assert_refused(bound, UsageError, "lies inside the bundle", bound.second, target=bound.bundle / target)


def test_another_folder_is_not_replaced(bound, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("a letter")
    assert_refused(bound, BundleError, "mine is there and is not a bundle", bound.second, target=tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["letter"]


# ---- at any moment

# Every child is killed by its own hand just before the nth of the calls that change something on the disk, of which
# Python's audit events tell; the parent looks at what it left. One thread, so that a fork has all that PyTorch needs.
KILL_EVERYWHERE = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from actvar.export.binder import bind

bundle, checkpoint = Path(sys.argv[1]), Path(sys.argv[2])
changes = {"os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "ctypes.dlsym"}
for moment in range(10000):
    child = os.fork()
    if not child:
        count = 0
        def kill(event, arguments):
            global count
            if event in changes or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                count += 1
                if count > moment:
                    signal.raise_signal(signal.SIGKILL)
        sys.addaudithook(kill)
        bind(bundle, checkpoint)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        print("done" if status == 0 else "failed")
        break
    print(moment, flush=True)
    sys.stdin.readline()
"""


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Code in a fresh interpreter."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)


def test_a_kill_at_any_moment_leaves_the_old_bundle_or_the_new_one(bound):
    """Whole, with graphs and plans; and the next writer clears away what was left beside it."""
    old = read_manifest(bound.bundle)
    shared = without_weights(bound.contents())
    new = bind(bound.bundle, bound.second, target=bound.bundle.parent.parent / "new")
    command = [sys.executable, "-c", KILL_EVERYWHERE, bound.bundle, bound.second]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    found: list[Manifest] = []
    for line in process.stdout:
        if line.strip() == "done":
            break
        assert line.strip().isdigit()
        found.append(read_manifest(bound.bundle))
        verify(bound.bundle, found[-1])
        assert without_weights(bound.contents()) == shared
        assert len(list(bound.bundle.parent.iterdir())) <= 2
        process.stdin.write("\n")
        process.stdin.flush()
    process.communicate()
    assert process.returncode == 0
    assert len(found) > 30
    assert found == sorted(found, key=lambda manifest: manifest == new)
    assert {manifest.source for manifest in found} <= {old.source, new.source}
    assert read_manifest(bound.bundle) == new
    assert os.listdir(bound.bundle.parent) == ["bundle"]


def test_a_folder_that_is_being_written_is_no_leftover(bound):
    """Two processes write the same target: the one that ends last has it, and neither takes the other's files."""
    with bundle_folder.folder_written_whole(bound.bundle) as unfinished:
        (unfinished / "manifest.json").write_bytes((bound.bundle / "manifest.json").read_bytes())
        bind(bound.bundle, bound.second)
        assert os.listdir(unfinished) == ["manifest.json"]
    assert os.listdir(bound.bundle) == ["manifest.json"]


def test_without_an_exchange_of_names_the_bundle_is_replaced_in_two_steps(bound, monkeypatch):
    """As on a file system that has none."""
    monkeypatch.setattr(bundle_folder, "_exchanged", lambda one, other: False)
    manifest = bind(bound.bundle, bound.second)
    verify(bound.bundle, manifest)
    assert os.listdir(bound.bundle.parent) == ["bundle"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_a_checkpoint_is_not_held_twice(tmp_path, bound, dtype):
    """The peak of a process, less what the interpreter and PyTorch take, is below 1.3 times the file."""
    config = small_config(depth=8, activation=SPARSE)
    path = checkpoint(tmp_path / "large.safetensors", vivid_model(config), dtype)
    export_graphs(config, tmp_path / "large", "fp32", "none")
    code = """
import sys
from pathlib import Path
from actvar.export.binder import bind
from actvar.process_memory import process_memory

small, small_checkpoint, large, large_checkpoint = map(Path, sys.argv[1:])
bind(small, small_checkpoint)
before = process_memory().peak
bind(large, large_checkpoint)
print(process_memory().peak - before)
"""
    grown = int(run_python(code, bound.bundle, bound.second, tmp_path / "large", path).stdout)
    assert grown < 1.3 * path.stat().st_size
