"""The page at /: a class, a seed, and the picture as it is made, scale by scale; mounted into the app.

Gradio's, with nothing from another host: system fonts, no analytics, pictures inside the page. Of Gradio's own paths
only those that the page asks for are let through: no uploads, no files, no proxy.
"""

import asyncio
import io
from base64 import b64decode
from collections.abc import AsyncGenerator
from html import escape
from typing import Any

import gradio as gr
import numpy as np
from fastapi import FastAPI
from PIL import Image
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from actvar.classes import NONE, class_label, class_value
from actvar.errors import ActVARError, counted
from actvar.serve.bodies import GenerationRequest, PartialEvent
from actvar.serve.explained import Explainer
from actvar.serve.generations import Generation, Studio
from actvar.serve.limits import refuse
from actvar.serve.metrics import Metrics
from actvar.serve.page_parts import STYLE, Shown, explanation, message, result, strip
from actvar.serve.refusals import Refusal, refusal_of_body

PATHS = (
    *("/assets/", "/static/", "/theme.css", "/favicon.ico", "/config", "/manifest.json"),
    *("/gradio_api/queue/", "/gradio_api/heartbeat/", "/gradio_api/startup-events"),
)
"""What begins so is let through to Gradio, beside / itself."""

_MOST_GUIDANCE = 10.0  # of the slider
_SESSIONS = 64  # whose last pictures Gradio keeps, which nobody asks for again
_Parts = tuple[str, str, str]


