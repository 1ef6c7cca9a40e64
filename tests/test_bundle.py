"""The manifest of a bundle: what is written is read back, and nothing else is accepted."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_models import small_config

from actvar.bundle.contract import Shape, TensorSpec, contract, graph_names, scale_name
from actvar.bundle.json_form import MAX_JSON_BYTES, content_hash
from actvar.bundle.manifest import (
    GraphSpec,
    Manifest,
    StoredTensor,
    WeightsSpec,
    read_manifest,
    require_weights,
    verify,
    write_manifest,
)
from actvar.config import Activation
from actvar.errors import BundleError
from actvar.files import FileEntry, hash_file

MODEL = small_config(activation=Activation(16, (3, 4), (0.75, 0.5), (0.5, 0.25)))
TYPES = {"class_ids": "int64", "token_ids": "int64", "top_k": "int64", "given": "int64"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle by its manifest; the files hold a few bytes each, as nothing here opens a graph."""
    folder = tmp_path / "bundle"
    folder.mkdir()

    def entry(name: str) -> FileEntry:
        (folder / name).write_bytes(name.encode() * 3)
        return hash_file(folder / name)

    def tensors(shapes: dict[str, Shape]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name, TYPES.get(name, "float32"), shape) for name, shape in shapes.items())

    graphs = {
        name: GraphSpec(entry(f"{name}.onnx"), *map(tensors, contract(MODEL, name)), {"a.weight": (6,)})
        for name in graph_names(MODEL)
    }
    file = entry("weights.bin")
    weights = WeightsSpec(file.bytes, file.sha256, {"a.weight": StoredTensor("float32", (2, 3), 4)})
    write_manifest(folder, Manifest(MODEL, "fp32", "a test", {"actvar": "0"}, weights, graphs))
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest's JSON, and give it the hash that it then has: an edit by someone who knows the form."""
    content = json.loads((folder / "manifest.json").read_text())
    content.pop("sha256")
    change(content)
    content["sha256"] = content_hash(content)
    (folder / "manifest.json").write_text(json.dumps(content))


def assert_refused(folder: Path, *words: str) -> None:
    """The message names the manifest, says what is wrong, and what to do."""
    with pytest.raises(BundleError) as refusal:
        read_manifest(folder)
    for word in (str(folder / "manifest.json"), "Export the bundle again", *words):
        assert word in str(refusal.value)
    assert len(str(refusal.value)) < 1000


def test_what_is_written_is_read_back(folder: Path):
    """The exporter and the runtime share nothing but this file."""
    manifest = read_manifest(folder)
    assert manifest.model == MODEL
    assert list(manifest.graphs) == ["condition", "scale_01", "scale_02", "scale_03", "scale_04", "decoder"]
    again = folder.parent / "again"
    again.mkdir()
    write_manifest(again, manifest)
    assert read_manifest(again) == manifest
    verify(folder, manifest)


def test_a_bundle_may_wait_for_its_weights(folder: Path):
    """Graphs and plans can be made before there is a checkpoint; whoever wants to draw is told what to do."""
    manifest = read_manifest(folder)
    require_weights(folder, manifest)
    waiting = replace(manifest, weights=replace(manifest.weights, sha256=None))
    write_manifest(folder, waiting)
    (folder / "weights.bin").unlink()
    assert read_manifest(folder) == waiting
    verify(folder, waiting)
    with pytest.raises(BundleError, match=r"no weights.*actvar-trt bind .* --model"):
        require_weights(folder, waiting)


def test_the_contract_chains():
    """What a scale gives has the shape in which the next one reads it, and the cache grows by what was kept."""
    last = len(MODEL.schedule) - 1
    cached = 0
    for si in range(last + 1):
        inputs, outputs = contract(MODEL, scale_name(si))
        assert MODEL.cached_tokens[si] == cached
        assert "past_kv" not in inputs if si == 0 else inputs["past_kv"][-2] == MODEL.cached_tokens[-1]
        if si < last:
            following, _ = contract(MODEL, scale_name(si + 1))
            assert outputs["next_f_hat"] == following["f_hat"]
            assert outputs["next_tokens_in"] == following["tokens_in"]
            cached += outputs["new_kv"][-2]
    given = contract(MODEL, "condition")[1]
    assert all(contract(MODEL, "scale_01")[0][name] == shape for name, shape in given.items())
    assert contract(MODEL, "decoder")[1]["image"] == ("B", 3, 10, 10)


