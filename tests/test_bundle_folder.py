"""Bundles are written where containers have them: on mount points, in lower layers, under parents that stay closed.

Each test mounts in a namespace of its own, which needs root; where that is not allowed it is skipped with the reason.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from actvar.bundle.manifest import FORMAT
from actvar.errors import BundleError
from actvar.export import bundle_folder
from actvar.export.bundle_folder import folder_written_whole, replaces_bundle

WRITE = """
import json, os, sys
from pathlib import Path
from actvar.export.bundle_folder import folder_written_whole
with folder_written_whole(Path(sys.argv[1])) as unfinished:
    (unfinished / "manifest.json").write_text(json.dumps({"format": "actvar-bundle", "new": True}))
    (unfinished / "weights.bin").write_text("new")
    (unfinished / "plans").mkdir()
    (unfinished / "plans" / "a.plan").write_text("new")
"""


def old_bundle(folder: Path) -> None:
    """What is there before."""
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"format": FORMAT, "new": False}))
    (folder / "weights.bin").write_text("old")
    (folder / "scale_99.onnx").write_text("old")
    (folder / "plans").mkdir()
    (folder / "plans" / "b.plan").write_text("old")


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


NEW = {"manifest.json": json.dumps({"format": FORMAT, "new": True}), "weights.bin": "new", "plans/a.plan": "new"}


def write_behind(mounts: str, folder: Path) -> dict[str, str]:
    """Write a bundle there after these mounts, and say what is in it then."""
    show = "import json, sys; from pathlib import Path; p = Path(sys.argv[1])\n"
    show += "print(json.dumps({str(f.relative_to(p)): f.read_text() for f in p.rglob('*') if f.is_file()}))"
    script = f'{mounts} || exit 77\n{sys.executable} -c "$WRITE" {folder} && {sys.executable} -c "$SHOW" {folder}'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script],
        env={**os.environ, "WRITE": WRITE, "SHOW": show}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"this machine lets nobody mount: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_folder_in_a_lower_layer_is_replaced(tmp_path):
    """`bind` in a container whose image holds the bundle: its folder cannot be renamed (EXDEV)."""
    for name in ("upper", "work", "merged"):
        (tmp_path / name).mkdir()
    old_bundle(tmp_path / "lower" / "bundle")
    layers = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    assert write_behind(f"mount -t overlay overlay -o {layers} {tmp_path}/merged", tmp_path / "merged/bundle") == NEW


@pytest.mark.parametrize("is_there", [True, False], ids=["a bundle", "an empty folder"])
def test_a_mount_point_is_filled(tmp_path, is_there):
    """`--out` on a volume: its name cannot be given away (EBUSY), and what lies beside it is another file system."""
    source = tmp_path / "volume"
    old_bundle(source) if is_there else source.mkdir()
    (source / "lost+found").mkdir()
    (tmp_path / "bundle").mkdir()
    assert write_behind(f"mount --bind {source} {tmp_path}/bundle", tmp_path / "bundle") == NEW
    assert (source / "lost+found").is_dir()


def test_under_a_parent_that_is_read_only_the_folder_is_filled(tmp_path):
    """A container's root may not be written; the volume in it may."""
    for name in ("root/bundle", "volume"):
        (tmp_path / name).mkdir(parents=True)
    mounts = f"mount --bind {tmp_path}/root {tmp_path}/root && mount --bind {tmp_path}/volume {tmp_path}/root/bundle"
    assert write_behind(f"{mounts} && mount -o remount,bind,ro {tmp_path}/root", tmp_path / "root/bundle") == NEW


@pytest.mark.parametrize("number", bundle_folder._NO_EXCHANGE)
def test_a_file_system_without_an_exchange_is_no_obstacle(tmp_path, monkeypatch, number):
    """Each says so in its own way."""
    import ctypes

    def refuse(*_: object) -> int:
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(bundle_folder.ctypes, "CDLL", lambda *_, **__: type("C", (), {"renameat2": refuse}))
    old_bundle(tmp_path / "bundle")
    with folder_written_whole(tmp_path / "bundle") as unfinished:
        for name, text in NEW.items():
            (unfinished / name).parent.mkdir(exist_ok=True)
            (unfinished / name).write_text(text)
    assert contents(tmp_path / "bundle") == NEW
    assert os.listdir(tmp_path) == ["bundle"]


@pytest.mark.parametrize("is_there", [True, False], ids=["a bundle", "an empty folder"])
@pytest.mark.parametrize("hidden", ["lost+found", ".git", ".snapshot", "System Volume Information"])
def test_what_is_hidden_does_not_stand_in_the_way_and_stays(tmp_path, is_there, hidden):
    """A file system keeps its own things in its root, and a clone of a repository its history."""
    old_bundle(tmp_path / "bundle") if is_there else (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / hidden).mkdir()
    (tmp_path / "bundle" / hidden / "kept").write_text("kept")
    assert replaces_bundle(tmp_path / "bundle") == is_there
    with folder_written_whole(tmp_path / "bundle") as unfinished:
        for name, text in NEW.items():
            (unfinished / name).parent.mkdir(exist_ok=True)
            (unfinished / name).write_text(text)
    assert contents(tmp_path / "bundle") == {**NEW, f"{hidden}/kept": "kept"}
    assert os.listdir(tmp_path) == ["bundle"]


def test_what_is_no_bundle_is_not_replaced(tmp_path):
    """A file, a link to a bundle, a folder of somebody's, another program's manifest, a folder that nobody may list."""
    old_bundle(tmp_path / "bundle")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("bundle")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    (tmp_path / "extension").mkdir()
    (tmp_path / "extension" / "manifest.json").write_text('{"name": "of a browser"}')
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "manifest.json").write_text("[" * 100_000)
    for name in ("file", "link", "thesis", "extension", "deep"):
        with pytest.raises(BundleError, match=f"{name} is there and is not a bundle"):
            folder_written_whole(tmp_path / name).__enter__()
    assert not replaces_bundle(tmp_path / "new") and replaces_bundle(tmp_path / "bundle")


def test_a_filling_that_breaks_off_leaves_no_whole_bundle_and_can_be_done_again(tmp_path, monkeypatch):
    """Killed at any of its renames: nobody takes the folder for whole, and the next writer may replace it."""
    old_bundle(tmp_path / "bundle")
    monkeypatch.setattr(bundle_folder, "_is_mount_point", lambda _: True)
    real, left = os.replace, 0

    def break_off(source: Path, target: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        real(source, target)

    for renames in range(1, 4):
        left = renames
        monkeypatch.setattr(bundle_folder.os, "replace", break_off)
        with pytest.raises(KeyboardInterrupt), folder_written_whole(tmp_path / "bundle") as unfinished:
            for name, text in NEW.items():
                (unfinished / name).parent.mkdir(exist_ok=True)
                (unfinished / name).write_text(text)
        assert json.loads((tmp_path / "bundle" / "manifest.json").read_text()) == {"format": FORMAT, "unfinished": True}
    monkeypatch.setattr(bundle_folder.os, "replace", real)
    with folder_written_whole(tmp_path / "bundle") as unfinished:
        (unfinished / "manifest.json").write_text(NEW["manifest.json"])
    assert contents(tmp_path / "bundle") == {"manifest.json": NEW["manifest.json"]}
