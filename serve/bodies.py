"""What a request for pictures and its answer hold, as JSON: OpenAI's fields, and ours beside them.

Types are strict: "1" is no number, and 1.0 no whole one.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_PICTURES = 10
"""Of a request, as OpenAI's."""

MAX_SEED = 2**64 - 1
MAX_GUIDANCE = 100.0
"""Far above what makes sense, and far below what a graph in fp16 can compute with."""

_MAX_PROMPT = 200


class GenerationRequest(BaseModel):
    """Pictures of one class. Those of a seed are numbered; class, seed and number decide a picture to the byte."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        json_schema_extra={"examples": [{"prompt": "brown-crescent", "n": 2, "seed": 7, "guidance_scale": 1.5}]},
    )

    prompt: Annotated[str, Field(min_length=1, max_length=_MAX_PROMPT)] | Annotated[int, Field(ge=0, lt=10**9)] = Field(
        description="A class: its number, its name, part of a name, or none.", examples=["brown-crescent", "88"]
    )
    model: str | None = Field(None, max_length=_MAX_PROMPT, description="The model that is served; it may be left out.")
    n: int | None = Field(None, ge=1, le=MAX_PICTURES, description="Pictures; 1 if left out.")
    size: str | None = Field(None, max_length=20, description="The model's own, or auto.", examples=["64x64"])
    response_format: Literal["b64_json", "url"] | None = Field(None, description="b64_json; nothing is kept for a url.")
    output_format: Literal["png"] | None = Field(None, description="png.")
    user: str | None = Field(None, max_length=_MAX_PROMPT, description="Not looked at.")
    stream: bool | None = Field(None, description="Server-sent events, with a partial picture after every scale.")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="One is drawn and returned if it is left out.")
    number: int | None = Field(
        None, ge=0, le=MAX_SEED - MAX_PICTURES, description="Of the seed's pictures of the class, the first; 0."
    )
    guidance_scale: float | None = Field(
        None,
        ge=0,
        le=MAX_GUIDANCE,
        allow_inf_nan=False,
        description="Of classifier-free guidance, 0 is none; the model's own if left out.",
    )
    top_k: int | None = Field(None, ge=1, le=900, description="Draw from so many best codes.")
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False, description="Draw from codes with this mass.")


class EditRequest(GenerationRequest):
    """A form: a picture of which a part is drawn anew, and OpenAI's fields; `replace`, `keep` and `paste` are ours.

    A form has texts alone, so that types are not strict.
    """

    model_config = ConfigDict(strict=False, extra="forbid", json_schema_extra={})

    prompt: Annotated[str, Field(min_length=1, max_length=_MAX_PROMPT)] = Field(
        "none", description="The class that is drawn; none if left out: what is kept decides alone."
    )
    stream: bool | None = Field(None, description="Not yet: edits are answered whole.")
    replace: str | None = Field(
        None, max_length=_MAX_PROMPT, description="X0,Y0,X1,Y1 in shares of the side: drawn anew."
    )
    keep: str | None = Field(None, max_length=_MAX_PROMPT, description="The same: kept, and all around drawn anew.")
    paste: bool = Field(False, description="Put the pixels that are kept back as they were, with a soft seam.")


class PictureAnswer(BaseModel):
    """A picture, and what reproduces it: on the command line as --class, --seed, and a --count above its number."""

    b64_json: str = Field(description="A PNG file in base 64: the bytes that the command `generate` writes.")
    class_id: int = Field(description="For none the number after the last class.")
    label: str = Field(examples=["88 (brown-crescent)"])
    seed: int
    number: int


class GenerationAnswer(BaseModel):
    """Pictures, in the order of their numbers."""

    created: int = Field(description="Seconds since 1970.")
    model: str
    size: str
    output_format: Literal["png"] = "png"
    seed: int
    data: list[PictureAnswer]


class PartialEvent(PictureAnswer):
    """A picture of a stream as it is after one of its scales."""

    type: Literal["image_generation.partial_image"] = "image_generation.partial_image"
    created_at: int
    size: str
    output_format: Literal["png"] = "png"
    partial_image_index: int = Field(description="From 0.")
    scale: int = Field(description="From 1.")
    scales: int


class CompletedEvent(PictureAnswer):
    """A picture of a stream when it is done."""

    type: Literal["image_generation.completed"] = "image_generation.completed"
    created_at: int
    size: str
    output_format: Literal["png"] = "png"


class ModelAnswer(BaseModel):
    """The model that is served."""

    id: str = Field(examples=["actvar-mini"])
    object: Literal["model"] = "model"
    created: int = Field(description="When the server was started.")
    owned_by: str = "actvar-trt"
    size: str = Field(examples=["64x64"])
    scales: int
    classes: int


class ModelsAnswer(BaseModel):
    """All models that are served: one."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]


class ClassAnswer(BaseModel):
    """A class; `names` are what it may be called, the one to show first."""

    id: int
    names: list[str]


class ClassesAnswer(BaseModel):
    """All classes of the model."""

    object: Literal["list"] = "list"
    data: list[ClassAnswer]
