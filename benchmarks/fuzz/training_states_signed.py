"""A training's folder whose state has a hash that fits what was changed."""

import hashlib
import random
import re
from pathlib import Path

from actvar.benchmarks.fuzz.training_states import STATE, change_state, samples
from actvar.benchmarks.fuzz.training_states import resume as read

__all__ = ["mutate", "read", "samples"]

_TRAILER = re.compile(rb"\nsha256 [0-9a-f]{64}\n\Z")


def mutate(path: Path, rng: random.Random) -> None:
    """Change the state, and put its hash right."""
    state = path / STATE
    change_state(state, rng)
    if state.is_file() and not state.is_symlink() and state.stat().st_size < 1 << 24:
        content = _TRAILER.sub(b"", state.read_bytes())
        state.write_bytes(content + b"\nsha256 " + hashlib.sha256(content).hexdigest().encode() + b"\n")
