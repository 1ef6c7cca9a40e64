"""The server: every picture is the command line's, whoever asks beside whom; and what it says when it cannot draw."""

import base64
import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from small_models import small_config, vivid_model

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("httpx", reason="needs httpx, of the extra dev")

from PIL import Image
from served import DRAW, Served, files, refused, serving, until

from actvar.config import Activation
from actvar.errors import EngineError
from actvar.export.onnx_export import export_bundle
from actvar.image import png
from actvar.runtime.api import Pipeline
from actvar.runtime.backends.buffered import BufferedEngine
from actvar.runtime.pipeline import GraphSource
from actvar.serve import batching
from actvar.serve.bodies import GenerationRequest
from actvar.serve.generations import Studio

NAMES = ("red-heart", "brown-crescent", "blue-star", "green-ring", "golden retriever")
CONFIG = replace(small_config(activation=Activation(4, (3, 4), (0.5, 0.6), (0.75, 0.25))), class_names=NAMES)
SCALES = len(CONFIG.schedule)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that draws 10×10, in a folder whose path no answer may name."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    export_bundle(vivid_model(CONFIG), folder, "fp32", "a test")
    return folder


@pytest.fixture(scope="module")
def served(bundle: Path) -> Iterator[Served]:
    with serving(bundle) as served:
        yield served


@pytest.fixture(scope="module")
def drawn(bundle: Path) -> Any:
    """The file that the command line would write, by class, number, seed and sampling."""
    with Pipeline.from_bundle(bundle, threads=1, progress_bar=False) as pipe:

        def draw(class_id: int | str, number: int = 0, seed: int = 0, **sampling: Any) -> bytes:
            made = pipe(class_id, num_images_per_label=number + 1, seed=seed, output_type="pil", **sampling)
            return png(np.asarray(made.images[number]))

        yield draw


def events(text: str) -> list[dict[str, Any]]:
    """What a stream has sent; an event's name is its type."""
    found = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name.removeprefix("event: ") == found[-1].get("type", "error")
    return found


# ---- pictures


def test_a_picture_is_the_file_that_the_command_line_writes(served: Served, bundle: Path, tmp_path: Path):
    """Byte for byte, by the command itself."""
    code = "import sys; from actvar.cli.main import main; sys.argv[0] = 'actvar-trt'; main()"
    words = ["generate", "--class", "brown-crescent", "--count", "3", "--seed", "12", "--cfg", "2.5", "--top-k", "20"]
    subprocess.run(
        [sys.executable, "-c", code, *words, "--model", str(bundle), "--threads", "1", "--out", str(tmp_path)],
        check=True, capture_output=True,
    )  # fmt: skip
    written = [path.read_bytes() for path in sorted(tmp_path.glob("*.png"))]
    answer = served.ask(prompt="brown crescent", n=3, seed=12, guidance_scale=2.5, top_k=20)
    assert files(answer) == written
    answer = served.ask(prompt=1, number=2, seed=12, guidance_scale=2.5, top_k=20)
    assert files(answer) == written[2:]


def test_the_answer_says_what_reproduces_each_picture(served: Served, drawn):
    """Also where no seed was given: one is drawn, and two requests get two."""
    first, second = (served.ask(prompt="blue-star", n=2).json() for _ in range(2))
    assert first["seed"] != second["seed"]
    assert first["model"] == "tiny" and first["size"] == "10x10" and first["created"] > 1.7e9
    for answer in (first, second):
        for number, picture in enumerate(answer["data"]):
            assert (picture["class_id"], picture["label"]) == (2, "2 (blue-star)")
            assert (picture["seed"], picture["number"]) == (answer["seed"], number)
            assert base64.b64decode(picture["b64_json"]) == drawn(2, number, answer["seed"])


def test_a_prompt_may_be_no_class(served: Served, drawn):
    answer = served.ask(prompt="none", seed=12)
    assert files(answer) == [drawn("none", 0, 12)]
    [picture] = answer.json()["data"]
    assert (picture["class_id"], picture["label"]) == (len(CONFIG.class_names), "none")


