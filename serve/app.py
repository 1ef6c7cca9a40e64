"""The app: which path answers what. `create_app` is the door of this room.

One app has one engine. It is drawn with by one thread, from the app's start to its end.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from actvar import __version__
from actvar.classes import class_names
from actvar.errors import needs
from actvar.runtime.api import Pipeline
from actvar.serve.batching import Drawer
from actvar.serve.bodies import (
    MAX_PICTURES,
    ClassAnswer,
    ClassesAnswer,
    EditRequest,
    GenerationAnswer,
    GenerationRequest,
    ModelAnswer,
    ModelsAnswer,
)
from actvar.serve.edits import Retoucher
from actvar.serve.generations import Studio, sent, unless
from actvar.serve.limits import BODY_SECONDS, BodyLimits, KeyRequired
from actvar.serve.metrics import CONTENT_TYPE, Metrics
from actvar.serve.multipart import form_fields
from actvar.serve.reference import reference
from actvar.serve.refusals import ErrorAnswer, Refusal, answer_errors, refusal_of_body
from actvar.telemetry import switch_off

GRACE_SECONDS = 30.0
_DESCRIPTION = """Pictures of classes, in the form of OpenAI's API.

The class, the seed and the number decide a picture: the same bytes from here and from the command `generate`, alone
and in any batch."""
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "The request cannot be used."},
    404: {"model": ErrorAnswer, "description": "This model is not served."},
    429: {"model": ErrorAnswer, "description": "The queue is full; Retry-After says in how many seconds to ask again."},
    503: {"model": ErrorAnswer, "description": "The engine has failed, or the server is about to end."},
}


def create_app(
    pipeline: Pipeline,
    *,
    max_batch: int = 8,
    max_wait_ms: float = 5.0,
    max_queue: int = 64,
    api_key: str | None = None,
    grace_seconds: float = GRACE_SECONDS,
    body_seconds: float = BODY_SECONDS,
    with_page: bool = False,
) -> FastAPI:
    """An app that draws with a pipeline.

    Args:
        pipeline: what draws; it is the caller's to close, when the app has ended.
        max_batch: pictures that are drawn at a time.
        max_wait_ms: milliseconds that a picture waits for others to share its batch.
        max_queue: pictures that may wait; more are answered with 429.
        api_key: that every request must name, but those of /healthz and /readyz.
        grace_seconds: at the app's end, for what was taken on.
        body_seconds: in which the body of a request must arrive.
        with_page: whether there is a page at /, which needs Gradio.
    """
    metrics = Metrics()
    drawer = Drawer(pipeline.source, metrics, max_batch=max_batch, max_wait=max_wait_ms / 1000, max_queue=max_queue)
    studio = Studio(drawer, pipeline.model, pipeline.name, min(MAX_PICTURES, max_queue))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        drawer.start()
        yield
        drawer.close(grace_seconds)

    app = FastAPI(
        title="ActVAR-TRT",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # its own pages load their scripts from another host
        redoc_url=None,
    )
    app.state.drawer, app.state.metrics = drawer, metrics
    answer_errors(app, metrics)
    _add_drawing(app, studio, metrics)
    _add_facts(app, studio, int(time.time()))
    _add_health(app, drawer, metrics)
    if with_page:
        _add_page(app, studio, pipeline, metrics)
    app.add_middleware(BodyLimits, metrics=metrics, seconds=body_seconds)
    if api_key:
        app.add_middleware(KeyRequired, metrics=metrics, key=api_key)
    return app


def _add_drawing(app: FastAPI, studio: Studio, metrics: Metrics) -> None:
    retoucher = Retoucher(studio)
    schema = {"$ref": "#/components/schemas/GenerationRequest"}
    stream = {"text/event-stream": {"schema": {"type": "string"}}}

    @app.post(
        "/v1/images/generations",
        summary="Draw pictures of a class",
        tags=["pictures"],
        response_model=GenerationAnswer,
        responses={200: {"content": stream, "description": "Pictures, or with stream their events."}, **_ERRORS},
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
    )
    async def generations(request: Request) -> Response:
        """Read, draw, answer."""
        started = time.perf_counter()
        asked = await _read(request)
        if asked.stream:
            return await _streamed(request, asked, studio, metrics, started)
        answer = await studio.answer(asked, lambda: _left(request))
        if answer is None:
            return Response(status_code=499)
        metrics.request_answered(time.perf_counter() - started)
        return Response(answer.model_dump_json(), media_type="application/json")

    @app.post(
        "/v1/images/edits",
        summary="Draw a part of a picture anew",
        tags=["pictures"],
        response_model=GenerationAnswer,
        responses=_ERRORS,
        openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _form()}}}},
    )
    async def edits(request: Request) -> Response:
        """Read, prepare, draw, answer."""
        started = time.perf_counter()
        fields = form_fields(request.headers.get("content-type", ""), await request.body())
        answer = await retoucher.answer(fields, lambda: _left(request))
        if answer is None:
            return Response(status_code=499)
        metrics.request_answered(time.perf_counter() - started)
        return Response(answer.model_dump_json(), media_type="application/json")

    _document(app, GenerationRequest)

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(reference(app.openapi(), str(request.base_url).rstrip("/")))


def _form() -> dict[str, Any]:
    """The fields of a form for edits, as OpenAPI has them."""
    schema = EditRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    files = {
        "image": {"type": "string", "format": "binary", "description": "PNG, JPEG or WebP, of any size."},
        "mask": {
            "type": "string",
            "format": "binary",
            "description": "As large as the image; transparent or, if it is opaque, white is drawn anew. If it is left "
            "out, and replace and keep are, the image's own transparent part is.",
        },
    }
    return {**schema, "properties": {**files, **schema["properties"]}, "required": ["image"]}


async def _read(request: Request) -> GenerationRequest:
    """The body of a request for pictures.

    Raises:
        Refusal: it is something else.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, "The body must be JSON, with Content-Type: application/json.", code="invalid_content_type")
    try:
        return GenerationRequest.model_validate_json(await request.body())
    except ValidationError as error:
        raise refusal_of_body(error) from None


