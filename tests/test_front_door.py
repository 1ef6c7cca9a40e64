"""`actvar.Pipeline`: any model by its name, drawn with and saved as the Hub takes it; where it may, without PyTorch."""

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import gpu_on_host
import numpy as np
import pytest
import torch
import yaml
from gpu_on_host import CAPABILITY, HostCuda, HostTensorRT
from small_models import small_config, vivid_model

import actvar
from actvar import Pipeline, __version__
from actvar.bundle.manifest import read_manifest
from actvar.bundle.plans import MODULES, TENSORRT, PlanTarget
from actvar.checkpoint.own import save_model
from actvar.config import Activation, ModelConfig
from actvar.errors import ActVARError, BundleError, UsageError
from actvar.export import front_door, onnx_export
from actvar.export.onnx_export import export_bundle
from actvar.export.plans import builder, engine_library
from actvar.runtime import api
from actvar.runtime.backends import cuda_memory
from actvar.runtime.machine import CACHE_VARIABLE, cache_folder

NAMES = ("red-disc", "green-disc", "red-star", "green-star", "brown-crescent")
CONFIG = replace(small_config(activation=Activation(16, (3, 4), (0.75, 0.5), (0.5, 0.25))), class_names=NAMES)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and the bundle that it makes."""
    folder = tmp_path_factory.mktemp("models")
    save_model(vivid_model(CONFIG), folder / "small.safetensors", torch.float32)
    export_bundle(vivid_model(CONFIG), folder / "small", "fp32", "a test")
    return folder


@pytest.fixture
def checkpoint(pristine: Path) -> Path:
    return pristine / "small.safetensors"


@pytest.fixture
def bundle(pristine: Path) -> Path:
    return pristine / "small"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and a cache of its own."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def pixels(pipe: api.Pipeline, labels: object = (4, 1), seed: int = 7) -> list[bytes]:
    return [image.tobytes() for image in pipe(labels, seed=seed).images]


def fresh(code: str, *arguments: object, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Code in an interpreter of its own."""
    environment = {**os.environ, **({CACHE_VARIABLE: str(cache)} if cache else {})}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=300,
    )


# ---- whatever names a model


