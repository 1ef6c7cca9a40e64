"""Models of Hub repositories: which files are fetched, what is drawn from the cache that holds them, what is refused.

No network. The cache is made by hand (`hub_cache.py`) and HF_HUB_OFFLINE is set; where something is fetched, it is from
a stand-in of the Hub's on this machine (`hub_on_host.py`), by huggingface_hub itself.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import official_layout
import pytest
import torch
from command_line import in_process
from hub_cache import COMMIT, HubCache
from hub_on_host import COMMIT as SERVED
from hub_on_host import HostHub, serving
from huggingface_hub import constants
from small_models import small_config, vivid_model

from actvar import Pipeline
from actvar.bundle.manifest import read_manifest
from actvar.checkpoint.own import save_model
from actvar.config import Activation
from actvar.errors import ActVARError, BundleError, CheckpointError, UsageError
from actvar.export.onnx_export import export_bundle
from actvar.hub import Repository, repository_of
from actvar.naming import named_model
from actvar.runtime.machine import CACHE_VARIABLE

CONFIG = small_config(activation=Activation(16, (3, 4), (0.75, 0.5), (0.5, 0.25)))
OTHER = "f" * 40


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle; a checkpoint of ours with its VQVAE, and one without; and two official VARs with theirs, all small."""
    folder, model = tmp_path_factory.mktemp("models"), vivid_model(CONFIG)
    for name in ("ours", "bare", "official", "single"):
        (folder / name).mkdir()
    export_bundle(model, folder / "bundle", "fp32", "a test")
    (folder / "bundle" / "plans" / "a-gpu").mkdir(parents=True)
    (folder / "bundle" / "plans" / "a-gpu" / "decoder.plan").write_bytes(b"a plan")
    save_model(model, folder / "ours" / "model.safetensors", torch.float32)
    (folder / "ours" / "config.json").write_text("{}")
    save_model(model, folder / "bare" / "model.safetensors", torch.float32, with_vqvae=False)
    shape = {"patch_nums": (1, 2, 3), "classes": 5, "V": 48, "E": 6}
    for depth in (1, 2):
        tensors = official_layout.filled(official_layout.var_shapes(depth, **shape), seed=depth)
        torch.save(tensors | official_layout.var_buffers(depth, (1, 2, 3)), folder / "official" / f"var_d{depth}.pth")
    vae = official_layout.filled(official_layout.vqvae_shapes(32, (1, 2), 1, 48, 6)) | official_layout.hits(48, 3)
    torch.save(vae, folder / "official" / "vae_ch160v4096z32.pth")
    (folder / "official" / "README.md").write_text("VAR")
    for file in ("var_d1.pth", "vae_ch160v4096z32.pth"):
        shutil.copy(folder / "official" / file, folder / "single")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pristine: Path) -> HubCache:
    """A cache with all of them, as if each had been fetched; and nobody to ask for more."""
    cache = HubCache(tmp_path / "hub")
    for name in ("bundle", "ours", "bare", "official", "single"):
        cache.add(f"user/{name}", pristine / name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache.folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return cache


def pixels(pipe: Pipeline, seed: int = 7) -> list[bytes]:
    return [image.tobytes() for image in pipe([4, 1], seed=seed).images]


# ---- names


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("user/repo", Repository("user/repo")),
        ("FoundationVision/var", Repository("FoundationVision/var")),
        ("user/repo/var_d20.pth", Repository("user/repo", "var_d20.pth")),
        ("user/repo/a/b.safetensors", Repository("user/repo", "a/b.safetensors")),
        ("user_1/re-po.v2", Repository("user_1/re-po.v2")),
        ("repo", None),
        ("./user/repo", None),
        ("../user/repo", None),
        ("/user/repo", None),
        ("~/user/repo", None),
        ("user//repo", None),
        ("user/repo/", None),
        ("user/repo/../../x", None),
        ("weights/var_d16.pth", None),
        ("weights/model.safetensors", None),
        ("user/repo name", None),
        ("user\\repo/x", None),
    ],
)
def test_which_names_are_of_repositories(name: str, repository: Repository | None):
    """What can only be a path is none: nobody wants a mistyped path to be looked up on the Hub."""
    assert repository_of(name) == repository