# ---- what a manifest may not be


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", "zip"),
        ("version", 2),
        ("version", 5),
        ("version", 6),
        ("version", 8),
        ("precision", "fp8"),
        ("source", 3),
        ("source", "two\nlines"),
        ("source", "x" * 2000),
        ("versions", ["actvar"]),
        ("versions", {"actvar": 1}),
        ("model", []),
        ("weights", "weights.bin"),
        ("graphs", {}),
    ],
)
def test_a_field_of_another_kind_is_refused_by_name(folder: Path, field: str, value: object):
    """Each field once; a field that is not checked would fail somewhere else, with a traceback."""
    rewrite(folder, lambda content: content.update({field: value}))
    assert_refused(folder, field)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("source"), ("the field 'source'",)),
        (lambda c: c.update(extra=1), ("no fields but", "extra")),
        (lambda c: c["weights"].pop("bytes"), ("weights", "'bytes'")),
        (lambda c: c["weights"].update(bytes=-1), ("weights.bytes", "found -1")),
        (lambda c: c["weights"].update(bytes=1.5), ("weights.bytes", "found 1.5")),
        (lambda c: c["weights"].update(bytes=True), ("weights.bytes", "found True")),
        (lambda c: c["weights"].update(bytes=1 << 60), ("weights.bytes",)),
        (lambda c: c["weights"].update(sha256="a" * 63), ("weights.sha256", "64 hexadecimal digits")),
        (lambda c: c["weights"].update(sha256=""), ("weights.sha256",)),
        (lambda c: c["weights"]["tensors"].update({"../a": {}}), ("weights.tensors.../a", "letters, digits")),
        (lambda c: c["weights"]["tensors"]["a.weight"].update(dtype="float64"), ("a.weight.dtype", "'float64'")),
        (
            lambda c: c["weights"]["tensors"]["a.weight"].update(shape=[2, 4]),
            ("the end of weights.tensors.a.weight", "36"),
        ),
        (lambda c: c["weights"]["tensors"]["a.weight"].update(offset=1 << 50), ("a.weight.offset",)),
        (lambda c: c["graphs"]["decoder"]["weights"].update(b=[6]), ("graphs.decoder.weights", "'b'")),
        (lambda c: c["graphs"]["decoder"]["weights"].update({"a.weight": [7]}), ("as many values as (2, 3)", "[7]")),
        (lambda c: c["graphs"].pop("decoder"), ("graphs", "decoder")),
        (lambda c: c["graphs"].update(scale_05=c["graphs"]["scale_04"]), ("graphs must be an object of condition",)),
        (lambda c: c["graphs"]["decoder"].update(inputs=[]), ("graphs.decoder.inputs",)),
        (lambda c: c["graphs"]["decoder"].update(inputs=7), ("graphs.decoder.inputs", "found 7")),
        (lambda c: c["graphs"]["decoder"]["inputs"].append(c["graphs"]["decoder"]["inputs"][0]), ("different names",)),
        (lambda c: c["graphs"]["decoder"]["inputs"][0].update(name="a/b"), ("inputs[0].name", "'a/b'")),
        (lambda c: c["graphs"]["decoder"]["inputs"][0].update(name="class_ids"), ("among f_hat", "class_ids")),
        (lambda c: c["graphs"]["decoder"]["inputs"][0].update(dtype="object"), ("inputs[0].dtype", "float32")),
        (
            lambda c: c["graphs"]["decoder"]["inputs"][0].update(shape=["B", 6, 5, 6]),
            ("of the shape", "('B', 6, 5, 6)"),
        ),
        (lambda c: c["graphs"]["decoder"]["inputs"][0].update(shape=["X", 6, 5, 5]), ("shape", "'X'")),
        (lambda c: c["graphs"]["decoder"]["inputs"][0].update(shape=[1] * 9), ("at most 8 dimensions",)),
        (
            lambda c: c["graphs"]["decoder"]["outputs"].append(
                {"name": "more", "dtype": "bool", "shape": ["B", *[1 << 24] * 7]}
            ),
            ("outputs[1].shape", "of at most", "bytes"),
        ),
        (lambda c: c["graphs"]["scale_02"]["outputs"].pop(), ("graphs.scale_02.outputs.new_kv", "found None")),
        (lambda c: c["model"].update(depth=3), ("outputs.modulation", "(3, 2, 'B', 6, 192)")),
        (lambda c: c["model"].update(depth=10**8), ("model", "100000000")),
        (lambda c: c["model"].update(depth="2"), ("model", "depth")),
        (
            lambda c: c["model"].update(patch_nums=list(range(1, 1000))),
            ("patch_nums must be 64 numbers at most", "999"),
        ),
        (lambda c: c["model"].pop("vqvae"), ("model", "vqvae")),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused_by_field(folder: Path, change: Callable, words: tuple[str, ...]):
    """Missing, too many, of the wrong type, out of bounds, and at odds with the model's configuration."""
    rewrite(folder, change)
    assert_refused(folder, *words)


