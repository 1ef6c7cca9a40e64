"""A request for edits on its way: a form with a picture, held to the model, prepared, and drawn as others are.

A picture is decoded and encoded by one request at a time, and only when the queue has room for what comes of it.

Letters in shapes: L tokens of a scale.
"""

import asyncio
import io
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from actvar.editing.area import Keep, Rectangle, Replace
from actvar.editing.edit import Edit
from actvar.editing.square import has_alpha
from actvar.errors import ActVARError, ArgumentError, BundleError
from actvar.serve.bodies import EditRequest, GenerationAnswer
from actvar.serve.generations import Studio
from actvar.serve.refusals import Refusal, refusal_of, refusal_of_body

MAX_PIXELS = 1 << 24
"""Of a picture or a mask that is sent."""

_FILES = ("image", "mask")


@dataclass(frozen=True)
class Retoucher:
    """What edits pictures: a studio, and the one place where a picture is prepared."""

    studio: Studio
    _place: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))

    async def answer(self, fields: Mapping[str, bytes], left: Callable[[], Awaitable[None]]) -> GenerationAnswer | None:
        """The pictures of a form; none if its client leaves, of which `left` is the end.

        Raises:
            Refusal: there are none.
        """
        asked, files = _read(fields)
        if asked.stream:
            raise Refusal(400, "Edits are answered whole. Leave stream out.", "stream", "unsupported_value")
        area = _area(asked, files)
        wanted = await run_in_threadpool(self.studio.generation, asked)
        self.studio.require_room(wanted.count)
        async with self._place:
            edit, given = await run_in_threadpool(self._prepared, files["image"], area)
        finish = edit.pasted if asked.paste else None
        return await self.studio.drawn(replace(wanted, given=given), left, finish)

    def _prepared(self, picture: bytes, area: Rectangle | bytes) -> tuple[Edit, tuple[np.ndarray, ...]]:
        """An edit, and the codes that stay, of every scale [L].

        Raises:
            Refusal: the picture or the mask cannot be used, or this model edits none.
        """
        try:
            edit = Edit.of(self.studio.model, picture, area, MAX_PIXELS)
            return edit, edit.given(self.studio.drawer.encode(edit.pixels_HH3))
        except ArgumentError as error:
            param = "mask" if str(error).startswith("The mask") else "image"
            raise Refusal(400, str(error), param, "invalid_image") from None
        except BundleError as error:
            raise Refusal(400, str(error), "model", "not_editable") from None
        except ActVARError as error:
            raise refusal_of(error) from error


def _read(fields: Mapping[str, bytes]) -> tuple[EditRequest, dict[str, bytes]]:
    """What a form asks for, and its files.

    Raises:
        Refusal: it is no form of ours, or has no picture.
    """
    named = {name.removesuffix("[]"): content for name, content in fields.items()}  # a list of one
    files = {name: named.pop(name) for name in _FILES if name in named}
    if not files.get("image"):
        raise Refusal(400, "There is no picture to edit. Send one as the field image.", "image", "missing_image")
    texts: dict[str, Any] = {name: content.decode("utf-8", "replace") for name, content in named.items()}
    try:
        return EditRequest.model_validate({name: text for name, text in texts.items() if text}), files
    except ValidationError as error:
        raise refusal_of_body(error) from None


def _area(asked: EditRequest, files: Mapping[str, bytes]) -> Rectangle | bytes:
    """What is drawn anew: a rectangle, or a mask, which may be the picture's own transparent part.

    Raises:
        Refusal: nothing says it, or several do.
    """
    given = [area for area in (asked.replace, asked.keep, files.get("mask")) if area]
    if len(given) > 1:
        raise Refusal(400, "mask, replace and keep all say what is drawn anew. Send one of them.", "mask", "ambiguous")
    try:
        if asked.replace:
            return Replace.parse(asked.replace)
        if asked.keep:
            return Keep.parse(asked.keep)
    except ArgumentError as error:
        raise Refusal(400, str(error), "replace" if asked.replace else "keep", "invalid_value") from None
    if files.get("mask"):
        return files["mask"]
    if _is_transparent(files["image"]):
        return files["image"]
    message = "Nothing says what is drawn anew. Send a mask, or replace or keep with X0,Y0,X1,Y1."
    raise Refusal(400, message, "mask", "missing_mask")


def _is_transparent(picture: bytes) -> bool:
    """Whether a picture may have a transparent part; what cannot be opened has none, and is refused later."""
    try:
        with Image.open(io.BytesIO(picture), formats=("PNG", "WEBP")) as image:  # of which little is read
            return has_alpha(image)
    except Exception:
        return False