async def _streamed(
    request: Request, asked: GenerationRequest, studio: Studio, metrics: Metrics, started: float
) -> Response:
    """The events of a request. What is refused before the first of them has a status of its own.

    Nobody reads the answer to a client that has left.
    """
    events = studio.events(await run_in_threadpool(studio.generation, asked))
    first = await unless(lambda: _left(request), anext(events))
    if first is None:
        await events.aclose()
        return Response(status_code=499)

    async def all_events() -> AsyncGenerator[Any, None]:
        async with aclosing(events):
            yield first
            async for event in events:
                yield event
        metrics.request_answered(time.perf_counter() - started)

    text = sent(all_events(), metrics.error_answered)
    return StreamingResponse(text, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _left(request: Request) -> None:
    """Ends when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _add_facts(app: FastAPI, studio: Studio, started: int) -> None:
    config = studio.model
    model = ModelAnswer(
        id=studio.name, created=started, size=studio.size, scales=len(config.schedule), classes=config.num_classes
    )
    names = class_names(config) or ((),) * config.num_classes
    classes = ClassesAnswer(data=[ClassAnswer(id=i, names=list(of_class)) for i, of_class in enumerate(names)])

    @app.get("/v1/models", summary="The model that is served", tags=["facts"])
    async def models() -> ModelsAnswer:
        return ModelsAnswer(data=[model])

    @app.get("/v1/models/{name}", summary="The same", tags=["facts"], responses={404: _ERRORS[404]})
    async def named(name: str) -> ModelAnswer:
        if name != studio.name:
            raise Refusal(404, f"The model {name!r} is not served here.", "model", "model_not_found")
        return model

    @app.get("/v1/classes", summary="The model's classes and what they are called", tags=["facts"])
    async def all_classes() -> ClassesAnswer:
        return classes


def _add_health(app: FastAPI, drawer: Drawer, metrics: Metrics) -> None:
    @app.get("/healthz", summary="Whether the server lives", tags=["health"])
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Whether pictures are drawn", tags=["health"], responses={503: _ERRORS[503]})
    async def readyz() -> Response:
        if trouble := drawer.trouble:
            return Refusal(503, trouble, code="not_ready").answer()  # which is no error, and not counted as one
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", summary="Figures for Prometheus", tags=["health"])
    async def figures() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)


def _add_page(app: FastAPI, studio: Studio, pipeline: Pipeline, metrics: Metrics) -> None:
    switch_off()
    with needs("serve", "for the page"):
        from actvar.serve.explained import Explainer
        from actvar.serve.page import add_page
    add_page(app, studio, Explainer(studio.model, getattr(pipeline, "checkpoint", None)), metrics)


def _document(app: FastAPI, *bodies: Any) -> None:
    """Add bodies that the app reads by itself to its OpenAPI page."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        page = made()
        for body in bodies:
            page["components"]["schemas"][body.__name__] = body.model_json_schema(
                ref_template="#/components/schemas/{model}"
            )
        return page

    app.openapi = openapi  # type: ignore[method-assign]