def test_what_is_here_wins_over_the_hub(cache: HubCache, pristine: Path):
    """A folder of that name, and a file; then the package's own; in the documented order."""
    shutil.copytree(pristine / "ours", "user/bundle")
    assert named_model("user/bundle").checkpoint
    assert named_model("user/ours").name == "ours"
    Path("user/official").mkdir()
    shutil.copy(pristine / "single" / "var_d1.pth", "user/official/var_d1.pth")
    named = named_model("user/official/var_d1.pth")
    assert named.checkpoint and named.checkpoint.path == Path("user/official/var_d1.pth")
    with pytest.raises(UsageError, match="user/official is a folder and no bundle"):
        named_model("user/official")


# ---- what is drawn from a cache


def test_the_command_line_takes_repositories(cache: HubCache, monkeypatch, capsys):
    """With the same options wherever --model names one; what is here has no revision."""
    run = in_process(monkeypatch, capsys)
    cache.add("user/tagged", cache.snapshot("user/bundle"), refs=["v2"])
    code, out, err = run("generate", "--class", 4, "--model", "user/tagged", "--revision", "v2", "--local-files-only")
    assert code == 0 and out.startswith("tagged-004-seed0-0.png: class 4"), err
    assert run("classes", "--model", "user/bundle")[1] == "5 classes without names: their numbers are 0 to 4.\n"
    code, out, err = run("export", "--model", "user/official/var_d1.pth")
    assert code == 0 and out.startswith("bundles/var_d1-fp32: "), err
    code, _, err = run("generate", "--class", 4, "--model", "actvar-mini", "--revision", "v2")
    assert code == 2 and "A revision is of a Hub repository, and actvar-mini is none" in err


def test_a_bundle_is_drawn_from_as_it_lies_in_the_cache(cache: HubCache, pristine: Path):
    """Every file of it is a link; the manifest, the graphs, the weights."""
    wanted = pixels(Pipeline.from_bundle(pristine / "bundle"))
    with Pipeline.from_pretrained("user/bundle") as pipe:
        assert pipe.bundle == cache.snapshot("user/bundle") and (pipe.bundle / "weights.bin").is_symlink()
        assert (pipe.name, pixels(pipe)) == ("bundle", wanted)
        pipe.bundle = pipe.bundle.absolute()
    with Pipeline.from_bundle(cache.snapshot("user/bundle"), batch_size=2) as pipe:
        assert pixels(pipe) == wanted


def test_a_checkpoint_of_ours_is_exported_from_the_cache(cache: HubCache, pristine: Path):
    """Once, as one that lies here would be."""
    wanted = pixels(Pipeline.from_pretrained(pristine / "ours" / "model.safetensors"))
    for name in ("user/ours", "user/ours/model.safetensors"):
        assert pixels(Pipeline.from_pretrained(name, local_files_only=True)) == wanted
    assert len(list(Path("../cache/bundles").glob("*/manifest.json"))) == 1


def test_a_checkpoint_without_its_vqvae_takes_the_one_that_is_named(cache: HubCache, pristine: Path):
    vqvae = pristine / "ours" / "model.safetensors"
    wanted = pixels(Pipeline.from_pretrained(pristine / "ours", backend="torch"))
    assert pixels(Pipeline.from_pretrained("user/bare", vqvae=vqvae, backend="torch")) == wanted
    with pytest.raises(CheckpointError, match="holds no VQVAE"):
        Pipeline.from_pretrained("user/bare", backend="torch")
    with pytest.raises(UsageError, match="user/bundle is a bundle, and holds one"):
        Pipeline.from_pretrained("user/bundle", vqvae=vqvae)


@pytest.mark.parametrize("name", ["user/official/var_d2.pth", "user/official/var_d1.pth", "user/single"])
def test_an_official_var_finds_its_vqvae_beside_it(cache: HubCache, pristine: Path, name: str):
    """In the layout of FoundationVision/var: one repository of all sizes, and one VQVAE for them."""
    file = name.rpartition("/")[2] if name.endswith(".pth") else "var_d1.pth"
    vqvae = pristine / "official" / "vae_ch160v4096z32.pth"
    wanted = Pipeline.from_pretrained(pristine / "official" / file, vqvae=vqvae, backend="torch")
    with Pipeline.from_pretrained(name, backend="torch") as pipe:
        assert pipe.model == wanted.model and pixels(pipe) == pixels(wanted)
        snapshot = cache.snapshot(name.removesuffix(f"/{file}"))
        assert pipe.checkpoint and pipe.checkpoint.vqvae == snapshot / vqvae.name
    named = named_model(name, vqvae)
    assert named.checkpoint and named.checkpoint.vqvae == vqvae


