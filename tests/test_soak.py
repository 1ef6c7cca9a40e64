"""The soak: it passes where nothing grows and nothing changes, and finds both where they happen."""

import json
import mmap
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small_models import small_config, vivid_model

from actvar.benchmarks import soak
from actvar.benchmarks.command import end_with
from actvar.export.onnx_export import export_bundle
from actvar.process_memory import ProcessMemory
from actvar.runtime import pipeline
from actvar.runtime.backends.buffered import BufferedEngine
from actvar.runtime.pictures import Order, Picture
from actvar.runtime.sources import open_graphs

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    export_bundle(vivid_model(small_config()), folder, "fp32", "a test")
    return folder


@pytest.fixture
def run(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> Callable[..., tuple[int, dict, str]]:
    """`soak.py` for two seconds of a clock on which a picture takes 50 ms: exit code, report, and what it said."""
    clock = count()
    monkeypatch.setattr(soak, "time", SimpleNamespace(perf_counter=lambda: next(clock) / 20))

    def call(*more: object) -> tuple[int, dict, str]:
        path = tmp_path / "soak.json"
        options = ("--bundle", bundle, "--minutes", 2 / 60, "--settle", 0.5, "--threads", 1, "--json", path, *more)
        monkeypatch.setattr(sys, "argv", ["soak.py", *map(str, options)])
        with pytest.raises(SystemExit) as left:
            end_with(soak.main)
        said = capsys.readouterr()
        return left.value.code, json.loads(path.read_text()) if path.exists() else {}, said.out + said.err

    return call


def picture(number: int, value: int = 0, token: int = 0) -> Picture:
    tokens = (np.array([token]), np.arange(4))
    return Picture(Order(number, number), np.full((2, 2, 3), value, np.uint8), tokens, ())


def test_pictures_that_stay_the_same_pass(run, bundle: Path):
    """Batches of three of eight orders are new batches every time; the digests are those of the pictures alone."""
    code, report, said = run("--batch", 3)
    assert code == 0 and report["failures"] == [] and "FAILED" not in said
    source = open_graphs(bundle, 1, threads=1)
    alone = source.draw(soak.orders(source.model), source.model.sampling, soak.SEED)
    assert [made["sha256"] for made in report["pictures"]] == [soak.digest(made) for made in alone]
    assert len({made["sha256"] for made in report["pictures"]}) == 8
    assert {made["class_id"] for made in report["pictures"]} == set(range(5))
    assert sum(made["drawn"] for made in report["pictures"]) == report["drawn_pictures"] == 40
    assert report["seconds"] == 2 <= report["drawn_seconds"] < 2.2
    assert (report["batch"], report["threads"], report["bundle"]["source"]) == (3, 1, "a test")
    assert report["machine"]["versions"]["onnxruntime"] and "soak.py --bundle" in report["command"]
    assert 1 < len(report["samples"]) <= 101


def test_memory_that_is_kept_is_found(run, monkeypatch: pytest.MonkeyPatch):
    """A megabyte for each launch, from the engine's own hands; of the system, as the heap may have some to spare."""
    launch, kept = BufferedEngine.launch, []

    def leaking(*arguments):
        kept.append(mmap.mmap(-1, MEGABYTE))
        kept[-1].write(b"1" * MEGABYTE)
        return launch(*arguments)

    monkeypatch.setattr(BufferedEngine, "launch", leaking)
    code, report, said = run("--allowed-mb", 5)
    assert code == 1 and report["grown_bytes"] > 5 * MEGABYTE
    assert "FAILED: Memory grew by" in said and "at most 5.0 MB are allowed" in said


def test_a_picture_that_changes_is_found(run, monkeypatch: pytest.MonkeyPatch):
    """One bit of one pixel, in the thirteenth picture."""
    to_bytes, made = pipeline.to_bytes, []

    def flipping(image_B3HW: np.ndarray) -> np.ndarray:
        pixels_BHW3 = to_bytes(image_B3HW)
        made.append(1)
        pixels_BHW3[0, 3, 3, 1] ^= len(made) == 13
        return pixels_BHW3

    monkeypatch.setattr(pipeline, "to_bytes", flipping)
    code, report, said = run("--allowed-mb", 1000)
    assert code == 1
    assert [made["changed"] for made in report["pictures"]] == [0, 0, 0, 0, 1, 0, 0, 0]
    first = report["first_change"]
    assert (first["class_id"], first["number"]) == (2, 4) and first["sha256"] != report["pictures"][4]["sha256"]
    assert "FAILED: 1 of" in said and "picture 4 of class 2" in said


def test_tokens_count_as_well_as_pixels():
    """Two codes may look alike."""
    digests = {soak.digest(made) for made in (picture(0), picture(0, value=1), picture(0, token=1), picture(1))}
    assert len(digests) == 3  # the order is no part of it


@pytest.mark.parametrize(
    ("looks", "grown"),
    [
        ([(1, 100, 120), (9, 110, 130), (11, 105, 130), (20, 110, 130)], 0),
        ([(1, 100, 120), (9, 110, 130), (11, 115, 130), (20, 100, 130)], 5),  # it rose, and fell again
        ([(1, 100, 120), (9, 110, 130), (11, 105, 137), (20, 110, 137)], 7),  # between two pictures
        ([(1, 150, 160), (9, 110, 160), (11, 105, 160), (20, 149, 160)], 0),
    ],
)
def test_growth_is_counted_from_the_end_of_the_settling_time(looks: list[tuple[int, int, int]], grown: int):
    """At any moment after it, and of either figure."""
    found = soak.Found(soak.Plan(20, 10, 4))
    for seconds, resident, peak in looks:
        found.add(picture(0), seconds, ProcessMemory(resident, peak))
    assert found.grown == grown
    assert [("Memory grew" in failure) for failure in found.failures()] == [True] * (grown > 4)


def test_a_soak_that_shows_nothing_fails():
    """Pictures that are drawn once cannot have changed, and memory that was looked at once cannot have grown."""
    for times in ([1, 11], [1, 2, 3, 4], [11, 12, 13, 14]):
        found = soak.Found(soak.Plan(20, 10, 4))
        for i, seconds in enumerate(times):
            found.add(picture(i % 2), seconds, ProcessMemory(1, 1))
        (failure,) = found.failures()
        assert "are too few" in failure


def test_samples_are_few_and_reach_to_the_end():
    """However many pictures there were."""
    found = soak.Found(soak.Plan(20, 10, 4))
    for i in range(5000):
        found.add(picture(0), 20 * (i + 1) / 5000, ProcessMemory(i, i))
    assert 95 <= len(found.samples) <= 101
    assert found.samples[0].pictures == 1 and found.samples[-1].pictures == 5000


@pytest.mark.parametrize("wrong", [("--batch", 0), ("--minutes", 0), ("--settle", 3), ("--minutes", "nan")])
def test_options_that_make_no_sense_are_refused(run, wrong: tuple[object, ...]):
    code, report, said = run(*wrong)
    assert (code, report) == (2, {}) and said.startswith("Error: --batch must be 1 or more")


def test_a_bundle_that_is_none_is_refused(run, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    code, _, said = run("--bundle", tmp_path / "empty")
    assert code == 1 and said.startswith("Error: ") and "manifest.json" in said


TOUCH = """
import numpy as np
from actvar.process_memory import process_memory
looks = [process_memory()]
block = np.ones(50_000_000, np.uint8)
looks.append(process_memory())
del block
looks.append(process_memory())
print(*[number for look in looks for number in (look.resident, look.peak)])
"""


def test_the_memory_of_a_process_is_what_it_touched():
    """Now and at most: 50 MB more while they are held; after that the peak alone remembers them."""
    said = subprocess.run([sys.executable, "-c", TOUCH], capture_output=True, text=True, check=True).stdout
    before, _, during, _, after, peak = map(int, said.split())
    assert abs(during - before - 50 * MEGABYTE) < 2 * MEGABYTE
    assert abs(after - before) < 2 * MEGABYTE
    assert abs(peak - during) < 2 * MEGABYTE