def add_page(app: FastAPI, studio: Studio, explainer: Explainer, metrics: Metrics) -> None:
    """Mount the page at / of an app, below all paths that the app has already."""
    known = {path for route in app.routes if isinstance(path := getattr(route, "path", None), str)}
    gr.mount_gradio_app(
        app,
        _Page(studio, explainer).blocks(),
        path="/",
        theme=gr.themes.Base(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")),
        css=STYLE,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size=1,
        show_error=False,
    )
    for route in app.routes:
        if isinstance(route, Mount) and route.path == "":
            route.app = _OnlyThePage(route.app, known, metrics)


class _OnlyThePage:
    """Answers what neither the app nor the page has, before Gradio sees it."""

    def __init__(self, app: ASGIApp, known: set[str], metrics: Metrics) -> None:
        self._app, self._known, self._metrics = app, known, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        path = scope.get("path", "/")
        if scope["type"] == "lifespan" or path == "/" or path.startswith(PATHS):
            await self._app(scope, receive, send)
            return
        refusal = Refusal(404, "Not Found.")
        if path in self._known:
            refusal = Refusal(405, "Method Not Allowed.")
        await refuse(refusal, self._metrics, scope, receive, send)


class _Page:
    """What the page has, and what it does."""

    def __init__(self, studio: Studio, explainer: Explainer) -> None:
        self._studio, self._explainer = studio, explainer
        self._explaining = asyncio.Lock()

    def blocks(self) -> Any:
        """All of it."""
        model, name = self._studio.model, self._studio.name
        kind = "ActVAR" if self._explainer.scale else "VAR"
        classes: list[tuple[str, int | str]] = [(class_label(model, i), i) for i in range(model.num_classes)]
        classes += [(NONE, NONE)] if model.is_guided else []
        how_many = counted(len(model.schedule), "scale")
        with gr.Blocks(title=f"{name} · ActVAR-TRT", analytics_enabled=False) as page:
            gr.HTML(
                f"<h1>{escape(name)}</h1><p>{kind}, {how_many}, {self._studio.size} pixels. "
                "Class, seed and number decide a picture, to the byte.</p>"
            )
            with gr.Row():
                chosen = gr.Dropdown(
                    classes, value=0, label="Class", filterable=True, elem_id="class", scale=2, min_width=300
                )
                seed = gr.Textbox("", label="Seed", placeholder="any", max_lines=1, elem_id="seed")
                number = gr.Textbox("0", label="Picture of the seed, from 0", max_lines=1, elem_id="number")
                guidance = gr.Slider(
                    0, _MOST_GUIDANCE, value=model.sampling.cfg, step=0.1, label="Guidance", elem_id="guidance"
                )
            button = gr.Button("Draw", variant="primary", elem_id="draw")
            scales = gr.HTML(strip([], len(model.schedule)), label="Scales", elem_id="scales")
            picture = gr.HTML(elem_id="made")
            explained = gr.HTML(elem_id="explained")
            asked = gr.State(False)
            given, parts = [chosen, seed, number, guidance], [scales, picture, explained]
            hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
            gr.on([button.click, seed.submit, number.submit], self.draw, given, parts, **hidden)
            loaded = page.load(self.fields, None, [*given, asked], **hidden)
            loaded.then(self.draw_if, [asked, *given], parts, **hidden)
        page.queue(default_concurrency_limit=None, max_size=256, api_open=False)
        page.state_session_capacity = _SESSIONS
        return page

    def fields(self, request: gr.Request) -> tuple[Any, ...]:
        """What a link fills in, and whether there is one. What cannot be used is left as it is."""
        given = dict(request.query_params)
        if "class" not in given:
            return (*[gr.skip()] * 4, False)
        try:
            chosen = class_value(self._studio.model, self._studio.class_id(given["class"][:200]))
            guidance = min(max(float(given.get("guidance", self._studio.model.sampling.cfg)), 0.0), _MOST_GUIDANCE)
        except (Refusal, ValueError):
            return (*[gr.skip()] * 4, False)
        return chosen, given.get("seed", "")[:20], given.get("number", "0")[:20], guidance, True

    async def draw_if(self, asked: bool, *given: Any) -> AsyncGenerator[_Parts, None]:
        """Draw what a link has asked for."""
        if asked:
            async for parts in self.draw(*given):
                yield parts

    async def draw(self, class_id: Any, seed: Any, number: Any, guidance: Any) -> AsyncGenerator[_Parts, None]:
        """The scales as they are made, then the picture, then what its blocks chose."""
        count, shown, last = len(self._studio.model.schedule), list[str](), ""
        try:
            drawn = self._studio.generation(_request(class_id, seed, number, guidance))
            yield strip([], count), "", ""
            async for event in self._studio.events(drawn):
                last = event.b64_json
                if isinstance(event, PartialEvent):
                    shown.append(last)
                    yield strip(shown, count), "", ""
        except Refusal as refusal:
            yield strip(shown, count), message(refusal.message), ""
            return
        chosen = class_value(self._studio.model, drawn.class_id)
        named = Shown(self._studio.name, chosen, drawn.label, drawn.seed, drawn.number, drawn.sampling.cfg)
        made = result(last, named)
        yield strip(shown, count), made, ""
        if self._explainer.scale:
            async with self._explaining:  # outside of the threads: those who wait take none
                words = await run_in_threadpool(self._explained, drawn, last)
            yield strip(shown, count), made, words

    def _explained(self, drawn: Generation, picture: str) -> str:
        pixels_HW3 = np.asarray(Image.open(io.BytesIO(b64decode(picture))))
        try:
            return explanation(self._explainer.scale or 0, self._explainer.panels(drawn, pixels_HW3))
        except ActVARError as error:
            return message(str(error))


def _request(class_id: Any, seed: Any, number: Any, guidance: Any) -> GenerationRequest:
    """What the page's fields ask for.

    Raises:
        Refusal: a field cannot be used.
    """
    fields: dict[str, Any] = {"prompt": class_id, "guidance_scale": guidance}
    for name, text in (("seed", seed), ("number", number)):
        if text := str(text or "").strip():
            if not (text.isascii() and text.isdigit() and len(text) <= 20):
                raise Refusal(400, f"{name} must be a whole number, 0 or more.", name)
            fields[name] = int(text)
    try:
        return GenerationRequest.model_validate(fields)
    except ValidationError as error:
        raise refusal_of_body(error) from None