def test_a_repository_of_several_models_lists_them(cache: HubCache):
    """Which one is meant nobody can guess."""
    with pytest.raises(UsageError, match=r"several models: var_d1\.pth, var_d2\.pth\. .*user/official/var_d1\.pth"):
        Pipeline.from_pretrained("user/official")


def test_a_self_trained_file_has_its_own_vqvae(cache: HubCache, pristine: Path, tmp_path: Path):
    """Its trainer calls it ar-ckpt; the official VQVAE beside it would be one too many."""
    folder = tmp_path / "trained"
    folder.mkdir()
    for file, name in (("var_d1.pth", "ar-ckpt-best.pth"), ("vae_ch160v4096z32.pth", "vae_ch160v4096z32.pth")):
        shutil.copy(pristine / "official" / file, folder / name)
    cache.add("user/trained", folder)
    named = named_model("user/trained")
    assert named.checkpoint and named.checkpoint.vqvae is None
    shutil.copy(folder / "vae_ch160v4096z32.pth", folder / "vae_other.pth")
    shutil.copy(pristine / "official" / "var_d1.pth", folder / "var_d1.pth")
    with (folder / "vae_other.pth").open("ab") as file:
        file.write(b"other")
    cache.add("user/two", folder)
    with pytest.raises(UsageError, match=r"several VQVAEs: vae_ch160v4096z32\.pth, vae_other\.pth"):
        named_model("user/two/var_d1.pth")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"README.md": "empty"}, r"user/other holds no model: .*but README\.md"),
        ({"unet/model.safetensors": "x", "model_index.json": "{}"}, "user/other holds no model"),
        ({"a.safetensors": "x", "b.safetensors": "x"}, r"several models: a\.safetensors, b\.safetensors"),
        ({"vae_ch160v4096z32.pth": "x"}, "user/other holds no model"),
    ],
)
def test_a_repository_of_something_else_says_what_it_holds(
    cache: HubCache, tmp_path: Path, files: dict[str, str], message: str
):
    folder = tmp_path / "other"
    for place, text in files.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(text + place)
    cache.add("user/other", folder)
    with pytest.raises(UsageError, match=message):
        named_model("user/other")


# ---- revisions, and what is not there


def test_a_revision_is_a_branch_a_tag_or_a_commit(cache: HubCache, pristine: Path):
    """Each its own files: the main branch has another model by now."""
    cache.add("user/moving", pristine / "bundle", commit=OTHER, refs=["v1", "pr/3"])
    cache.add("user/moving", pristine / "ours", commit=COMMIT)
    for revision in ("v1", "pr/3", OTHER):
        assert named_model("user/moving", revision=revision).bundle == cache.snapshot("user/moving", OTHER)
    for revision in (None, "main", COMMIT):
        named = named_model("user/moving", revision=revision)
        assert named.checkpoint and named.checkpoint.path.parent == cache.snapshot("user/moving")
    with pytest.raises(ActVARError, match="user/moving, revision v2, is not in the Hub's cache"):
        named_model("user/moving", revision="v2")


@pytest.mark.parametrize("local_files_only", [True, False])
def test_a_repository_that_was_not_fetched_says_why_it_is_not_now(cache: HubCache, local_files_only: bool):
    """What forbids it, and what to do; a mistyped path is one reason, so the name is told to be checked."""
    why = "local_files_only asks" if local_files_only else "HF_HUB_OFFLINE|offline mode is enabled"
    with pytest.raises(ActVARError, match=rf"user/nowhere is not in the Hub's cache on this machine, and .*({why})"):
        Pipeline.from_pretrained("user/nowhere", local_files_only=local_files_only)


def test_a_file_that_was_not_fetched_is_named(cache: HubCache, pristine: Path):
    """As after a download that broke off: the model's own, the VQVAE's, one of a bundle's."""
    with pytest.raises(ActVARError, match=r"var_d3\.pth of user/official is not in the Hub's cache"):
        named_model("user/official/var_d3.pth")
    (cache.snapshot("user/bundle") / "scale_02.onnx").unlink()
    with pytest.raises(ActVARError, match=r"scale_02\.onnx of user/bundle is not in the Hub's cache"):
        named_model("user/bundle")
    with pytest.raises(UsageError, match=r"README\.md of user/official is no checkpoint"):
        named_model("user/official/README.md")


def test_a_name_that_the_hub_has_not_is_told(cache: HubCache):
    with pytest.raises(UsageError, match=r"user/re\.\.po is no name of a repository"):
        named_model("user/re..po")


