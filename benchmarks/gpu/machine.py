"""Step: what its tools say of the GPU, and what it reaches at best: a copy and a product, of random numbers."""

import shutil
import subprocess
from collections.abc import Callable
from statistics import median

from actvar.benchmarks.gpu.case import Places, Report, Skipped

_QUERY = "name,driver_version,memory.total,memory.used,compute_cap,clocks.sm,clocks.mem,clocks.max.sm,power.limit"
_COPIED = 1 << 31  # bytes: many times what any cache holds
_SIDE = 8192
_REPEATS = 20


def run(case: str, places: Places, report: Report) -> None:
    """Ask the machine."""
    if not shutil.which("nvidia-smi"):
        raise Skipped("There is no nvidia-smi, and so no NVIDIA GPU.")
    report.add(nvidia_smi=_said("nvidia-smi"), gpu=_said("nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv"))
    if shutil.which("nvcc"):
        report.add(nvcc=_said("nvcc", "--version"))
    try:
        import torch
    except ImportError as error:
        raise Skipped(f"PyTorch cannot be loaded ({error}), so no copy was timed.") from None
    report.add(torch=torch.__version__, torch_cuda=torch.version.cuda)
    if not torch.cuda.is_available():
        raise Skipped("PyTorch sees no GPU, so no copy was timed.")
    properties = torch.cuda.get_device_properties(0)
    report.add(multiprocessors=properties.multi_processor_count, l2_bytes=getattr(properties, "L2_cache_size", None))
    report.add(copy_bytes_per_second=_copy_speed(), product_operations_per_second=_product_speed())


def _copy_speed() -> float:
    """Bytes read plus bytes written in a second, of a large copy on the GPU: the median of twenty."""
    import torch

    source = torch.randint(256, (_COPIED,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * _COPIED / _seconds(lambda: target.copy_(source))


def _product_speed() -> float:
    """Operations in a second, of a large square product in fp16: the median of twenty."""
    import torch

    x, w = (torch.randn(_SIDE, _SIDE, device="cuda").half() for _ in range(2))
    y = torch.empty_like(x)
    return 2 * _SIDE**3 / _seconds(lambda: torch.mm(x, w, out=y))


def _seconds(work: Callable[[], object]) -> float:
    """By the GPU's clock, after three runs that do not count."""
    import torch

    seconds = []
    for _ in range(_REPEATS + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3)
    return median(seconds[3:])


def _said(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return (done.stdout + done.stderr).strip().splitlines()
