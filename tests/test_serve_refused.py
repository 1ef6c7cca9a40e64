"""Requests that a server refuses: each with a status, a message and the field that is wrong, in OpenAI's form."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from small_models import small_config, vivid_model

pytest.importorskip("fastapi", reason="needs the extra serve")

from served import DRAW, Served, files, refused, serving

from actvar.export.onnx_export import export_bundle

NAMES = ("red-heart", "brown-crescent", "blue-star", "green-ring", "golden retriever")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In a folder whose path no answer may name."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    export_bundle(vivid_model(replace(small_config(), class_names=NAMES)), folder, "fp32", "a test")
    return folder


@pytest.fixture(scope="module")
def served(bundle: Path) -> Iterator[Served]:
    with serving(bundle) as served:
        yield served


BAD: list[tuple[bytes, str | None, str]] = [
    (b"", None, "invalid_json"),
    (b"{", None, "invalid_json"),
    (b"\xff\xfe", None, "invalid_json"),
    (b"[" * 30_000, None, "invalid_json"),
    (b"[]", None, "invalid_value"),
    (b"null", None, "invalid_value"),
    (b"{}", "prompt", "invalid_value"),
    (b'{"prompt": ""}', "prompt", "invalid_value"),
    (b'{"prompt": null}', "prompt", "invalid_value"),
    (b'{"prompt": ["1"]}', "prompt", "invalid_value"),
    (b'{"prompt": 1.5}', "prompt", "invalid_value"),
    (b'{"prompt": true}', "prompt", "invalid_value"),
    (b'{"prompt": -1}', "prompt", "invalid_value"),
    (b'{"prompt": 5}', "prompt", "unknown_class"),
    (b'{"prompt": "\xe2\x80\xae\\u0000"}', "prompt", "unknown_class"),
    (b'{"prompt": "' + b"a" * 201 + b'"}', "prompt", "invalid_value"),
    (b'{"prompt": "' + b"9" * 200 + b'"}', "prompt", "unknown_class"),
    (b'{"prompt": "all"}', "prompt", "several_classes"),
    (b'{"prompt": "0-3"}', "prompt", "several_classes"),
    (b'{"prompt": "1", "n": 0}', "n", "invalid_value"),
    (b'{"prompt": "1", "n": 11}', "n", "invalid_value"),
    (b'{"prompt": "1", "n": "2"}', "n", "invalid_value"),
    (b'{"prompt": "1", "n": 2.0}', "n", "invalid_value"),
    (b'{"prompt": "1", "n": ' + b"9" * 5000 + b"}", None, "invalid_json"),
    (b'{"prompt": "1", "n": ' + b"9" * 100 + b"}", "n", "invalid_value"),
    (b'{"prompt": "1", "seed": -1}', "seed", "invalid_value"),
    (b'{"prompt": "1", "seed": 18446744073709551616}', "seed", "invalid_value"),
    (b'{"prompt": "1", "seed": NaN}', "seed", "invalid_value"),
    (b'{"prompt": "1", "seed": 1e3}', "seed", "invalid_value"),
    (b'{"prompt": "1", "number": 18446744073709551615}', "number", "invalid_value"),
    (b'{"prompt": "1", "guidance_scale": NaN}', "guidance_scale", "invalid_value"),
    (b'{"prompt": "1", "guidance_scale": Infinity}', "guidance_scale", "invalid_value"),
    (b'{"prompt": "1", "guidance_scale": 1e999}', "guidance_scale", "invalid_value"),
    (b'{"prompt": "1", "guidance_scale": 1e30}', "guidance_scale", "invalid_value"),
    (b'{"prompt": "1", "guidance_scale": "1"}', "guidance_scale", "invalid_value"),
    (b'{"prompt": "1", "top_k": 0}', "top_k", "invalid_value"),
    (b'{"prompt": "1", "top_k": 901}', "top_k", "invalid_value"),
    (b'{"prompt": "1", "top_p": 0}', "top_p", "invalid_value"),
    (b'{"prompt": "1", "top_p": -Infinity}', "top_p", "invalid_value"),
    (b'{"prompt": "1", "stream": 1}', "stream", "invalid_value"),
    (b'{"prompt": "1", "size": "1024x1024"}', "size", "invalid_size"),
    (b'{"prompt": "1", "response_format": "url"}', "response_format", "unsupported_value"),
    (b'{"prompt": "1", "response_format": "gif"}', "response_format", "invalid_value"),
    (b'{"prompt": "1", "quality": "hd"}', "quality", "unknown_parameter"),
]


@pytest.mark.parametrize(("body", "param", "code"), BAD, ids=lambda given: str(given)[:40])
def test_a_body_that_cannot_be_used_is_a_400(served: Served, body: bytes, param: str | None, code: str):
    """In OpenAI's form, with the field that is wrong, and the same where a stream was asked for."""
    headers = {"Content-Type": "application/json"}
    told = refused(httpx.post(served.url + DRAW, content=body, headers=headers), 400, param, code)
    assert told and len(told) <= 500 and "Traceback" not in told
    if body.endswith(b"}") and b"stream" not in body and b"," in body:
        streamed = httpx.post(served.url + DRAW, content=body[:-1] + b', "stream": true}', headers=headers)
        refused(streamed, 400, param, code)


def test_other_requests_that_cannot_be_used(served: Served, bundle: Path):
    """A wrong model, type of body, path and method; no answer names a path of the machine."""
    answers = [
        (served.ask(prompt="1", model="dall-e-3"), 404, "model", "model_not_found"),
        (httpx.post(served.url + DRAW, content=b'{"prompt":"1"}'), 415, None, "invalid_content_type"),
        (served.get("/v1/models/other"), 404, "model", "model_not_found"),
        (served.get("/v1/nothing"), 404, None, None),
        (served.get(DRAW), 405, None, None),
    ]
    for answer, status, param, code in answers:
        refused(answer, status, param, code)
    everything = [answer.text for answer, *_ in answers]
    everything += [served.get(path).text for path in ("/v1/models", "/v1/classes", "/metrics", "/openapi.json")]
    assert not [text for text in everything if str(bundle.parent) in text or str(Path(__file__).parents[1]) in text]


def test_an_unknown_class_is_answered_with_the_nearest_names(served: Served):
    told = refused(served.ask(prompt="golden retreiver"), 400, "prompt", "unknown_class")
    assert "Did you mean golden retriever?" in told and "--class" not in told and "actvar-trt" not in told


def test_a_request_may_not_have_more_pictures_than_may_wait(bundle: Path):
    """It would be told to come again for ever."""
    with serving(bundle, max_queue=3) as served:
        assert "At most 3" in refused(served.ask(prompt="1", n=4), 400, "n", "invalid_value")
        assert len(files(served.ask(prompt="1", n=3))) == 3
