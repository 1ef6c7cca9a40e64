"""What a measurement was made on: processor, cores, memory, versions, and how busy it was with something else."""

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from actvar import __version__
from actvar.runtime.gpu import first_gpu

_PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "torch")


@dataclass(frozen=True)
class Machine:
    """`load` is the average number of processes that wanted to run in the last minute."""

    cpu: str
    cores: int
    memory_bytes: int
    system: str
    gpu: str | None
    load: float
    versions: dict[str, str]

    def in_words(self) -> str:
        """One line, without versions."""
        parts = [self.cpu, f"{self.cores} cores", f"{self.memory_bytes / 2**30:.0f} GiB"]
        return ", ".join([*parts, *([self.gpu] if self.gpu else []), f"load {self.load:.1f} before"])


def this_machine() -> Machine:
    """As it is now; cores are those that this process may use. Linux."""
    gpu = first_gpu()
    return Machine(
        _cpu(),
        usable_cores(),
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        f"{platform.system()} {platform.release()} {platform.machine()}",
        gpu.name if gpu else None,
        os.getloadavg()[0],
        {"actvar-trt": __version__, "python": platform.python_version(), **_installed()},
    )


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_instructions() -> tuple[str, ...]:
    """The instructions that matter to matrix products, of those that the processor has; none where no file says so."""
    flags = _cpu_fields().get("flags", "").split()
    return tuple(flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if flag in flags)


def _cpu() -> str:
    """The processor's name, with its `cpu_instructions`."""
    name, known = _cpu_fields().get("model name", platform.machine()), cpu_instructions()
    return f"{name} ({' '.join(known)})" if known else name


def _cpu_fields() -> dict[str, str]:
    """What Linux says of the first core."""
    path, fields = Path("/proc/cpuinfo"), dict[str, str]()
    for line in path.read_text().splitlines() if path.exists() else ():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields


def _installed() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
