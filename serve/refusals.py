"""Errors as OpenAI's API has them, {"error": {"message", "type", "param", "code"}}: clients know this form.

No message names a path of the machine or what an engine's library said.
"""

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException

from actvar.errors import shown
from actvar.serve.batching import CannotDraw, NotDrawing, QueueFull
from actvar.serve.metrics import Metrics

_LONGEST = 500  # characters of a message
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ErrorFields(BaseModel):
    """What is wrong."""

    message: str = Field(examples=["prompt 'brown-cresent' is unknown: ... Did you mean brown-crescent?"])
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(examples=["prompt"])
    code: str | None = Field(examples=["unknown_class"])


class ErrorAnswer(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorFields


class Refusal(Exception):
    """A request that is answered with an error.

    Args:
        status: of HTTP.
        message: one sentence of what is wrong, one of what to do.
        param: the field that is wrong.
        code: for programs.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    @property
    def body(self) -> dict[str, object]:
        """As JSON."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        fields = ErrorFields(message=shown(self.message, _LONGEST), type=kind, param=self.param, code=self.code)
        return ErrorAnswer(error=fields).model_dump()

    def answer(self) -> JSONResponse:
        """As an answer of its own."""
        return JSONResponse(self.body, self.status, headers=dict(self.headers or {}))


def refusal_of(error: Exception) -> Refusal:
    """How an error of the queue is answered, and how any other."""
    if isinstance(error, QueueFull):
        return Refusal(429, str(error), code="queue_full", headers={"Retry-After": str(error.retry_after)})
    if isinstance(error, NotDrawing):
        return Refusal(503, str(error), code="not_ready", headers={"Retry-After": str(error.retry_after)})
    if isinstance(error, CannotDraw):
        return Refusal(503, str(error), code="engine_failed")
    return Refusal(500, "The server has a fault. Its log says more.", code="internal_error")


def refusal_of_body(error: ValidationError) -> Refusal:
    """The first thing that is wrong with a body, in words that do not repeat what was sent."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    path = str(first["loc"][0]) if first["loc"] else None  # all fields lie side by side; more would name our types
    if first["type"] == "json_invalid":
        return Refusal(400, f"The body is not JSON. {first['msg']}.", code="invalid_json")
    if first["type"] == "extra_forbidden":
        return Refusal(400, f"There is no parameter {path}. Leave it out.", path, "unknown_parameter")
    return Refusal(400, f"{path}: {first['msg']}." if path else f"The body: {first['msg']}.", path, "invalid_value")


def answer_errors(app: FastAPI, metrics: Metrics) -> None:
    """Let every error of an app leave in this form, and be counted."""

    def counted(refusal: Refusal) -> JSONResponse:
        metrics.error_answered(refusal.status)
        return refusal.answer()

    @app.exception_handler(Refusal)
    async def of_ours(_: Request, error: Refusal) -> JSONResponse:
        return counted(error)

    @app.exception_handler(RequestValidationError)
    async def of_a_path(_: Request, error: RequestValidationError) -> JSONResponse:
        return counted(Refusal(400, "The path or the query cannot be used. See /docs.", code="invalid_value"))

    @app.exception_handler(HTTPException)
    async def of_the_framework(_: Request, error: HTTPException) -> JSONResponse:
        return counted(Refusal(error.status_code, f"{error.detail}.", headers=error.headers))

    @app.exception_handler(Exception)
    async def of_nobody(_: Request, error: Exception) -> JSONResponse:
        return counted(refusal_of(error))
