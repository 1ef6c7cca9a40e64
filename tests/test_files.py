"""Which files are opened: plain ones, and of links those of a Hub cache that stay in it; and how files are written."""

import errno
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_cache import COMMIT, HubCache

from actvar import files
from actvar.errors import BundleError
from actvar.files import hash_file, opened, remove_folder, scratch_folder, written_whole

CONTENT, SECRET = b"the weights", b"root:x:0:0"


@pytest.fixture
def cache(tmp_path: Path) -> HubCache:
    """A repository with a file, and one in a folder; beside the cache a secret."""
    made = tmp_path / "made"
    (made / "plans" / "a-gpu").mkdir(parents=True)
    (made / "weights.bin").write_bytes(CONTENT)
    (made / "plans" / "a-gpu" / "decoder.plan").write_bytes(b"a plan")
    (tmp_path / "secret").write_bytes(SECRET)
    cache = HubCache(tmp_path / "hub")
    cache.add("user/repo", made)
    return cache


def read(path: Path) -> bytes:
    with opened(path) as file:
        return file.read()


def assert_refused(path: Path) -> None:
    with pytest.raises(BundleError, match=r"must be a plain file|is missing|cannot be read"):
        read(path)


def test_links_of_a_hub_cache_are_followed(cache: HubCache, monkeypatch: pytest.MonkeyPatch):
    """In any folder of the snapshot, by an absolute or a relative path, as text that is absolute, too."""
    snapshot = cache.snapshot("user/repo")
    assert (snapshot / "weights.bin").is_symlink()
    assert read(snapshot / "weights.bin") == CONTENT
    assert hash_file(snapshot / "plans" / "a-gpu" / "decoder.plan").bytes == 6
    monkeypatch.chdir(snapshot)
    assert read(Path("weights.bin")) == CONTENT
    monkeypatch.chdir(snapshot / "plans")
    assert read(Path("../weights.bin")) == CONTENT
    blob = (snapshot / "weights.bin").resolve()
    (snapshot / "weights.bin").unlink()
    (snapshot / "weights.bin").symlink_to(blob)
    assert read(snapshot / "weights.bin") == CONTENT


def test_a_cache_that_is_reached_through_a_link_is_a_cache(cache: HubCache, tmp_path: Path):
    """~/.cache is often a link to a larger disk."""
    (tmp_path / "linked").symlink_to(cache.folder)
    assert read(tmp_path / "linked" / cache.snapshot("user/repo").relative_to(cache.folder) / "weights.bin") == CONTENT


def test_plain_files_in_a_snapshot_are_plain_files(cache: HubCache):
    """Where the system has no links, the Hub's library puts the files themselves there."""
    link = cache.snapshot("user/repo") / "weights.bin"
    content = link.read_bytes()
    link.unlink()
    link.write_bytes(content)
    assert read(link) == CONTENT


def test_a_blob_that_is_not_there_is_missing(cache: HubCache):
    """As after a cache was tidied up: no other file is taken for it."""
    link = cache.snapshot("user/repo") / "weights.bin"
    link.resolve().unlink()
    with pytest.raises(BundleError, match=r"weights\.bin is missing"):
        read(link)


@pytest.mark.parametrize(
    "text",
    [
        "/etc/passwd",
        "../../../../secret",
        "../../blobs/../../../secret",
        "../../blobs",
        "../../blobs/",
        "../../blobs/.",
        "../../blobs/..",
        "../../blobs/deeper/file",
        "../../refs/main",
        "../../../models--other--repo/blobs/x",
        "weights.bin",
        "other.bin",
        "nowhere",
    ],
)
def test_a_link_that_leaves_the_blobs_is_refused(cache: HubCache, text: str):
    """Out of the cache, to another repository's, to a folder, to what is beside it, to itself."""
    snapshot, other = cache.snapshot("user/repo"), cache.repository("other/repo") / "blobs"
    other.mkdir(parents=True)
    (other / "x").write_bytes(SECRET)
    deeper = cache.repository("user/repo") / "blobs" / "deeper"
    deeper.mkdir()
    (deeper / "file").write_bytes(SECRET)
    (snapshot / "other.bin").write_bytes(CONTENT)
    (snapshot / "weights.bin").unlink()
    (snapshot / "weights.bin").symlink_to(text)
    assert_refused(snapshot / "weights.bin")


def blob_is_a_link(cache: HubCache, secret: Path) -> None:
    blob = (cache.snapshot("user/repo") / "weights.bin").resolve()
    blob.unlink()
    blob.symlink_to(secret)


