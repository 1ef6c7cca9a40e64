"""Edits over HTTP: OpenAI's form, the bytes that Python draws, and what is refused."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from small_models import small_config, vivid_model

pytest.importorskip("fastapi", reason="needs the extra serve")

from served import Served, files, refused, serving

from actvar import Pipeline
from actvar.editing.area import Keep
from actvar.export.onnx_export import export_bundle
from actvar.image import png
from actvar.serve.multipart import form_fields
from actvar.serve.refusals import Refusal

NAMES = ("red-heart", "brown-crescent", "blue-star", "green-ring", "golden retriever")
CONFIG = replace(small_config(), class_names=NAMES)
SIZE = CONFIG.picture_size
PICTURE = np.random.default_rng(0).integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8)
EDITS = "/v1/images/edits"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    export_bundle(vivid_model(CONFIG), folder, "fp32", "a test")
    return folder


@pytest.fixture(scope="module")
def served(bundle: Path) -> Iterator[Served]:
    with serving(bundle, max_queue=4) as served:
        yield served


def mask(size: int = SIZE) -> bytes:
    """Transparent in its right half: OpenAI's sort."""
    pixels = np.zeros((size, size, 4), np.uint8)
    pixels[:, : size // 2, 3] = 255
    return png(pixels)


def edit(served: Served, image: bytes | None = None, mask: bytes | None = None, **fields: Any) -> httpx.Response:
    """Ask for an edit as OpenAI's clients do."""
    sent = {"image": ("a.png", png(PICTURE) if image is None else image, "image/png")}
    if mask is not None:
        sent["mask"] = ("m.png", mask, "image/png")
    return httpx.post(served.url + EDITS, data=fields, files=sent, timeout=60)


def test_an_edit_is_the_picture_that_python_draws(served: Served, bundle: Path):
    """By a mask as by its rectangle; each with its number; pasted where that is asked for."""
    pipe = Pipeline.from_pretrained(bundle, threads=1, progress_bar=False)
    wanted = pipe.edit(PICTURE, Keep(0, 0, 0.5, 1), "red-heart", 1.5, seed=7, num_images_per_label=2)
    asked = {"prompt": "red-heart", "n": 2, "seed": 7, "guidance_scale": 1.5}
    expected = [png(np.asarray(image)) for image in wanted.images]
    left = str(round(SIZE / 2 / SIZE, 3))
    assert files(edit(served, mask=mask(), **asked)) == files(edit(served, keep=f"0,0,{left},1", **asked)) == expected
    (pasted,) = pipe.edit(PICTURE, Keep(0, 0, 0.5, 1), "red-heart", 1.5, seed=7, paste=True).images
    answer = edit(served, keep="0,0,0.5,1", paste="true", **{**asked, "n": 1})
    assert files(answer) == [png(np.asarray(pasted))]
    assert answer.json()["data"][0]["label"] == "0 (red-heart)"


def test_a_picture_may_bring_its_mask_and_no_class(served: Served):
    """Its transparent part is drawn anew, as of OpenAI's; without a prompt there is no class."""
    clear = np.dstack([PICTURE, np.asarray(Image.open(io.BytesIO(mask())))[..., 3]])
    answer = edit(served, image=png(clear), seed=3)
    assert len(files(answer)) == 1 and answer.json()["data"][0]["label"] == "none"


@pytest.mark.parametrize(
    ("sent", "status", "param", "code", "words"),
    [
        ({}, 400, "mask", "missing_mask", "Nothing says what is drawn anew"),
        ({"keep": "0,0,1"}, 400, "keep", "invalid_value", "four numbers"),
        ({"keep": "0,0,1,1"}, 400, "image", "invalid_image", "would be kept"),
        ({"keep": "0,0,0.5,1", "replace": "0,0,0.5,1"}, 400, "mask", "ambiguous", "Send one of them"),
        ({"mask": mask(4)}, 400, "mask", "invalid_image", "The mask has 4x4 pixels"),
        ({"mask": b"none"}, 400, "mask", "invalid_image", "The mask cannot be used"),
        ({"image": b"none", "keep": "0,0,0.5,1"}, 400, "image", "invalid_image", "The picture cannot be used"),
        ({"image": b"P5 5000 5000 255 ", "keep": "0,0,0.5,1"}, 400, "image", "invalid_image", "too many"),
        ({"image": b"", "keep": "0,0,0.5,1"}, 400, "image", "missing_image", "There is no picture"),
        ({"keep": "0,0,0.5,1", "n": "x"}, 400, "n", "invalid_value", "n: "),
        ({"keep": "0,0,0.5,1", "n": 5}, 400, "n", "invalid_value", "At most 4 pictures"),
        ({"keep": "0,0,0.5,1", "stream": "true"}, 400, "stream", "unsupported_value", "answered whole"),
        ({"keep": "0,0,0.5,1", "prompt": "red-hart"}, 400, "prompt", "unknown_class", "Did you mean red-heart"),
        ({"keep": "0,0,0.5,1", "colour": "red"}, 400, "colour", "unknown_parameter", "no parameter colour"),
        ({"image": bytes(17 << 20), "keep": "0,0,0.5,1"}, 413, None, "body_too_long", "16777216 bytes"),
    ],
)
def test_what_cannot_be_edited_is_answered_with_why(served: Served, sent, status, param, code, words: str):
    """The queue and the engine see nothing of it."""
    assert words in refused(edit(served, **sent), status, param, code)


def test_a_body_that_is_no_form_is_refused(served: Served):
    """JSON, a form without its end."""
    answer = httpx.post(served.url + EDITS, json={"image": "x"}, timeout=60)
    refused(answer, 415, None, "invalid_content_type")
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = httpx.post(served.url + EDITS, content=b"--b\r\nContent-Disposition: x", headers=headers, timeout=60)
    refused(answer, 400, None, "invalid_form")


def test_a_full_queue_refuses_an_edit_before_its_picture_is_looked_at(served: Served):
    """A picture that is none would be a 400."""
    drawer = served.app.state.drawer
    full, drawer._max_queue = drawer._max_queue, 0
    try:
        answer = edit(served, image=b"none", keep="0,0,0.5,1")
        assert refused(answer, 429, None, "queue_full") and int(answer.headers["Retry-After"]) >= 1
    finally:
        drawer._max_queue = full


def test_a_model_without_an_encoder_says_so(tmp_path: Path):
    """It serves pictures, and no edits."""
    export_bundle(vivid_model(CONFIG), tmp_path / "tiny", "fp32", "a test", encoder=False)
    with serving(tmp_path / "tiny") as served:
        assert "no encoder" in refused(edit(served, keep="0,0,0.5,1"), 400, "model", "not_editable")


# ---- the form itself


def form(*parts: bytes, end: bytes = b"--\r\n") -> bytes:
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b" + end


def part(name: str, content: bytes) -> bytes:
    return (
        f'Content-Disposition: form-data; name="{name}"; filename="x"\r\nContent-Type: a/b\r\n\r\n'.encode() + content
    )


KIND = "multipart/form-data; boundary=b"


def test_a_form_gives_each_fields_bytes_as_they_are():
    """Line ends, what looks like a delimiter within a line, and nothing at all."""
    contents = [b"", b"\r\n", b"\r\n\r\n--\r\n", b"a--b\r\nx", bytes(range(256))]
    found = form_fields(KIND, form(*(part(f"f{i}", content) for i, content in enumerate(contents))))
    assert list(found.values()) == contents and list(found) == ["f0", "f1", "f2", "f3", "f4"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b",
        form(part("a", b"1"), end=b"\r\n"),
        form(part("a", b"1"), part("a", b"2")),
        form(b"no head"),
        form(b"Content-Disposition: form-data\r\n\r\n1"),
        form(b"X: " + b"y" * 5000 + b"\r\n\r\n1"),
        form(*[part(f"f{i}", b"") for i in range(40)]),
    ],
)
def test_a_form_that_is_none_is_refused(body: bytes):
    """Cut short, without names, or with too many."""
    with pytest.raises(Refusal):
        form_fields(KIND, body)
