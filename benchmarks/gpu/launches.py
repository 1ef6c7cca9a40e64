"""Step: what a launch costs: as many trivial kernels as a chain has, in one CUDA graph of the runtime's recording."""

import time
from statistics import median

from actvar.benchmarks.gpu.case import Departure, Places, Report
from actvar.benchmarks.gpu.project import built_kernels
from actvar.plugins.kernel_calls import open_kernels
from actvar.runtime.backends.cuda_memory import CudaMemory

_KERNELS = 3400  # about the launches of d20's chain
_REPEATS = 20


def run(case: str, places: Places, report: Report) -> None:
    """Launch them one by one, and recorded.

    Raises:
        Departure: nothing was recorded.
    """
    library = built_kernels()
    kernels, memory = open_kernels(library), CudaMemory()
    stream = memory.stream()
    scores, chosen = memory.allocate(4), memory.allocate(8)

    def launch_all() -> None:
        for _ in range(_KERNELS):
            kernels.launch("actvarTokenSelect", scores.address, 1, 1, 1, chosen.address, None, stream.handle)

    launch_all()
    stream.wait()
    report.add(kernels=_KERNELS, launched_seconds=median(stream.seconds(launch_all) for _ in range(_REPEATS)))
    began = time.perf_counter()
    replay = stream.record(launch_all)
    report.add(captured=replay is not None, recording_seconds=time.perf_counter() - began)
    if replay is None:
        raise Departure("The launches were not recorded.")
    replay()
    seconds = median(stream.seconds(replay) for _ in range(_REPEATS))
    report.add(replayed_seconds=seconds, seconds_a_kernel=seconds / _KERNELS)