def test_without_the_hub_s_library_its_extra_is_named(cache: HubCache, monkeypatch: pytest.MonkeyPatch):
    """Where a mistyped path is the likelier reason, that is said as well."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ActVARError, match=r"no file or folder here is called so.*pip install 'actvar-trt\[hub\]'"):
        named_model("bundles/d20")
    assert named_model("actvar-mini").checkpoint


# ---- hostile caches


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../secret.bin", "weights.txt"])
@pytest.mark.parametrize("file", ["manifest.json", "weights.bin", "scale_02.onnx"])
def test_a_link_of_a_bundle_that_leads_out_of_the_cache_is_refused(
    cache: HubCache, pristine: Path, tmp_path: Path, file: str, target: str
):
    """Even where the bytes behind it are the right ones."""
    snapshot = cache.snapshot("user/bundle")
    for place in (tmp_path / "secret.bin", snapshot / "weights.txt"):
        shutil.copy(pristine / "bundle" / file, place)
    (snapshot / file).unlink()
    (snapshot / file).symlink_to(target)
    with pytest.raises(BundleError, match=rf"{file} must be a plain file"):
        Pipeline.from_pretrained("user/bundle")
    with pytest.raises(BundleError, match=rf"{file} must be a plain file"):
        Pipeline.from_bundle(snapshot)


@pytest.mark.parametrize(
    ("name", "file"),
    [("user/ours", "model.safetensors"), ("user/single", "var_d1.pth"), ("user/single", "vae_ch160v4096z32.pth")],
)
def test_a_link_of_a_checkpoint_that_leads_out_of_the_cache_is_refused(cache: HubCache, tmp_path: Path, name, file):
    link = cache.snapshot(name) / file
    shutil.copy(link, tmp_path / "elsewhere")
    link.unlink()
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=rf"{file} must be a plain file"):
        named_model(name)


def test_a_bundle_of_links_that_is_no_cache_is_refused_as_ever(cache: HubCache, tmp_path: Path):
    """Somebody's folder, put together as a snapshot is."""
    shutil.copytree(cache.repository("user/bundle"), tmp_path / "unpacked", symlinks=True)
    with pytest.raises(BundleError, match=r"manifest\.json must be a plain file"):
        Pipeline.from_bundle(tmp_path / "unpacked" / "snapshots" / COMMIT)


# ---- saving what came from the Hub, and giving it to it


def test_what_came_from_the_hub_is_saved_as_plain_files(cache: HubCache):
    """A folder to build into, or to change and upload again."""
    with Pipeline.from_pretrained("user/bundle") as pipe:
        wanted = pixels(pipe)
        shutil.rmtree(cache.snapshot("user/bundle") / "plans")
        pipe.save_pretrained("mine")
    assert not any(path.is_symlink() for path in Path("mine").rglob("*"))
    assert pixels(Pipeline.from_pretrained("mine")) == wanted


def test_what_was_saved_is_a_repository(cache: HubCache):
    """Uploaded as it is, and fetched again, by either way to draw."""
    wanted = {}
    for backend in ("onnxruntime", "torch"):
        with Pipeline.from_pretrained("user/ours", backend=backend) as pipe:
            wanted[backend] = pixels(pipe)
            pipe.save_pretrained(f"saved-{backend}")
        cache.add(f"me/{backend}", Path(f"saved-{backend}"))
        assert pixels(Pipeline.from_pretrained(f"me/{backend}", backend=backend)) == wanted[backend]


# ---- in a process of its own, and from the stand-in

DRAW = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "onnxscript"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
from actvar import Pipeline
from actvar.errors import ActVARError

try:
    pipe = Pipeline.from_pretrained(sys.argv[1], revision=sys.argv[2] or None, threads=1)
except ActVARError as error:
    sys.exit(f"{type(error).__name__}: {error}")
for image in pipe([4, 1], seed=7).images:
    print(image.tobytes().hex())
"""


def draw(environment: dict[str, str], name: str, revision: str = "") -> tuple[list[bytes], str]:
    """Pictures of a model in a fresh process without PyTorch, and what it said."""
    done = subprocess.run(
        [sys.executable, "-c", DRAW, name, revision],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        timeout=300,
    )
    return [bytes.fromhex(line) for line in done.stdout.split()], done.stderr


def test_the_environment_s_word_is_enough(cache: HubCache):
    """HF_HUB_OFFLINE=1 and HF_HUB_CACHE, as on a cluster's node; and no PyTorch."""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache.folder)}
    drawn, said = draw(environment, "user/bundle")
    assert drawn == pixels(Pipeline.from_bundle(cache.snapshot("user/bundle"))), said
    _, said = draw(environment, "user/nowhere")
    assert said.startswith("ActVARError: user/nowhere is not in the Hub's cache") and "HF_HUB_OFFLINE" in said