def test_requests_of_many_seeds_share_batches_and_none_changes(bundle: Path, drawn):
    """Of two samplings, so that some may not be drawn together."""
    asked = [(i % 5, i % 3, 1000 + i, {"guidance_scale": 1.0 + i % 2}) for i in range(60)]
    with serving(bundle, max_wait_ms=20, max_batch=4) as served, ThreadPoolExecutor(20) as clients:

        def ask(one: Any) -> bytes:
            class_id, number, seed, sampling = one
            return files(served.ask(prompt=class_id, number=number, seed=seed, **sampling))[0]

        for found, (class_id, number, seed, sampling) in zip(clients.map(ask, asked), asked, strict=True):
            assert found == drawn(class_id, number, seed, **sampling)
        figures = served.figures()
    assert figures["actvar_pictures_total"] == figures["actvar_batch_size_sum"] == 60
    assert 15 <= figures["actvar_batch_size_count"] < 60
    assert figures['actvar_batch_size_bucket{le="4.0"}'] == figures["actvar_batch_size_count"]
    assert figures["actvar_queue_length"] == 0 and figures["actvar_request_seconds_count"] == 60


def test_a_stream_has_a_partial_picture_after_every_scale(served: Served, bundle: Path, drawn):
    """In order, and the last is the picture itself."""
    found = events(served.ask(prompt=4, n=2, seed=3, stream=True).text)
    for number in range(2):
        mine = [event for event in found if event["number"] == number]
        *partial, last = mine
        assert [event["scale"] for event in partial] == list(range(1, SCALES + 1))
        assert [event["partial_image_index"] for event in partial] == list(range(SCALES))
        assert all(event["type"] == "image_generation.partial_image" for event in partial)
        assert last["type"] == "image_generation.completed"
        assert base64.b64decode(last["b64_json"]) == drawn(4, number, 3)
        shown = []
        with Pipeline.from_bundle(bundle, threads=1) as pipe:
            pipe(4, num_images_per_label=number + 1, seed=3,
                 callback_on_scale_end=lambda _, partial, to=shown: to.append(partial))  # fmt: skip
        wanted = [partial.images[0] for partial in shown if partial.numbers == (number,)]
        for event, image in zip(partial, wanted, strict=True):
            np.testing.assert_array_equal(np.asarray(picture(event)), np.asarray(image))
    assert served.figures()['actvar_scale_seconds_count{scale="4"}'] >= 1


def picture(event: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(event["b64_json"])))


def test_the_client_of_openai_draws(served: Served, drawn):
    """Whole, as a stream, and with an error that it understands."""
    openai = pytest.importorskip("openai", reason="needs openai, of the extra dev")
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none")
    made = client.images.generate(model="tiny", prompt="red-heart", n=2, size="10x10", extra_body={"seed": 5})
    assert [base64.b64decode(one.b64_json) for one in made.data] == [drawn(0, 0, 5), drawn(0, 1, 5)]
    stream = client.images.generate(model="tiny", prompt="red-heart", stream=True, extra_body={"seed": 5})
    *partial, last = stream
    assert [event.type for event in partial] == ["image_generation.partial_image"] * SCALES
    assert base64.b64decode(last.b64_json) == drawn(0, 0, 5)
    with pytest.raises(openai.BadRequestError, match="Did you mean brown-crescent") as error:
        client.images.generate(model="tiny", prompt="brown-cresent")
    assert (error.value.code, error.value.param) == ("unknown_class", "prompt")
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


# ---- what the server says of itself


def test_models_and_classes(served: Served):
    [model] = served.get("/v1/models").json()["data"]
    assert model["id"] == "tiny" and model["size"] == "10x10" and model["scales"] == SCALES and model["classes"] == 5
    classes = served.get("/v1/classes").json()["data"]
    assert [(one["id"], one["names"]) for one in classes] == [(i, [name]) for i, name in enumerate(NAMES)]


def test_the_openapi_page_describes_the_request_with_examples_that_work(served: Served):
    page = served.get("/openapi.json").json()
    schema = page["components"]["schemas"]["GenerationRequest"]
    assert schema["properties"].keys() == GenerationRequest.model_fields.keys() and schema["examples"]
    for example in schema["examples"]:
        assert len(files(served.ask(**example))) == example["n"]
    body = page["paths"][DRAW]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/GenerationRequest"}


def test_the_page_of_the_api_has_every_field_and_nothing_from_another_host(served: Served):
    """With the example as a command that can be copied."""
    page = served.get("/docs").text
    assert all(f"<code>{field}</code>" in page for field in GenerationRequest.model_fields)
    assert f"curl {served.url}{DRAW} " in page and "guidance_scale" in page
    assert "http" not in page.replace(served.url, "") and "<script" not in page


