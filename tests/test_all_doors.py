"""Every door to a model, asked for the same pictures: class, seed and number decide the bytes, nothing else does."""

import base64
import io
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_models import small_config, vivid_model
from triton_server import free_port, running, unpacked

from actvar import Pipeline
from actvar.export.onnx_export import export_bundle

CLASSES, COUNT, SEED = 5, 6, 2**63 + 7
ASKED = [(number % CLASSES, number) for number in range(COUNT)]
"""Class and number, as `sample` numbers them."""
MAIN = "import sys; from actvar.cli.main import main; sys.argv[0] = 'actvar-trt'; main()"
READY = 180  # seconds, on a machine that does other things too

Pictures = list[np.ndarray]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "bundle"
    export_bundle(vivid_model(small_config()), folder, "fp32", "a test")
    return folder


@pytest.fixture(scope="module")
def drawn(bundle: Path) -> Pictures:
    """By the command line, one picture at a time."""
    folder = bundle.parent / "drawn"
    command("generate", "--model", bundle, "--class", "all", "--count", COUNT, "--seed", SEED, "--out", folder)
    return [pixels(folder / f"bundle-{class_id:03}-seed{SEED}-{number}.png") for class_id, number in ASKED]


def command(*arguments: object) -> None:
    """`actvar-trt`, in a process of its own; Ray's workers are not to wait for what else the machine does."""
    environment = {**os.environ, "RAY_worker_niceness": "0"}
    words = [sys.executable, "-c", MAIN, *map(str, arguments)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr


def pixels(file: Any) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture)


def by_python(bundle: Path, _: Path) -> Pictures:
    """Five at a time, so that no batch is the command line's."""
    with Pipeline.from_pretrained(str(bundle), threads=1, batch_size=5, progress_bar=False) as pipe:
        images = pipe(list(range(CLASSES)), num_images_per_label=COUNT, seed=SEED).images
    return [np.asarray(images[class_id * COUNT + number]) for class_id, number in ASKED]


def asked_over_http(url: str) -> Pictures:
    import httpx

    found = []
    for class_id, number in ASKED:
        fields = {"prompt": str(class_id), "seed": SEED, "number": number}
        answer = httpx.post(f"{url}/v1/images/generations", json=fields, timeout=60)
        assert answer.status_code == 200, answer.text
        found.append(pixels(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"]))))
    return found


def by_http(bundle: Path, _: Path) -> Pictures:
    """`actvar-trt serve`'s app."""
    pytest.importorskip("fastapi", reason="needs the extra serve")
    from served import serving

    with serving(bundle) as served:
        return asked_over_http(served.url)


def by_triton(bundle: Path, folder: Path) -> Pictures:
    """All in one request."""
    server, repository = unpacked(folder), folder / "models"
    command("triton", repository, "--bundle", bundle, "--threads", 1)
    classes, numbers = zip(*ASKED, strict=True)
    with running(server, repository, folder / "log.txt") as triton:
        return list(triton.draw(class_id=classes, seed=[SEED] * COUNT, number=numbers))


def by_ray_data(bundle: Path, folder: Path) -> Pictures:
    """`sample --ray local`: two workers, in shards of two pictures."""
    pytest.importorskip("ray.data", reason="needs Ray: pip install 'actvar-trt[ray]'")
    sampled = ["sample", "--model", bundle, "--threads", 1, "--count", COUNT, "--seed", SEED, "--ray", "local"]
    command(*sampled, "--workers", 2, "--format", "webdataset", "--shard-size", 2, "--out", folder / "set")
    found = []
    for shard in sorted((folder / "set").glob("*.tar")):
        with tarfile.open(shard) as archive:
            members = {name: archive.extractfile(name) for name in archive.getnames()}
            found += [pixels(members[name]) for name in sorted(members) if name.endswith(".png")]
    return found


SERVE = """
import sys
import ray
from ray import serve
from actvar.serve.ray import Settings, app

ray.init(address="local", include_dashboard=False, num_cpus=3)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(app(Settings(max_replicas=2)), name="pictures", blocking=True)
"""


def by_ray_serve(bundle: Path, folder: Path) -> Pictures:
    """What `serve run actvar.serve.ray:app` does, without a dashboard; the environment names the model."""
    pytest.importorskip(
        "ray.serve", reason="needs Ray Serve: pip install 'actvar-trt[ray,serve]'", exc_type=ImportError
    )
    port, log = free_port(), folder / "log.txt"
    environment = {**os.environ, "ACTVAR_SERVE_MODEL": str(bundle), "RAY_worker_niceness": "0"}
    with log.open("wb") as said:
        words = [sys.executable, "-c", SERVE, str(port)]
        process = subprocess.Popen(words, env=environment, stdout=said, stderr=said)
    try:
        end = time.monotonic() + READY
        while not answers(f"http://127.0.0.1:{port}/readyz"):
            assert process.poll() is None and time.monotonic() < end, log.read_text(errors="replace")[-6000:]
            time.sleep(0.2)
        return asked_over_http(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()  # it ends its cluster
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    import httpx

    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


DOORS: dict[str, Callable[[Path, Path], Pictures]] = {
    "Python": by_python,
    "HTTP": by_http,
    "Triton": by_triton,
    "Ray Data": by_ray_data,
    "Ray Serve": by_ray_serve,
}


@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS)
def test_all_doors_give_the_pictures_of_generate(door: str, bundle: Path, drawn: Pictures, tmp_path: Path):
    """By batches, replicas and processes of their own: each picture is the one of its class, seed and number."""
    found = DOORS[door](bundle, tmp_path)
    assert len(found) == len(drawn) == COUNT and len({picture.tobytes() for picture in drawn}) == COUNT
    for picture, wanted in zip(found, drawn, strict=True):
        np.testing.assert_array_equal(picture, wanted)