def test_every_sort_of_name_opens_the_same_model(checkpoint: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """A bundle, a checkpoint, a path object, a relative name: the same bytes."""
    monkeypatch.chdir(bundle.parent)
    wanted = pixels(Pipeline.from_bundle("small"))
    for name in (bundle, str(bundle), "small", Path("small"), checkpoint, "small.safetensors", Path(checkpoint.name)):
        with Pipeline.from_pretrained(name, threads=1) as pipe:
            assert pixels(pipe) == wanted
            assert pipe.name == "small"


def test_the_default_model_ships_with_the_package():
    """Five lines, and nothing to download."""
    with Pipeline.from_pretrained(batch_size=2, progress_bar=False) as pipe:
        assert pipe.name == "actvar-mini"
        made = pipe("brown-crescent", num_images_per_label=2)
        assert made.labels == ("88 (brown-crescent)",) * 2 and made.images[0].size == (64, 64)


def test_pytorch_draws_the_same_pictures_and_knows_its_file(checkpoint: Path, bundle: Path):
    """A pixel may differ by one where rounding moved it over a border."""
    graphs = Pipeline.from_bundle(bundle)([4, 1], seed=7, output_type="np").images
    with Pipeline.from_pretrained(checkpoint, backend="torch") as pipe:
        assert np.abs(pipe([4, 1], seed=7, output_type="np").images - graphs).max() <= 1.01 / 255
        assert pipe.bundle is None and pipe.checkpoint and pipe.checkpoint.path == checkpoint


def test_a_checkpoint_is_exported_once(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """The second time the cache has it, and the exporter is not touched."""
    first = pixels(Pipeline.from_pretrained(checkpoint))
    monkeypatch.setattr(onnx_export, "export_bundle", None)
    again = Pipeline.from_pretrained(checkpoint)
    assert pixels(again) == first
    assert again.bundle and again.bundle.is_relative_to(cache_folder())


def test_a_precision_is_another_bundle(checkpoint: Path):
    """And the manifest says which."""
    half = Pipeline.from_pretrained(checkpoint, precision="fp16")
    assert half.bundle and read_manifest(half.bundle).precision == "fp16"
    assert len(list((cache_folder() / "bundles").glob("*/manifest.json"))) == 1


def test_a_damaged_copy_in_the_cache_is_made_anew(checkpoint: Path, capfd: pytest.CaptureFixture[str]):
    """It is only a copy; nothing is said where nothing is to be shown."""
    wanted = pixels(Pipeline.from_pretrained(checkpoint, progress_bar=False))
    (weights,) = cache_folder().glob("bundles/*/weights.bin")
    for shown in (True, False):
        weights.write_bytes(weights.read_bytes()[:-1])
        assert pixels(Pipeline.from_pretrained(checkpoint, progress_bar=shown)) == wanted
        assert ("making it anew" in capfd.readouterr().err) == shown


def test_who_asks_may_refuse_the_model_before_it_is_exported(checkpoint: Path, bundle: Path):
    """A wrong class must not cost a minute; a bundle is not even opened."""

    def refuse(config: ModelConfig) -> None:
        assert config == CONFIG
        raise UsageError("not this one")

    for model, backend in ((checkpoint, "onnxruntime"), (bundle, "onnxruntime"), (checkpoint, "torch")):
        with pytest.raises(UsageError, match="not this one"):
            Pipeline.from_pretrained(model, backend=backend, accept=refuse)
    assert not list(cache_folder().rglob("manifest.json"))
    Pipeline.from_pretrained(checkpoint).close()
    with pytest.raises(UsageError, match="not this one"):
        Pipeline.from_pretrained(checkpoint, accept=refuse)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("bundle", {"precision": "fp16"}, "small is a bundle in fp32, and fp16 was asked for"),
        ("bundle", {"backend": "torch"}, "PyTorch draws with a checkpoint, and small is a bundle"),
        ("bundle", {"vqvae": "vae.pth"}, "small is a bundle, and holds one"),
        ("bundle", {"revision": "main"}, "A revision is of a Hub repository"),
        ("checkpoint", {"precision": "fp8"}, "precision must be one of fp32, fp16, bf16"),
        ("checkpoint", {"precision": "bf16"}, "ONNX Runtime does not draw in bf16"),
        ("checkpoint", {"precision": "int8", "device": "cuda"}, "int8 is for ONNX Runtime on a CPU"),
        ("checkpoint", {"precision": "int8", "backend": "tensorrt"}, "int8 is for ONNX Runtime on a CPU"),
        ("checkpoint", {"precision": "fp16", "backend": "torch"}, "PyTorch draws in fp32"),
        ("checkpoint", {"precision": "int8", "backend": "torch", "device": "cuda"}, "for ONNX Runtime on a CPU"),
        ("checkpoint", {"backend": "tensorrt", "device": "cpu"}, "TensorRT needs a GPU"),
        ("checkpoint", {"backend": "tvm"}, "backend must be one of onnxruntime, tensorrt, torch, got 'tvm'"),
        ("checkpoint", {"device": "cuda:0"}, "device must be one of cpu, cuda"),
        ("checkpoint", {"batch_size": 0}, "batch_size must be a whole number, 1 or more"),
        ("checkpoint", {"threads": 1.5}, "threads must be a whole number"),
        ("nothing", {}, "No model is called nothing"),
        (Path("user/repo"), {}, "No model is called .*/user/repo"),
        ("./user/repo", {}, "No model is called ./user/repo"),
        ("weights/model.safetensors", {}, "No model is called weights/model.safetensors"),
    ],
)
def test_what_does_not_go_together_is_told_before_anything_is_done(
    checkpoint: Path, bundle: Path, model: str | Path, arguments: dict, message: str
):
    names = {"bundle": bundle, "checkpoint": checkpoint}
    with pytest.raises(UsageError, match=message):
        Pipeline.from_pretrained(names.get(str(model), model), **arguments)
    assert not cache_folder().exists()


