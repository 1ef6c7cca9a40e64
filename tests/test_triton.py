"""`actvar-trt triton`, behind a real Triton server on a CPU: its pictures are `generate`'s, whatever shares a batch."""

import json
import os
import subprocess
import sys
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import in_process
from small_models import small_config, vivid_model
from triton_server import running, unpacked, with_client

from actvar.export.onnx_export import export_bundle
from actvar.runtime.pictures import Order
from actvar.runtime.pipeline import GraphSource
from actvar.runtime.sources import open_graphs


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
    return unpacked(tmp_path_factory.mktemp("triton"))


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


ASK = """
import json, sys
import numpy as np
import tritonclient.http as http

def given(name, value, kind):
    found = http.InferInput(name, [1, 1], kind)
    found.set_data_from_numpy(np.array([[value]], {"INT64": np.int64, "UINT64": np.uint64}[kind]))
    return found

client = http.InferenceServerClient(sys.argv[1], concurrency=20)
kinds = {"class_id": "INT64", "seed": "UINT64", "number": "UINT64"}
asked = [[given(name, value, kinds[name]) for name, value in one.items()] for one in json.loads(sys.argv[2])]
answers = [client.async_infer("actvar", inputs) for inputs in asked]
np.save(sys.argv[3], np.concatenate([answer.get_result().as_numpy("picture") for answer in answers]))
"""


@pytest.mark.slow
def test_nvidias_own_client_is_given_the_same(server: Path, source: GraphSource, repository: Path, tmp_path: Path):
    """Twenty requests at once by tritonclient, in its binary form, each with a seed of its own."""
    client, drawn = with_client(tmp_path / "client"), tmp_path / "drawn.npy"
    asked = [{"class_id": i % source.model.num_classes, "seed": 2**63 + i, "number": 3 * i} for i in range(20)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(client), os.environ.get("PYTHONPATH", "")])}
    with running(server, repository, tmp_path / "log.txt") as triton:
        words = [sys.executable, "-c", ASK, triton.place, json.dumps(asked), str(drawn)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    for picture, one in zip(np.load(drawn), asked, strict=True):
        [wanted] = source.draw([Order(one["class_id"], one["number"])], source.model.sampling, one["seed"])
        np.testing.assert_array_equal(picture, wanted.pixels_HW3)


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
