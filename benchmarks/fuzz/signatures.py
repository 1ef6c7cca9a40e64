"""Hashes put right, as an attacker would: of JSON files, and of what a bundle's and a plan folder's manifest list."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actvar.bundle.json_form import HASH_FIELD, content_hash
from actvar.bundle.manifest import MANIFEST_FILE

_LARGEST = 1 << 24  # bytes of a file that is read to be signed


def json_object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if it is something else by now."""
    try:
        found = json.loads(path.read_bytes()) if is_small_file(path) else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def is_small_file(path: Path) -> bool:
    """Whether a path is a plain file that can be read in a moment."""
    return path.is_file() and not path.is_symlink() and path.stat().st_size <= _LARGEST


def sign_json(path: Path, content: Mapping[str, Any] | None = None) -> None:
    """Write the hash that fits an object's other fields, or those of the content if there is one."""
    found = json_object(path) if content is None else content
    if found is not None:
        fields = {name: value for name, value in found.items() if name != HASH_FIELD}
        path.write_bytes(json.dumps({**fields, HASH_FIELD: content_hash(fields)}).encode())


def sign_bundle(folder: Path) -> None:
    """Put sizes and hashes of the graphs right, and the manifest's own."""
    path = folder / MANIFEST_FILE
    content = json_object(path)
    if content is None:
        return
    for specs in (content.get("graphs"), content.get("scales")):
        for name, spec in specs.items() if isinstance(specs, dict) else ():
            _sign_entry(spec, folder, f"{name}.onnx")
    sign_json(path, content)


def sign_plans(folder: Path) -> None:
    """Put sizes and hashes of plans and logs right, and those of the manifest of their folder."""
    path = folder / MANIFEST_FILE
    content = json_object(path)
    if content is None:
        return
    plans = content.get("plans")
    for name, spec in plans.items() if isinstance(plans, dict) else ():
        for kind in ("plan", "log") if isinstance(spec, dict) else ():
            _sign_entry(spec.get(kind), folder, f"{name}.{kind}")
    sign_json(path, content)


def _sign_entry(entry: Any, folder: Path, name: str) -> None:
    if isinstance(entry, dict) and len(name) < 100 and "\0" not in name and "\ud800" not in name:
        file = folder / name
        if is_small_file(file):
            data = file.read_bytes()
            entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
