"""How much memory this process holds, and held at most, as Linux tells."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes in memory now, the most that were there at once (VmRSS and VmHWM), and now without files' (RssAnon).

    getrusage would count the parent's peak from before the exec, too.
    """

    resident: int
    peak: int
    anonymous: int = 0


def process_memory() -> ProcessMemory:
    """As it is now."""
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "VmHWM", "RssAnon"):
            found[name] = int(value.split()[0]) * 1024
    return ProcessMemory(found["VmRSS"], found["VmHWM"], found["RssAnon"])