def blob_is_a_pipe(cache: HubCache, secret: Path) -> None:
    blob = (cache.snapshot("user/repo") / "weights.bin").resolve()
    blob.unlink()
    os.mkfifo(blob)


def blobs_are_elsewhere(cache: HubCache, secret: Path) -> None:
    """A link in place of the folder, and behind it a file of the right name."""
    blobs = cache.repository("user/repo") / "blobs"
    elsewhere = secret.parent / "elsewhere"
    shutil.move(blobs, elsewhere)
    blobs.symlink_to(elsewhere)


def snapshots_are_elsewhere(cache: HubCache, secret: Path) -> None:
    """The name says one repository and the system comes to another one, whose blobs nobody has looked at."""
    snapshots = cache.repository("user/repo") / "snapshots"
    other = secret.parent / "other" / "models--evil--repo"
    other.mkdir(parents=True)
    shutil.move(snapshots, other / "snapshots")
    link = other / "snapshots" / COMMIT / "weights.bin"
    (other / "blobs").mkdir()
    shutil.copyfile(secret, other / "blobs" / os.path.basename(os.readlink(link)))
    snapshots.symlink_to(other / "snapshots")


@pytest.mark.parametrize("change", [blob_is_a_link, blob_is_a_pipe, blobs_are_elsewhere, snapshots_are_elsewhere])
def test_a_cache_whose_own_parts_lead_elsewhere_is_refused(cache: HubCache, tmp_path: Path, change: Callable):
    """A link that stays inside by its text is not enough: what it ends at must be there, and plain."""
    change(cache, tmp_path / "secret")
    assert_refused(cache.snapshot("user/repo") / "weights.bin")


@pytest.mark.parametrize(
    "place",
    [
        "bundle",  # today's: a folder, and a link in it
        "snapshots/" + COMMIT,  # no repository's folder above
        "repo/snapshots/" + COMMIT,  # one that is not a Hub cache's
        "models--user--repo/snapshots/main",  # no commit
        "models--user--repo/" + COMMIT,  # no snapshots
        "models--user--repo/snapshots/" + COMMIT + "/../../../evil",  # which is no snapshot once it is spelt out
        "models--user--repo/snapshots/x/" + COMMIT,
    ],
)
def test_a_folder_that_only_looks_like_a_snapshot_is_none(tmp_path: Path, place: str):
    """Its links are refused, even those to a file beside it: what unpacks in a person's folder may lie anywhere."""
    folder = tmp_path / place
    (tmp_path / "models--user--repo" / "snapshots" / COMMIT).mkdir(parents=True)
    Path(os.path.normpath(folder)).mkdir(parents=True, exist_ok=True)
    for above in Path(os.path.normpath(folder)).parents[:3]:
        if above.is_relative_to(tmp_path):
            (above / "blobs").mkdir(exist_ok=True)
            (above / "blobs" / "abc").write_bytes(SECRET)
    for depth in range(1, 4):
        link = folder / f"weights-{depth}.bin"
        link.symlink_to("../" * depth + "blobs/abc")
        assert_refused(link)
    plain = folder / "plain.bin"
    plain.write_bytes(CONTENT)
    (folder / "beside.bin").symlink_to("plain.bin")
    assert read(plain) == CONTENT
    assert_refused(folder / "beside.bin")


def test_a_file_that_becomes_a_link_or_a_pipe_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Between the look and the opening: the first is refused by the system, the second must not be waited for."""
    path, looks = tmp_path / "weights.bin", os.stat
    for change in (lambda: path.symlink_to("/etc/passwd"), lambda: os.mkfifo(path)):
        path.unlink(missing_ok=True)
        path.write_bytes(CONTENT)

        def looked(*arguments, change=change, **options):
            found = looks(*arguments, **options)
            if options.get("follow_symlinks") is False and options.get("dir_fd", 0) is None:
                path.unlink()
                change()
            return found

        monkeypatch.setattr(os, "stat", looked)
        assert_refused(path)
        monkeypatch.setattr(os, "stat", looks)


def test_no_descriptor_stays_open(cache: HubCache):
    """Of files that were refused, too."""
    before = len(os.listdir("/proc/self/fd"))
    link = cache.snapshot("user/repo") / "weights.bin"
    for _ in range(20):
        read(link)
    blob_is_a_pipe(cache, link)
    for _ in range(20):
        assert_refused(link)
    assert len(os.listdir("/proc/self/fd")) == before


# ---- written


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path):
    """Of this name alone, and nothing that is no file; several were writing it, maybe."""
    path, others = tmp_path / "picture.png", ("other.png", ".other.png.0.tmp", ".picture.png.tmp")
    for name in others:
        (tmp_path / name).write_bytes(b"another's")
    (tmp_path / ".picture.png.0.tmp").mkdir()
    (tmp_path / ".picture.png.1.tmp").symlink_to(tmp_path / "other.png")
    os.mkfifo(tmp_path / ".picture.png.2.tmp")
    for number in (3, 4, 5):
        (tmp_path / f".picture.png.{number}.tmp").write_bytes(b"half")
    with written_whole(path) as file:
        file.write(CONTENT)
    assert path.read_bytes() == CONTENT and (tmp_path / "other.png").read_bytes() == b"another's"
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, *(f".picture.png.{i}.tmp" for i in range(3)), *others])


def test_a_file_is_written_without_a_look_at_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run of 8,000 pictures took 20 seconds of the processor's time to list what it had written before each."""
    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, lambda *_: pytest.fail("the folder was listed"))
    with written_whole(tmp_path / "picture.png") as file:
        file.write(CONTENT)
    assert (tmp_path / "picture.png").read_bytes() == CONTENT


