"""`--shard I/N`: the part of a long work that one process does, the same for every command that has parts."""

import re

from actvar.errors import UsageError


def chosen_shard(text: str) -> tuple[int, int]:
    """I and N of I/N.

    Raises:
        UsageError: it is something else.
    """
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    index, shards = (int(found[1]), int(found[2])) if found else (0, 0)
    if not index < shards:
        raise UsageError(f"--shard must be I/N with I from 0 to N-1, such as 0/4; got {text!r}.")
    return index, shards