def test_a_folder_that_is_no_model_is_told(here: Path):
    with pytest.raises(UsageError, match=r"is a folder and no bundle: it holds no manifest\.json"):
        Pipeline.from_pretrained(here)


# ---- TensorRT, over the stand-in


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> HostTensorRT:
    """TensorRT and its builder; what is built is counted in `built`."""
    stand_in = HostTensorRT(HostCuda(), rtx=False)
    monkeypatch.setattr(cuda_memory, "cudart", stand_in.cuda)
    for name, module in MODULES.items():
        monkeypatch.setitem(sys.modules, module, stand_in if name == TENSORRT else None)
    target = PlanTarget(TENSORRT, HostTensorRT.__version__, (".".join(map(str, CAPABILITY)),))
    stand_in.built = []

    def build(folder, target, options, progress):
        stand_in.built.append(options.batch)
        progress(1.0)
        return gpu_on_host.build_on_host(folder, target, options)

    monkeypatch.setattr(builder, "build_plans", build)
    monkeypatch.setattr(engine_library, "choose_target", lambda engine, architectures: target)
    return stand_in


def test_engines_are_built_once_for_a_checkpoint(host: HostTensorRT, checkpoint: Path, bundle: Path, capfd):
    """In the cache, for this GPU and batch; a larger batch than they were built for builds them again."""
    wanted = Pipeline.from_bundle(bundle)([4, 1], seed=7, output_type="np").images
    for batch_size, built in ((2, [(1, 8, 64)]), (2, [(1, 8, 64)]), (65, [(1, 8, 64), (1, 64, 65)])):
        with Pipeline.from_pretrained(checkpoint, backend="tensorrt", batch_size=batch_size) as pipe:
            images = pipe([4, 1], seed=7, output_type="np").images
        assert np.abs(images - wanted).max() <= 1.01 / 255
        assert host.built == built
    assert "Doing it now, once" in capfd.readouterr().err


def test_nothing_is_built_into_a_bundle_of_somebody_s(host: HostTensorRT, bundle: Path):
    """It says how to build them."""
    with pytest.raises(BundleError, match=r"has no plans\. Build them with"):
        Pipeline.from_pretrained(bundle, backend="tensorrt")
    assert not host.built


def test_plans_are_saved_with_a_bundle(host: HostTensorRT, checkpoint: Path):
    """Verified on the way; what is saved is drawn with as it is."""
    with Pipeline.from_pretrained(checkpoint, backend="tensorrt") as pipe:
        wanted = pixels(pipe)
        pipe.save_pretrained("saved")
    with Pipeline.from_pretrained("saved", backend="tensorrt") as saved:
        assert pixels(saved) == wanted
    assert len(host.built) == 1
    (plan,) = Path("saved/plans").glob("*/decoder.plan")
    plan.write_bytes(plan.read_bytes()[:-1])
    with (
        Pipeline.from_pretrained("saved") as saved,
        pytest.raises(BundleError, match=r"decoder\.plan was cut or altered"),
    ):
        saved.save_pretrained("again")
    assert not Path("again").exists()


# ---- without PyTorch and ONNX

NO_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "onnxscript", "onnx_graphsurgeon", "polygraphy", "safetensors"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
"""


def test_importing_the_package_imports_almost_nothing():
    """Not even numpy; the name is there for completion and `import *`, and brings neither PyTorch nor ONNX with it."""
    code = """
