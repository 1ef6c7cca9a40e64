"""`actvar-trt triton`, behind a real Triton server on a CPU: its pictures are `generate`'s, whatever shares a batch.

The server is the one in PyPI's wheel of nvidia-pytriton, of which nothing else is used or installed.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import in_process
from small_models import small_config, vivid_model

from actvar.export.onnx_export import export_bundle
from actvar.runtime.pictures import Order
from actvar.runtime.pipeline import GraphSource
from actvar.runtime.sources import open_graphs

WHEEL = "nvidia-pytriton==0.7.0"
WHEELS_VARIABLE = "ACTVAR_TRITON_WHEELS"
"""A folder that holds the wheel, where it is not to be fetched."""
READY = 180  # seconds


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "bundle"
    export_bundle(vivid_model(small_config()), folder, "fp32", "a test")
    return folder


@pytest.fixture(scope="module")
def source(bundle: Path) -> GraphSource:
    return open_graphs(bundle, batch_size=1, threads=1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's folder, out of the wheel."""
    folder = tmp_path_factory.mktemp("triton")
    library = Path(sysconfig.get_config_var("LIBDIR")) / str(sysconfig.get_config_var("INSTSONAME"))
    if not library.name.startswith("libpython") or not library.is_file():
        pytest.skip("Triton's stub loads Python as a library, and this one was built without")
    where = os.environ.get(WHEELS_VARIABLE)
    source = ["--no-index", "--find-links", where] if where else ["--timeout", "20", "--retries", "1"]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", WHEEL, "-d", str(folder), *source]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        pytest.skip(f"{WHEEL} is not to be had here: {done.stderr.strip().splitlines()[-1:]}")
    with zipfile.ZipFile(wheels[0]) as archive:
        archive.extractall(folder)
    wheels[0].unlink()
    triton = folder / "pytriton" / "tritonserver"
    stub = (
        triton / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}" / "triton_python_backend_stub"
    )
    if not stub.is_file():
        pytest.skip(f"{WHEEL} has no stub for this Python")
    shutil.copy(stub, triton / "backends" / "python")
    for program in (triton / "bin" / "tritonserver", triton / "backends" / "python" / stub.name):
        program.chmod(0o755)
    return triton


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Server:
    """A server that runs, asked over HTTP as its protocol says (KServe's, version 2)."""

    def __init__(self, port: int, process: subprocess.Popen):
        self._url, self.process = f"http://127.0.0.1:{port}/v2", process

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self._url}/{path}", timeout=60) as answer:
            return answer.read()

    def draw(self, **inputs: list[Any]) -> np.ndarray:
        """Pictures [B, H, W, 3] of inputs that have a value for each."""
        types = {"class_id": "INT64", "seed": "UINT64", "number": "UINT64", "top_k": "INT32"}
        body = {
            "inputs": [
                {"name": name, "shape": [len(values), 1], "datatype": types.get(name, "FP32"), "data": values}
                for name, values in inputs.items()
            ]
        }
        request = urllib.request.Request(
            f"{self._url}/models/actvar/infer", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            [output] = json.loads(answer.read())["outputs"]
        return np.array(output["data"], np.uint8).reshape(output["shape"])

    def batches(self) -> tuple[int, int]:
        """Pictures that were asked for, and the batches that they were drawn in."""
        [model] = json.loads(self.get("models/actvar/stats"))["model_stats"]
        return model["inference_count"], model["execution_count"]


@contextmanager
def running(triton: Path, repository: Path, log: Path) -> Iterator[Server]:
    port = free_port()
    library = Path(sysconfig.get_config_var("LIBDIR"))
    command = [triton / "bin" / "tritonserver", "--model-repository", repository, "--backend-directory"]
    command += [triton / "backends", "--http-address", "127.0.0.1", "--http-port", str(port)]
    command += ["--allow-grpc", "false", "--allow-metrics", "false"]
    libraries = f"{library}:{triton.parent.parent / 'nvidia_pytriton.libs'}"
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with log.open("ab") as file:
        process = subprocess.Popen(
            [*map(str, command)], env=environment, stdout=file, stderr=file, start_new_session=True
        )
    found, end = Server(port, process), time.monotonic() + READY
    try:
        while True:
            assert process.poll() is None and time.monotonic() < end, log.read_text(errors="replace")[-6000:]
            try:
                found.get("health/ready")
                break
            except OSError:
                time.sleep(0.2)
        yield found
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def repository(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Path:
    """Written by the command."""
    command = in_process(monkeypatch, capsys, "triton")
    folder = tmp_path / "models"
    code, out, err = command(folder, "--bundle", bundle, "--threads", 1, "--max-wait-ms", 200)
    assert (code, out, err) == (0, f"{folder / 'actvar' / 'config.pbtxt'}\n", "")
    return folder


@pytest.mark.slow
def test_the_servers_pictures_are_those_of_generate(
    server: Path, source: GraphSource, repository: Path, tmp_path: Path
):
    """Alone, together in a batch, with choices of their own; refused in words; and again after kill -9."""
    own, classes = source.model.sampling, source.model.num_classes

    def expected(class_id: int, seed: int, number: int, **choices: Any) -> np.ndarray:
        [picture] = source.draw([Order(class_id, number)], replace(own, **choices), seed)
        return picture.pixels_HW3

    asked = [(i % classes, 2**63 + i, 3 * i) for i in range(20)]
    log = tmp_path / "log.txt"
    with running(server, repository, log) as triton:
        with ThreadPoolExecutor(20) as clients:
            drawn = list(clients.map(lambda one: triton.draw(class_id=[one[0]], seed=[one[1]], number=[one[2]]), asked))
        for one, pictures in zip(asked, drawn, strict=True):
            np.testing.assert_array_equal(pictures[0], expected(*one))
        pictures_asked, batches = triton.batches()
        assert batches < pictures_asked, "the server put some of them together"
        together = triton.draw(class_id=[1, 2, 3], seed=[0, 5, 0], number=[0, 0, 9], guidance_scale=[0, 3.5, 1])
        for picture, one, cfg in zip(together, [(1, 0, 0), (2, 5, 0), (3, 0, 9)], (0, 3.5, 1), strict=True):
            np.testing.assert_array_equal(picture, expected(*one, cfg=cfg))
        np.testing.assert_array_equal(triton.draw(class_id=[4])[0], expected(4, 0, 0))
        chosen = triton.draw(class_id=[4], top_k=[3], top_p=[0.5])[0]
        np.testing.assert_array_equal(chosen, expected(4, 0, 0, top_k=3, top_p=0.5))
        for wrong in ({"class_id": [classes + 1]}, {"class_id": [0], "top_p": [7.0]}, {"class_id": [-1]}):
            with pytest.raises(urllib.error.HTTPError) as refused:
                triton.draw(**wrong)
            answer = refused.value.read().decode()
            assert "must" in answer and "Traceback" not in answer
        assert "Traceback" not in log.read_text(errors="replace")
    with running(server, repository, log) as triton:  # it was killed, not ended
        np.testing.assert_array_equal(triton.draw(class_id=[asked[7][0]], seed=[asked[7][1]], number=[21]), drawn[7])


def test_a_repository_says_what_it_is_of(repository: Path, bundle: Path):
    """Dynamic batching, warm-up, the bundle; and a README beside it."""
    text = (repository / "actvar" / "config.pbtxt").read_text()
    for part in ("max_batch_size: 8", "max_queue_delay_microseconds: 200000", "kind: KIND_CPU }", "model_warmup"):
        assert part in text
    assert f'key: "bundle" value: {{ string_value: "{bundle}" }}' in text
    assert sorted(path.name for path in repository.iterdir()) == ["README.md", "actvar"]


def test_gpus_have_an_instance_each(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    command = in_process(monkeypatch, capsys, "triton")
    assert command(tmp_path / "x", "--bundle", bundle, "--backend", "tensorrt", "--gpus", "0,2")[0] == 0
    text = (tmp_path / "x" / "actvar" / "config.pbtxt").read_text()
    assert "instance_group [ { count: 1 kind: KIND_GPU gpus: [ 0, 2 ] } ]" in text
    for options, words in {
        f"x --bundle {bundle}": "holds README.md already. Name a new folder",
        f"y --bundle {bundle} --gpus 1": "--gpus is of a model that draws on GPUs",
        f"y --bundle {bundle} --backend tensorrt --device cpu": "needs a GPU",
    }.items():
        monkeypatch.chdir(tmp_path)
        code, _, err = command(*options.split())
        assert code == 2 and words in err
    assert not (tmp_path / "y").exists()