def test_two_apps_in_one_process_count_for_themselves(bundle: Path):
    with serving(bundle) as one, serving(bundle) as other:
        one.ask(prompt="1")
        assert one.figures()["actvar_pictures_total"] == 1
        assert other.figures()["actvar_pictures_total"] == 0


LIGHT = """
import sys
import actvar.serve
assert not {"fastapi", "starlette", "pydantic"} & sys.modules.keys()
from actvar.serve import create_app
found = {"torch", "onnx", "matplotlib", "gradio"} & sys.modules.keys()
sys.exit(f"the app loads {sorted(found)}" if found else 0)
"""


def test_the_app_loads_neither_torch_nor_onnx():
    """Nor the page's framework, before there is a page."""
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- the queue


class Gate:
    """Holds the engine before each of its batches, once it is shut."""

    def __init__(self) -> None:
        self.open, self.batches, self.waiting = threading.Event(), 0, 0
        self.open.set()

    def launch(self, engine: Any, *given: Any, launch: Any = BufferedEngine.launch) -> Any:
        self.waiting += 1
        assert self.open.wait(60)
        self.waiting -= 1
        self.batches += 1
        return launch(engine, *given)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    monkeypatch.setattr(BufferedEngine, "launch", lambda engine, *given: gate.launch(engine, *given))
    return gate


def test_a_full_queue_is_a_429_that_says_when_to_come_again(bundle: Path, gate: Gate, drawn):
    """All of a request's pictures are taken, or none; and those that were taken are drawn."""
    with serving(bundle, max_queue=4, max_batch=2, max_wait_ms=0) as served, ThreadPoolExecutor(3) as clients:
        gate.open.clear()
        first = clients.submit(served.ask, prompt="1", n=2, seed=1)
        until(lambda: gate.waiting)
        second = clients.submit(served.ask, prompt="2", n=3, seed=2)
        until(lambda: served.figures()["actvar_queue_length"] == 3)
        answer = served.ask(prompt="3", n=2)
        assert "3 pictures in the queue" in refused(answer, 429, None, "queue_full")
        assert int(answer.headers["Retry-After"]) >= 1
        streamed = served.ask(prompt="3", n=2, stream=True)
        refused(streamed, 429, None, "queue_full")
        third = clients.submit(served.ask, prompt="3", n=1, seed=3)
        until(lambda: served.figures()["actvar_queue_length"] == 4)
        gate.open.set()
        for class_id, asked, count in ((1, first, 2), (2, second, 3), (3, third, 1)):
            assert files(asked.result(60)) == [drawn(class_id, i, class_id) for i in range(count)]
        assert served.figures()['actvar_errors_total{status="429"}'] == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(bundle: Path, gate: Gate, stream: bool, drawn):
    """At once, and what it asked for is not drawn."""
    with serving(bundle, max_queue=2, max_batch=2, max_wait_ms=0) as served, ThreadPoolExecutor(2) as clients:
        gate.open.clear()
        first = clients.submit(served.ask, prompt="1", seed=1)
        until(lambda: gate.waiting)
        with pytest.raises(httpx.ReadTimeout):
            served.ask(timeout=0.5, prompt="2", n=2, stream=stream)
        until(lambda: served.figures()["actvar_queue_length"] == 0)
        third = clients.submit(served.ask, prompt="3", n=2, seed=3)
        until(lambda: served.figures()["actvar_queue_length"] == 2)
        gate.open.set()
        assert files(first.result(60)) == [drawn(1, 0, 1)]
        assert files(third.result(60)) == [drawn(3, i, 3) for i in range(2)]
        assert served.figures()["actvar_pictures_total"] == 3


