"""A real Triton server on a CPU, for tests: the one in the wheel of nvidia-pytriton, of which nothing else is used."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WHEEL = "nvidia-pytriton==0.7.0"
WHEELS_VARIABLE = "ACTVAR_TRITON_WHEELS"
"""A folder that holds the wheel, where it is not to be fetched."""
CLIENT = (
    "tritonclient==2.73.0",
    "geventhttpclient==2.6.1",
    "gevent==26.9.0",
    "zope.event==6.2",
    "zope.interface==8.7",
    "python-rapidjson==1.25",
    "brotli==1.2.1",
)
"""NVIDIA's client over HTTP, and what it loads: it asks for releases of ml_dtypes and greenlet that others exclude."""
READY = 180  # seconds


def unpacked(folder: Path) -> Path:
    """The server's own folder, out of the wheel; where there is none, the test is skipped, and says why."""
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


def with_client(folder: Path) -> Path:
    """A folder for Python's path that holds NVIDIA's client; where there is none, the test is skipped, and says why."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target", str(folder)]
    options = ["--timeout", "20", "--retries", "1", "--disable-pip-version-check"]
    done = subprocess.run([*command, *options, *CLIENT], capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        pytest.skip(f"{CLIENT[0]} is not to be had here: {done.stderr.strip().splitlines()[-1:]}")
    return folder


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Server:
    """A server that runs, asked over HTTP as its protocol says (KServe's, version 2)."""

    def __init__(self, port: int, process: subprocess.Popen):
        self.place, self.process = f"127.0.0.1:{port}", process
        self._url = f"http://{self.place}/v2"

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
