"""The API's own page at /docs, made of its OpenAPI description: plain HTML, with nothing from another host."""

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .3rem; } code, pre { font: 14px/1.5 ui-monospace, monospace; }
pre { background: #f0f3f6; padding: .7rem .9rem; border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; } td { padding: .3rem .8rem .3rem 0; vertical-align: top;
  border-bottom: 1px solid #e4e7eb; } .method { color: #2563eb; font-weight: 600; } p { margin: .3rem 0; }
"""
_KEPT = ("get", "post")


def reference(described: Mapping[str, Any], address: str) -> str:
    """The page.

    Args:
        described: as OpenAPI.
        address: of the server, for its examples.
    """
    info = described["info"]
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(info['title'])}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        *(f"<p>{escape(text)}</p>" for text in info["description"].split("\n\n")),
        '<p>As a file for tools: <a href="/openapi.json">/openapi.json</a>.</p>',
    ]
    for path, methods in described["paths"].items():
        for method in (name for name in _KEPT if name in methods):
            parts += _operation(described, path, method, methods[method], address)
    return "\n".join([*parts, "</body>\n</html>\n"])


def _operation(
    described: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any], address: str
) -> Iterator[str]:
    yield f'<h2><span class="method">{method.upper()}</span> <code>{escape(path)}</code></h2>'
    yield f"<p>{escape(operation['summary'])}.</p>"
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body:
        schema = described["components"]["schemas"][body["$ref"].rpartition("/")[2]]
        for example in schema.get("examples", ()):
            text = f"curl {address}{path} -H 'Content-Type: application/json' \\\n    -d '{json.dumps(example)}'"
            yield f"<pre>{escape(text)}</pre>"
        yield from _rows((name, field.get("description", "")) for name, field in schema["properties"].items())
    yield from _rows(
        (status, answer["description"]) for status, answer in operation["responses"].items() if status != "422"
    )


def _rows(rows: Iterator[tuple[str, str]]) -> Iterator[str]:
    yield "<table>"
    for name, words in rows:
        yield f"<tr><td><code>{escape(name)}</code></td><td>{escape(words)}</td></tr>"
    yield "</table>"