def test_a_batch_whose_clients_have_all_left_ends_at_the_next_scale(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """Where partial pictures are sent, so that there is a moment between scales."""
    scales, go_on = [], threading.Event()
    draw = GraphSource.draw

    def slow(source: GraphSource, *given: Any, on_scale_end: Any = None, **more: Any) -> Any:
        def told(end: Any) -> None:
            scales.append(end.scale)
            on_scale_end(end)
            assert go_on.wait(60)

        return draw(source, *given, on_scale_end=told if on_scale_end else None, **more)

    monkeypatch.setattr(GraphSource, "draw", slow)
    with serving(bundle) as served:
        with httpx.stream("POST", served.url + DRAW, json={"prompt": "1", "stream": True}) as answer:
            next(answer.iter_lines())
        drawer = served.app.state.drawer
        until(lambda: all(ticket.left for ticket in drawer._drawing))
        go_on.set()
        until(lambda: drawer.idle)
        assert scales == [1, 2]
        assert len(files(served.ask(prompt="1"))) == 1


# ---- an engine that fails


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Lets the engine fail: for every batch, or for those with a class."""
    broken: dict[str, Any] = {"all": False, "class": None}
    real = BufferedEngine.launch

    def launch(engine: Any, name: str, chain: Any, inputs: Any, *given: Any) -> Any:
        if broken["all"] or broken["class"] in inputs["class_ids"]:
            raise EngineError("/secret/path/model.onnx: the device is lost")
        return real(engine, name, chain, inputs, *given)

    monkeypatch.setattr(BufferedEngine, "launch", launch)
    monkeypatch.setattr(batching, "RETRY_SECONDS", 0.1)
    return broken


def test_a_failing_engine_is_a_503_and_the_log_says_why(bundle: Path, broken, drawn, capfd):
    """Readiness goes with it; when the engine draws again, so does the server, by itself."""
    wanted = drawn(1, 0, 4)
    with serving(bundle) as served:
        broken["all"] = True
        told = refused(served.ask(prompt="1"), 503, None, "engine_failed")
        assert "engine has failed" in told and "secret" not in told
        refused(served.get("/readyz"), 503, None, "not_ready")
        assert served.get("/healthz").status_code == 200
        answer = served.ask(prompt="1", stream=True)
        refused(answer, 503, None, "not_ready")
        assert answer.headers["Retry-After"]
        broken["all"] = False
        until(lambda: served.get("/readyz").status_code == 200)
        assert files(served.ask(prompt="1", seed=4)) == [wanted]
    said = capfd.readouterr().err
    assert "the device is lost" in said and said.count("The engine draws.") == 2


def test_a_stream_ends_with_the_error(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """Its status has been sent by then."""
    draw = GraphSource.draw

    def failing(source: GraphSource, *given: Any, on_scale_end: Any = None, **more: Any) -> Any:
        def told(end: Any) -> None:
            if end.scale == 3:
                raise EngineError("the device is lost")
            on_scale_end(end)

        return draw(source, *given, on_scale_end=told if on_scale_end else None, **more)

    monkeypatch.setattr(GraphSource, "draw", failing)
    with serving(bundle) as served:
        *partial, last = events(served.ask(prompt="3", stream=True).text)
        assert served.figures()['actvar_errors_total{status="503"}'] == 1
    assert [event["scale"] for event in partial] == [1, 2] and last["error"]["code"] == "engine_failed"


def test_a_picture_that_cannot_be_drawn_fails_alone(bundle: Path, gate: Gate, monkeypatch, broken, drawn):
    """Those of its batch are drawn without it, and the server stays ready."""
    with serving(bundle, max_batch=4, max_wait_ms=300) as served, ThreadPoolExecutor(4) as clients:
        broken["class"] = 3
        asked = {i: clients.submit(served.ask, prompt=i, seed=i) for i in (1, 2, 3, 4)}
        told = refused(asked.pop(3).result(60), 503, None, "engine_failed")
        assert told.startswith("This picture cannot be drawn.")
        for class_id, answer in asked.items():
            assert files(answer.result(60)) == [drawn(class_id, 0, class_id)]
        assert served.get("/readyz").status_code == 200


def test_a_fault_of_the_server_is_a_500_that_tells_nothing_and_a_log_that_does(bundle: Path, monkeypatch, capfd):
    """The one status that must never be seen."""

    def faulty(*_: Any) -> Any:
        raise RuntimeError("/secret/path is wrong")

    with serving(bundle) as served:
        monkeypatch.setattr(Studio, "generation", faulty)
        for stream in (False, True):
            told = refused(served.ask(prompt="1", stream=stream), 500, None, "internal_error")
            assert "secret" not in told
    assert "/secret/path is wrong" in capfd.readouterr().err


def test_nothing_is_drawn_before_the_engine_has_drawn(bundle: Path, gate: Gate):
    """A server that is started behind a balancer is not asked too early."""
    gate.open.clear()
    with serving(bundle, ready=False) as served:
        assert "being started" in refused(served.get("/readyz"), 503, None, "not_ready")
        refused(served.ask(prompt="1"), 503, None, "not_ready")
        gate.open.set()
        until(lambda: served.get("/readyz").status_code == 200)
