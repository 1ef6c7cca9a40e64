"""The page: what it shows in a browser, that it asks nobody else, and that Gradio opens nothing else with it."""

import base64
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from small_models import small_config, vivid_model

pytest.importorskip("gradio", reason="needs gradio, of the extra serve")

from fastapi import FastAPI
from served import DRAW, command
from starlette.routing import Mount

from actvar.checkpoint.files import Checkpoint
from actvar.checkpoint.own import save_model
from actvar.config import Activation
from actvar.errors import ActVARError
from actvar.serve.explained import Explainer
from actvar.serve.generations import Generation
from actvar.serve.metrics import Metrics
from actvar.serve.page import add_page
from actvar.serve.page_parts import Shown

CHROMIUM = Path("/usr/bin/chromium")
NAMES = ("red-heart", "brown-crescent", "blue-star", "green-ring", "golden <b>retriever</b>")
SCALES = 10
CONFIG = replace(
    small_config(tuple(range(1, SCALES + 1)), Activation(4, (9, 10), (0.75, 0.5), (0.75, 0.5))), class_names=NAMES
)
KEY = "a key of ours"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ActVAR of ten scales that draws 20×20."""
    path = tmp_path_factory.mktemp("models") / "small.safetensors"
    save_model(vivid_model(CONFIG), path)
    return path


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[Any]:
    """The command, with its page."""
    cache = {"ACTVAR_CACHE": str(checkpoint.parent / "cache"), "HOME": str(checkpoint.parent)}
    with command("--model", checkpoint, environment=cache, page=True) as process:
        yield process


# ---- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra dev")
    if not CHROMIUM.exists():
        pytest.skip(f"needs {CHROMIUM}: apt install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """A page, what it has asked for, and what it has complained about."""

    def __init__(self, browser: Any, width: int):
        self.page = browser.new_context(viewport={"width": width, "height": 800}).new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("response", lambda got: self.complaints.append(got.url) if got.status >= 400 else None)
        self.page.add_init_script(SEEN)

    def shown(self, selector: str) -> bytes:
        """The file of an image of the page."""
        source = self.page.get_attribute(selector, "src", timeout=60_000)
        return base64.b64decode(source.removeprefix("data:image/png;base64,"))

    def assert_quiet(self, url: str) -> None:
        assert self.asked and [one for one in self.asked if not one.startswith((url, "data:", "blob:"))] == []
        assert self.complaints == []


SEEN = """
window.seen = [];
new MutationObserver(() => {
  const scales = [...document.querySelectorAll("#scales img")].map(image => image.alt).join();
  if (scales && scales !== window.seen.at(-1)) window.seen.push(scales);
}).observe(document, {childList: true, subtree: true});
"""


@pytest.mark.slow
def test_a_picture_is_drawn_in_a_browser(server: Any, browser: Any):
    """A class is chosen, a seed set: ten scales come in order, and the picture is the API's, to the byte."""
    watched = Watched(browser, 1280)
    page = watched.page
    page.goto(server.url)
    page.fill("#class input", "blue", timeout=60_000)
    page.get_by_role("option", name="2 (blue-star)").click()
    page.fill("#seed textarea, #seed input", "12345678901234567890")
    page.fill("#number textarea, #number input", "1")
    page.click("#draw")
    picture = watched.shown("#picture")
    fields = {"prompt": "blue-star", "seed": 12345678901234567890, "number": 1, "stream": False}
    answer = httpx.post(server.url + DRAW, json=fields, timeout=60).json()
    assert picture == base64.b64decode(answer["data"][0]["b64_json"])

    wanted = [f"scale {number}" for number in range(1, SCALES + 1)]
    seen = [one.split(",") for one in page.evaluate("window.seen")]
    assert seen[-1] == wanted and all(one == wanted[: len(one)] for one in seen)
    assert len(seen) > 2 and [len(one) for one in seen] == sorted({len(one) for one in seen})
    assert watched.shown('#scales img[alt="scale 10"]') == picture

    page.wait_for_selector("#activated", timeout=60_000)
    captions = page.locator("#activated figcaption").all_inner_texts()
    assert captions == [f"block {i + 1}: 50 of 100 tokens, each by 2 of 4 experts" for i in range(CONFIG.depth)]
    assert page.inner_text("#command") == (
        "actvar-trt generate --model small --class 2 --seed 12345678901234567890 --cfg 1.5 --count 2"
    )
    watched.assert_quiet(server.url)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_the_link_reproduces_the_picture_at_any_width(server: Any, browser: Any, width: int):
    """It fills the fields in and draws at once; nothing lies outside of the screen."""
    watched = Watched(browser, width)
    page = watched.page
    page.goto(f"{server.url}/?class={quote(NAMES[4])}&seed=5&guidance=2.5&number=3")
    page.wait_for_selector("#activated", timeout=60_000)
    page.goto(server.url + page.get_attribute("#link", "href"))
    picture = watched.shown("#picture")
    fields = {"prompt": 4, "seed": 5, "number": 3, "guidance_scale": 2.5}
    answer = httpx.post(server.url + DRAW, json=fields, timeout=60).json()
    assert picture == base64.b64decode(answer["data"][0]["b64_json"])
    page.wait_for_selector("#activated", timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert "golden <b>retriever</b>" in page.inner_text("#made") and page.locator("#made b").count() == 0
    watched.assert_quiet(server.url)


@pytest.mark.slow
def test_what_cannot_be_drawn_is_said_on_the_page(server: Any, browser: Any):
    watched = Watched(browser, 1280)
    watched.page.goto(server.url)
    watched.page.fill("#seed textarea, #seed input", "-1", timeout=60_000)
    told = watched.page.locator(".told")
    for _ in range(30):  # Gradio's button is there a moment before it does anything
        watched.page.click("#draw")
        watched.page.wait_for_timeout(2_000)
        if told.count():
            break
    assert "seed must be a whole number" in told.inner_text(timeout=1_000)
    watched.assert_quiet(server.url)


# ---- without one


def test_the_page_opens_nothing_else(server: Any, checkpoint: Path):
    """No upload, file, proxy or editor of Gradio's; and no path of the machine is named."""
    closed = ["/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/gradio_api/proxy=http://example.org/", "/user"]
    closed += ["/gradio_api/vibe-code/", "/gradio_api/runs", "/login_check", "/monitoring", "/gradio_api/call/draw"]
    for path in [*closed, "/v1/nothing", "/docs2"]:
        for answer in (httpx.get(server.url + path), httpx.post(server.url + path, json={})):
            assert answer.status_code == 404 and answer.json()["error"]["message"] == "Not Found.", path
    assert httpx.get(server.url + DRAW).status_code == 405
    shown = [httpx.get(server.url + path) for path in ("/", "/config", "/theme.css", "/openapi.json", "/v1/models")]
    for answer in shown:
        assert answer.status_code == 200
        for secret in (str(checkpoint.parent), str(Path(__file__).parents[1]), sys.prefix):
            assert secret not in answer.text, answer.url
    assert "fonts.googleapis" not in "".join(answer.text for answer in shown)


def test_a_browser_is_asked_for_the_key(checkpoint: Path):
    """As for a password; without it the page is not there."""
    environment = {"ACTVAR_API_KEY": KEY, "ACTVAR_CACHE": str(checkpoint.parent / "cache")}
    with command("--model", checkpoint, environment=environment, page=True) as server:
        for path in ("/", "/config", "/gradio_api/queue/data"):
            answer = httpx.get(server.url + path)
            assert answer.status_code == 401 and answer.headers["WWW-Authenticate"].startswith("Basic")
        assert httpx.get(server.url, auth=("anybody", KEY)).status_code == 200


def test_an_open_page_does_not_keep_the_server_from_ending(checkpoint: Path):
    """A page holds a connection for as long as it is open."""
    cache = {"ACTVAR_CACHE": str(checkpoint.parent / "cache")}
    with (
        command("--model", checkpoint, environment=cache, page=True) as server,
        httpx.stream("GET", server.url + "/gradio_api/heartbeat/somebody", timeout=60) as answer,
    ):
        assert answer.status_code == 200
        started = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
        assert time.monotonic() - started < 10
    assert "Traceback" not in "".join(server.said)


def test_the_page_keeps_the_pictures_of_few_visitors():
    """Gradio has a place for 10,000, each with the last pictures that its page showed: some 10 GB at 256 pixels."""
    app = FastAPI()
    studio: Any = SimpleNamespace(model=CONFIG, name="small", size=20)
    add_page(app, studio, Explainer(CONFIG, None), Metrics())
    [mount] = [route for route in app.routes if isinstance(route, Mount) and route.path == ""]
    gradio: Any = mount.app
    assert gradio._app.state_holder.capacity == 64


def test_a_server_may_do_without_the_page(checkpoint: Path):
    cache = {"ACTVAR_CACHE": str(checkpoint.parent / "cache")}
    with command("--model", checkpoint, environment=cache) as server:
        assert httpx.get(server.url).status_code == 404


DRAWN = Generation(2, "2 (blue-star)", CONFIG.sampling, 7, 1, 1)
PIXELS_HW3 = np.zeros((20, 20, 3), np.uint8)
WITHOUT_TORCH = f"""
import sys
class Refused:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"no {{name}}", name=name)
sys.meta_path.insert(0, Refused())
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np
from pathlib import Path
from actvar.checkpoint.files import Checkpoint
from actvar.config import MINI, Activation
from dataclasses import replace
from actvar.errors import ActVARError
from actvar.serve.explained import Explainer
from actvar.serve.generations import Generation
model = replace(MINI, activation=Activation())
try:
    Explainer(model, Checkpoint(Path("none"))).panels(Generation(1, "", model.sampling, 0, 0, 1), np.zeros((64, 64, 3)))
except ActVARError as error:
    print(error)
"""


def test_without_pytorch_the_page_says_so():
    """Drawing needs none; to look into a model does."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=False)
    assert "The package torch is needed to show what the blocks chose" in done.stdout, done.stderr


def test_what_cannot_be_explained_says_why(checkpoint: Path):
    """A bundle has no network to look into, and a VAR nothing to show."""
    with pytest.raises(ActVARError, match="A bundle of graphs is served here"):
        Explainer(CONFIG, None).panels(DRAWN, PIXELS_HW3)
    with pytest.raises(ActVARError, match="nothing to show"):
        Explainer(CONFIG.dense(), Checkpoint(checkpoint)).panels(DRAWN, PIXELS_HW3)
    assert Explainer(CONFIG, None).scale == 10 and Explainer(CONFIG.dense(), None).scale is None
    panels = Explainer(CONFIG, Checkpoint(checkpoint)).panels(DRAWN, PIXELS_HW3)
    assert len(panels) == CONFIG.depth


def test_the_lines_of_a_picture_are_those_that_draw_it():
    """The first of a seed is drawn alone, a later one after those before it; the link says all of it."""
    first = Shown("actvar-mini", 88, "88 (brown-crescent)", 7, 0, 1.5)
    assert first.link == "/?class=88&seed=7&guidance=1.5&number=0"
    assert first.command == "actvar-trt generate --model actvar-mini --class 88 --seed 7 --cfg 1.5"
    assert first.python.endswith("image = pipe(88, 1.5, seed=7).images[0]")
    third = replace(first, number=2, model="it's")
    assert third.command.endswith("""--model 'it'"'"'s' --class 88 --seed 7 --cfg 1.5 --count 3""")
    assert third.python.endswith("image = pipe(88, 1.5, seed=7, num_images_per_label=3).images[2]")
    none = replace(first, chosen="none", label="none")
    assert none.link.startswith("/?class=none&") and "--class none --seed" in none.command
    assert none.python.endswith("image = pipe('none', 1.5, seed=7).images[0]")