@pytest.mark.parametrize(
    "name", ["../weights.bin", "/etc/passwd", "sub/decoder.onnx", "C:\\x.onnx", "", None, "weights"]
)
def test_a_file_name_that_leads_elsewhere_is_refused(folder: Path, name: str | None):
    """The names decide what is opened: nothing but the bundle's own files may be."""
    original = (folder / "manifest.json").read_bytes()
    rewrite(folder, lambda content: content["graphs"]["decoder"].update(file=name))
    assert_refused(folder, "graphs.decoder.file must be decoder.onnx", repr(name))
    (folder / "manifest.json").write_bytes(original)
    rewrite(folder, lambda content: content["weights"].update(file=name))
    assert_refused(folder, "weights.file must be weights.bin", repr(name))


def test_an_edit_that_fits_is_refused_too(folder: Path):
    """Another precision or another sampling would be possible, and is not what was exported."""
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"precision": "fp32"', '"precision": "fp16"'))
    assert_refused(folder, "was edited")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("not valid JSON",)),
        ("{", ("not valid JSON",)),
        ("[" * 100_000, ("not valid JSON",)),
        ('{"format": NaN}', ("NaN is not a number",)),
        ('{"format": 1, "format": 2}', ("two fields of the same name",)),
        ("[]", ("format", "'actvar-bundle'")),
        ("\xff", ("not valid JSON",)),
    ],
)
def test_what_is_no_json_is_refused(folder: Path, text: str, words: tuple[str, ...]):
    (folder / "manifest.json").write_bytes(text.encode("latin-1"))
    assert_refused(folder, *words)


def test_a_manifest_that_is_cut_anywhere_is_refused(folder: Path):
    whole = (folder / "manifest.json").read_bytes().rstrip()
    for length in range(0, len(whole), 997):
        (folder / "manifest.json").write_bytes(whole[:length])
        assert_refused(folder)


def test_a_huge_manifest_is_not_read(folder: Path):
    """The size is bounded before JSON is made of it."""
    with (folder / "manifest.json").open("ab") as file:
        file.write(b" " * MAX_JSON_BYTES)
    assert_refused(folder, "larger than")


def test_a_missing_manifest_and_a_missing_folder_are_told_apart(folder: Path):
    (folder / "manifest.json").unlink()
    with pytest.raises(BundleError, match=r"holds no manifest\.json"):
        read_manifest(folder)
    with pytest.raises(BundleError, match="nowhere is not a folder"):
        read_manifest(folder.parent / "nowhere")


# ---- the files


@pytest.mark.parametrize("name", ["weights.bin", "condition.onnx", "scale_03.onnx"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), ("the manifest says", "bytes, found")),
        (lambda p: p.write_bytes(p.read_bytes() + b"x"), ("the manifest says", "bytes, found")),
        (lambda p: p.write_bytes(p.read_bytes()[:-1] + b"~"), ("SHA-256", "found")),
        (lambda p: p.unlink(), ("is missing",)),
        (lambda p: (p.unlink(), p.mkdir()), ("must be a plain file",)),
        (lambda p: (p.rename(p.parent.parent / "moved"), p.symlink_to("../moved")), ("must be a plain file",)),
        (lambda p: (p.unlink(), os.mkfifo(p)), ("must be a plain file",)),
    ],
)
def test_a_file_that_is_not_the_exported_one_is_refused_by_name(folder, name, damage, words):
    """Cut, longer, edited, gone, a folder, a link out of the bundle to the same bytes, a pipe that would never end."""
    manifest = read_manifest(folder)
    damage(folder / name)
    with pytest.raises(BundleError) as refusal:
        verify(folder, manifest)
    for word in (str(folder / name), *words):
        assert word in str(refusal.value)


def test_a_manifest_that_is_a_link_is_refused(folder: Path):
    shutil.move(folder / "manifest.json", folder.parent / "moved.json")
    (folder / "manifest.json").symlink_to("../moved.json")
    with pytest.raises(BundleError, match="must be a plain file"):
        read_manifest(folder)


def test_writing_that_breaks_off_leaves_the_old_manifest(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever reads while an export writes sees the old bundle or the new one, and no temporary file stays."""
    before = sorted(path.name for path in folder.iterdir()), (folder / "manifest.json").read_bytes()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_manifest(folder, replace(read_manifest(folder), source="another"))
    assert (sorted(path.name for path in folder.iterdir()), (folder / "manifest.json").read_bytes()) == before
