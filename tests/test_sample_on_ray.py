"""`actvar-trt sample --ray` on a cluster of two nodes of this machine, one of which is killed: the same bytes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Command, in_process
from small_bundle import small_bundle

from actvar.telemetry import switch_off

COUNT, SHARD = 500, 10
WAIT = 300  # seconds, on a machine that does other things too


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory)


@pytest.fixture
def sample(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """`actvar-trt sample` of the small bundle, in an empty folder."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    return in_process(monkeypatch, capsys, "sample", *arguments(bundle))


def arguments(bundle: Path) -> list[str]:
    return ["--model", str(bundle), "--threads", "1", "--count", str(COUNT), "--shard-size", str(SHARD)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of two CPUs each: with one a job hangs."""
    switch_off()
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="needs Ray: pip install 'actvar-trt[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # 15 of its own: among other work it would hardly run
        started = cluster_utils.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}, shutdown_at_exit=True
        )
        try:
            started.add_node(num_cpus=2)
            yield started
        finally:
            started.shutdown()


def raylet_of(node: Any) -> int:
    [process] = node.all_processes["raylet"]
    return process.process.pid


def wait_until(done: Callable[[], bool], process: subprocess.Popen) -> None:
    end = time.monotonic() + WAIT
    while not done():
        assert process.poll() is None and time.monotonic() < end, process.communicate(timeout=WAIT)
        time.sleep(0.02)


def records(folder: Path) -> list[Path]:
    return list(folder.glob("shards/*.json"))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_an_evaluation_is_drawn_on_ray(
    bundle: Path, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The pieces that it keeps, and the file for the ADM suite, are those of one process."""
    monkeypatch.chdir(tmp_path)
    options = ["--model", bundle, "--threads", 1, "--count", 30, "--seed", 3, "--class", "0-2,none"]
    evaluate = in_process(monkeypatch, capsys, "evaluate", *options)
    for where, ray in (("on-ray", ["--ray", cluster.address, "--workers", 2]), ("alone", [])):
        code, _, err = evaluate(*ray, "--out", where, "--npz", f"{where}.npz")
        assert code == 0, err
    assert tree(Path("on-ray")) == tree(Path("alone"))
    assert Path("on-ray.npz").read_bytes() == Path("alone.npz").read_bytes()


@pytest.mark.slow
def test_a_node_and_then_the_command_are_killed_and_nothing_is_drawn_twice(sample: Command, bundle: Path, cluster: Any):
    """With one raylet gone the other node draws on; after the command is gone too, the same one ends the work."""
    typed = [*arguments(bundle), "--ray", cluster.address, "--format", "webdataset", "--out", "on-ray"]
    command = [sys.executable, "-c", "from actvar.cli.main import main; main()", "sample", *typed]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    folder = Path("on-ray")
    try:
        wait_until(lambda: len(records(folder)) >= 3, process)
        os.kill(raylet_of(next(iter(cluster.worker_nodes))), signal.SIGKILL)
        after = len(records(folder))
        wait_until(lambda: len(records(folder)) >= after + 2, process)
    finally:
        process.kill()
        process.wait()
    kept = {path: path.stat().st_mtime_ns for path in records(folder)}
    kept |= {path: path.stat().st_mtime_ns for path in (folder / f"shard-{p.stem}.tar" for p in records(folder))}
    there = SHARD * len(records(folder))
    assert 0 < there < COUNT, "killed midway"
    code, _, err = sample("--ray", cluster.address, "--format", "webdataset", "--out", "on-ray")
    assert code == 0, err
    assert f"{there} of {COUNT} pictures are in on-ray already." in err
    assert f"{COUNT - there} pictures drawn in" in err and "of Ray: " in err
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert sample("--format", "webdataset", "--out", "alone", "--batch-size", 50)[0] == 0
    assert tree(folder) == tree(Path("alone"))


def test_ray_options_that_do_not_fit_are_refused(sample: Command):
    for options, words in {
        "--workers 2": "--workers is of --ray, which is not given",
        "--ray local --num-gpus 1": "--num-gpus is of workers that draw on GPUs",
        "--ray local --backend torch": "--backend torch draws in one process",
    }.items():
        code, _, err = sample(*options.split(), "--out", "set")
        assert code == 2 and words in err, err


def test_a_bundle_goes_by_its_path_where_that_is_seen(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And through the store where it is not, once: the second worker of a machine finds what the first has kept."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'actvar-trt[ray]'")
    from actvar.serve.carried_bundle import carried

    monkeypatch.setenv("ACTVAR_CACHE", str(tmp_path / "cache"))
    fetched = []
    monkeypatch.setattr(ray, "put", lambda array: array)
    monkeypatch.setattr(ray, "get", lambda array: fetched.append(1) or array)
    parcel = carried(bundle, through_the_store=True)
    assert parcel.here() == bundle.resolve() and not fetched
    moved = bundle.rename(bundle.with_name("moved"))
    try:
        kept = parcel.here()
        once = len(fetched)
        assert tree(kept) == tree(moved) and once and parcel.here() == kept and len(fetched) == once
    finally:
        moved.rename(bundle)