@pytest.fixture
def hub(pristine: Path) -> Iterator[HostHub]:
    """A Hub that has all of them."""
    made = HostHub()
    for name in ("bundle", "ours", "official"):
        made.add(f"user/{name}", pristine / name)
    made.repositories["user/bundle"]["samples/large.bin"] = b"not needed"
    made.gated.add("user/gated")
    with serving(made):
        yield made


def test_what_a_bundle_needs_is_fetched_and_nothing_else(hub: HostHub, pristine: Path, tmp_path: Path):
    """Once: the second time only the Hub's word is asked for, and the third time, without it, not even that."""
    wanted = pixels(Pipeline.from_bundle(pristine / "bundle"))
    needed = {entry.file for entry in read_manifest(pristine / "bundle").files} | {"manifest.json"}
    environment = hub.environment(tmp_path / "hub")
    drawn, said = draw(environment, "user/bundle")
    assert drawn == wanted, said
    assert set(hub.fetched) == needed and len(hub.fetched) == len(needed)
    for again in (
        environment,
        {**environment, "HF_ENDPOINT": "http://127.0.0.1:9"},
        {**environment, "HF_HUB_OFFLINE": "1"},
    ):
        drawn, said = draw(again, "user/bundle")
        assert drawn == wanted, said
    assert len(hub.fetched) == len(needed)
    assert (tmp_path / "hub" / "models--user--bundle" / "snapshots" / SERVED / "weights.bin").is_symlink()


def fetched_by(environment: dict[str, str], name: str, options: str = "") -> dict[str, str | None]:
    """What `named_model` makes of a name in a fresh process."""
    code = f"""
import json
from actvar.naming import named_model
named = named_model({name!r}{options})
files = {{name: str(named.checkpoint and getattr(named.checkpoint, name)) for name in ("path", "vqvae")}}
print(json.dumps({{"name": named.name, **files}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return json.loads(done.stdout)


def test_of_a_repository_of_several_models_one_is_fetched(hub: HostHub, tmp_path: Path):
    """FoundationVision/var holds 20 GB; and plans are fetched only for who wants to run them."""
    environment = hub.environment(tmp_path / "hub")
    made = fetched_by(environment, "user/official/var_d2.pth")
    snapshot = tmp_path / "hub" / "models--user--official" / "snapshots" / SERVED
    assert made == {
        "name": "var_d2",
        "path": str(snapshot / "var_d2.pth"),
        "vqvae": str(snapshot / "vae_ch160v4096z32.pth"),
    }
    assert sorted(hub.fetched) == ["vae_ch160v4096z32.pth", "var_d2.pth"]
    hub.fetched.clear()
    fetched_by(environment, "user/ours", ", revision='v1'")
    assert sorted(hub.fetched) == ["config.json", "model.safetensors"]
    hub.fetched.clear()
    fetched_by(environment, "user/bundle", ", with_plans=True")
    assert "plans/a-gpu/decoder.plan" in hub.fetched and "samples/large.bin" not in hub.fetched


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        (
            "user/nowhere",
            "",
            "UsageError: No file or folder here is called user/nowhere, and the Hub has no repository",
        ),
        ("user/bundle", "v9", "UsageError: user/bundle has no revision v9"),
        ("user/gated", "", "ActVARError: user/gated is given to those who have agreed to its terms"),
        ("user/official", "", "UsageError: user/official holds several models: var_d1.pth, var_d2.pth"),
        ("user/official/var_d9.pth", "", "UsageError: user/official holds no var_d9.pth, but README.md"),
    ],
)
def test_what_the_hub_refuses_is_told(hub: HostHub, tmp_path: Path, name: str, revision: str, message: str):
    """One line, and no traceback of a library's."""
    drawn, said = draw(hub.environment(tmp_path / "hub"), name, revision)
    assert drawn == [] and said.startswith(message) and said.count("\n") == 1, said


def test_bars_of_the_hub_s_library_are_turned_off_with_ours(cache: HubCache):
    """And on again: they are the process's, not ours."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled

    assert not are_progress_bars_disabled()
    named_model("user/ours", shown=False)
    assert not are_progress_bars_disabled()
    assert np.array(pixels(Pipeline.from_pretrained("user/ours", progress_bar=False))).size