import sys
import actvar
heavy = {"torch", "onnx", "onnxruntime", "numpy", "PIL", "rich", "huggingface_hub"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
assert "Pipeline" in dir(actvar) and actvar.__all__ == ["Pipeline", "__version__"]
from actvar import *
assert Pipeline is actvar.Pipeline and Pipeline.__name__ == "Pipeline"
assert not {"torch", "onnx", "onnxruntime", "huggingface_hub"} & sys.modules.keys()
try:
    actvar.Pipelines
except AttributeError as error:
    assert "has no attribute 'Pipelines'" in str(error)
else:
    raise AssertionError
"""
    done = fresh(code)
    assert done.returncode == 0, done.stderr


def test_a_bundle_is_drawn_from_where_neither_is_installed(bundle: Path):
    code = """
from actvar import Pipeline

with Pipeline.from_pretrained(sys.argv[1], threads=1) as pipe:
    for image in pipe([4, 1], seed=7).images:
        print(image.tobytes().hex())
    pipe.save_pretrained("saved")
"""
    done = fresh(NO_TORCH + code, bundle)
    assert done.returncode == 0, done.stderr
    assert [bytes.fromhex(line) for line in done.stdout.split()] == pixels(Pipeline.from_pretrained("saved"))


def test_the_example_runs_without_pytorch(tmp_path: Path):
    """The five lines of the docstring, but for a shorter stream, where the model has been exported before."""
    _, example = front_door.__doc__.split("`actvar.Pipeline` is it.\n\n")
    example = textwrap.dedent(example.partition("\nWhat has to be")[0])
    assert len(example.split("\n\n")) == 2 and example.count("\n") == 6
    assert "range(100)" in example
    example = example.replace("range(100)", "range(96, 100)")
    Pipeline.from_pretrained().close()
    check = """
assert [image.size for image in images] == [(64, 64)] * 2
assert picture.class_id == 99
with Pipeline.from_pretrained("my-bundle") as again:
    made = again(class_labels=[88, 88], guidance_scale=1.5, seed=7).images
assert [image.tobytes() for image in made] == [image.tobytes() for image in images]
"""
    done = fresh(NO_TORCH + example + check, cache=cache_folder())
    assert done.returncode == 0, done.stderr


def test_what_is_missing_for_an_export_is_named(checkpoint: Path):
    """With the command that installs it."""
    code = "from actvar import Pipeline\nPipeline.from_pretrained(sys.argv[1])"
    done = fresh(NO_TORCH + code, checkpoint)
    assert done.returncode == 1
    assert "pip install 'actvar-trt[export]'" in done.stderr


# ---- what is saved


def head_of(card: Path) -> dict:
    """The YAML that stands first in a model card."""
    start, head, _ = card.read_text(encoding="utf-8").split("---\n", 2)
    assert start == ""
    return yaml.safe_load(head)


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_a_saved_model_draws_the_same_bytes(checkpoint: Path, backend):
    """A bundle is saved as one, and PyTorch's model as safetensors, with nothing of it lost."""
    with Pipeline.from_pretrained(checkpoint, backend=backend, precision="fp32") as pipe:
        wanted, model = pixels(pipe), pipe.model
        assert pipe.save_pretrained("saved") == Path("saved")
    with Pipeline.from_pretrained("saved", backend=backend) as saved:
        assert pixels(saved) == wanted
        assert (saved.name, saved.model) == ("saved", model)
    files = {path.name for path in Path("saved").iterdir()}
    assert {"config.json", "README.md"} < files
    assert ("model.safetensors" in files) == (backend == "torch") != ("manifest.json" in files)


def test_a_folder_for_the_hub_says_what_it_is(bundle: Path):
    """The configuration by which the Hub knows a model, and a card whose head it reads."""
    Pipeline.from_pretrained(bundle).save_pretrained("my-bundle")
    config = json.loads(Path("my-bundle/config.json").read_text())
    assert (config["library_name"], config["library_version"]) == ("actvar-trt", __version__)
    assert ModelConfig.from_dict(config["model"]) == CONFIG
    head = head_of(Path("my-bundle/README.md"))
    assert head["library_name"] == "actvar-trt" and head["pipeline_tag"] == "unconditional-image-generation"
    assert {"actvar", "class-conditional", "onnx"} <= set(head["tags"]) and "license" not in head
    card = Path("my-bundle/README.md").read_text()
    for words in ("An ActVAR of depth 2", "10×10 pictures of 5 classes", "a bundle in fp32", "a test", "license:"):
        assert words in card
    code = card.split("```python\n")[1].split("```")[0]
    done = fresh(code)
    assert done.returncode == 0, done.stderr
    assert Path("picture.png").exists()


def test_the_hub_s_own_library_reads_the_card(bundle: Path):
    """What it makes of the head is what uploading goes by."""
    hub = pytest.importorskip("huggingface_hub")
    Pipeline.from_pretrained(bundle).save_pretrained("saved")
    card = hub.ModelCard.load("saved/README.md")
    assert card.data.library_name == "actvar-trt" and "actvar" in card.data.tags


def test_a_folder_that_is_something_else_is_left_alone(bundle: Path, here: Path):
    """Only a bundle may be replaced, and an empty folder filled."""
    pipe = Pipeline.from_pretrained(bundle)
    (here / "mine").mkdir()
    pipe.save_pretrained("mine")
    pipe.save_pretrained("mine")
    (here / "full").mkdir()
    (here / "full" / "notes.txt").write_text("kept")
    for target in ("full", "full/notes.txt"):
        with pytest.raises(BundleError, match=r"is there and is not a bundle|cannot be written"):
            pipe.save_pretrained(target)
    assert (here / "full" / "notes.txt").read_text() == "kept"
    assert sorted(path.name for path in here.iterdir()) == ["full", "mine"]


def test_a_pipeline_may_be_saved_over_the_bundle_that_it_draws_from(bundle: Path):
    """Its files are in use while they are replaced."""
    Pipeline.from_pretrained(bundle).save_pretrained("own")
    pipe = Pipeline.from_pretrained("own")
    wanted = pixels(pipe)
    pipe.save_pretrained("own")
    assert pixels(pipe) == wanted == pixels(Pipeline.from_pretrained("own"))


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_a_save_that_breaks_off_leaves_nothing(checkpoint: Path, here: Path, monkeypatch: pytest.MonkeyPatch, backend):
    """Ctrl-C when all but the last file is written."""
    from actvar.export import saved_model

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    pipe = Pipeline.from_pretrained(checkpoint, backend=backend)
    monkeypatch.setattr(saved_model, "_describe", stop)
    with pytest.raises(KeyboardInterrupt):
        pipe.save_pretrained("saved")
    assert list(here.iterdir()) == []


def test_a_bundle_that_was_altered_meanwhile_is_not_saved(bundle: Path):
    Pipeline.from_pretrained(bundle).save_pretrained("own")
    pipe = Pipeline.from_pretrained("own")
    Path("own/scale_02.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"scale_02\.onnx was cut or altered"):
        pipe.save_pretrained("saved")
    assert not Path("saved").exists()


def test_a_closed_pipeline_is_not_saved(bundle: Path):
    pipe = Pipeline.from_pretrained(bundle)
    pipe.close()
    with pytest.raises(UsageError, match="This pipeline is closed"):
        pipe.save_pretrained("saved")


def test_two_pipelines_of_a_model_do_not_know_each_other(checkpoint: Path, bundle: Path):
    """`checkpoint` is each one's own."""
    from_file, from_bundle = Pipeline.from_pretrained(checkpoint), Pipeline.from_bundle(bundle)
    assert from_file.checkpoint and from_bundle.checkpoint is None and Pipeline.checkpoint is None
    assert isinstance(from_bundle, actvar.Pipeline)


def test_an_error_is_one_that_programs_can_tell(bundle: Path):
    """Everything that is told is an ActVARError; a wrong argument is a ValueError as well."""
    with pytest.raises(ActVARError):
        Pipeline.from_pretrained("nothing")
    with pytest.raises(ValueError) as told:
        Pipeline.from_pretrained(bundle, precision="int8")
    assert isinstance(told.value, ActVARError)