def test_a_leftover_that_became_the_file_while_it_was_looked_at_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its writer was done between opening and locking, and a third one writes under the old name by now."""
    path, lock, third = tmp_path / "picture.png", fcntl.flock, b"a third one's"
    hidden = tmp_path / ".picture.png.0.tmp"
    hidden.write_bytes(b"first")

    def late(file: int, how: int) -> None:
        if how & fcntl.LOCK_NB and not path.exists():
            hidden.rename(path)
            hidden.write_bytes(third)
            living = os.open(hidden, os.O_RDWR)
            lock(living, fcntl.LOCK_EX)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with written_whole(path) as file:
        assert path.read_bytes() == b"first" and hidden.read_bytes() == third
        file.write(CONTENT)
    assert path.read_bytes() == CONTENT and hidden.read_bytes() == third


def test_so_many_writers_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever puts them there shall not have the next one look for ever."""
    monkeypatch.setattr(files, "_WRITERS", 3)
    for number in range(3):
        (tmp_path / f".picture.png.{number}.tmp").mkdir()
    with pytest.raises(FileExistsError, match="3 unfinished files"), written_whole(tmp_path / "picture.png"):
        pass


def test_a_writer_that_lives_is_left_alone(tmp_path: Path):
    """Two processes may write one name at a time: the last one's file stays."""
    path = tmp_path / "picture.png"
    with written_whole(path) as first:
        first.write(b"first")
        with written_whole(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == [path.name]


def test_a_file_that_was_taken_for_a_leftover_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Between its first moment and its lock another writer may remove it."""
    lock, taken = fcntl.flock, []

    def late(file: int, how: int) -> None:
        if not taken:
            taken.append(os.readlink(f"/proc/self/fd/{file}"))
            os.unlink(taken[0])
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with written_whole(tmp_path / "picture.png") as file:
        file.write(CONTENT)
    assert taken and os.listdir(tmp_path) == ["picture.png"]


def test_files_are_written_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """There nobody can tell a leftover from a file that is being written: both stay."""

    def refuse(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / ".picture.png.0.tmp").write_bytes(b"half")
    monkeypatch.setattr(fcntl, "flock", refuse)
    with written_whole(tmp_path / "picture.png") as file:
        file.write(CONTENT)
    assert sorted(os.listdir(tmp_path)) == [".picture.png.0.tmp", "picture.png"]


def test_a_signal_at_any_moment_leaves_no_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As it has just been made, too; `tempfile.TemporaryDirectory` knows of its folder a moment later."""
    make = os.mkdir
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def interrupted(*given: object, **more: object) -> None:
        make(*given, **more)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as moment, pytest.raises(KeyboardInterrupt):
        moment.setattr(os, "mkdir", interrupted)
        with scratch_folder("test"):
            pass
    assert os.listdir(tmp_path) == [] and tempfile.gettempdir() == str(tmp_path)


def test_what_libraries_leave_goes_with_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """ONNX Runtime's quantizer has folders of its own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch_folder("test") as folder:
        assert folder in Path(tempfile.mkdtemp()).parents
    assert os.listdir(tmp_path) == []


def test_a_folder_is_removed_however_deep_it_is(tmp_path):
    """A bundle that is replaced may come from anywhere; its folders may be as deep as a path is long."""
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    (tmp_path / "d" / "file").write_text("")
    try:
        remove_folder(tmp_path / "d")
        assert os.listdir(tmp_path) == []
    finally:  # pytest could not remove it, either
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)
