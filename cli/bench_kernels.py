"""`actvar-trt bench kernels`: the CUDA kernels beside a copy of their bytes, and beside cuBLASLt's dense FFN."""

import sys
from pathlib import Path
from typing import Annotated

import numpy as np

from actvar.benchmarks.kernels.cases import Cases, Moved, Routed
from actvar.benchmarks.kernels.report import KernelReport
from actvar.cli.options import integers, make_out_folder, model_option, out_option
from actvar.config import PRESETS
from actvar.console import progress_bar, say
from actvar.errors import ActVARError, UsageError, needs
from actvar.export.plans.plugin_choice import EXPERTS, figures_file
from actvar.files import written_whole
from actvar.plotting import plot_files
from actvar.provenance import typed
from actvar.reports import show, write_reports
from actvar.runtime.machine import this_machine

EXAMPLES = """Examples:

actvar-trt bench kernels

actvar-trt bench kernels --token-counts 254,384 --presets d20 --active-experts 12

actvar-trt bench kernels --routing routing.npy"""

JSON_FILE = "kernels.json"
_MOST_TOKENS = 1 << 20


def kernels(
    *,
    presets: Annotated[str, model_option(metavar="d16,d20", help="Presets that give the width.")] = "d16,d20,d24,d30",
    active_experts: Annotated[str, model_option(metavar="4,8,12", help=f"Active experts of {EXPERTS}.")] = "4,8,12,16",
    token_counts: Annotated[
        str, model_option(metavar="254,384", help="Tokens that go through the FFN at once.")
    ] = "254,384,4096,24576,49152",
    routing: Annotated[
        Path | None,
        model_option(
            metavar="FILE",
            show_default="random only",
            help="Recorded scores of a router beside random ones: a .npy file of benchmarks/kernel_routing.py.",
        ),
    ] = None,
    out: Annotated[Path, out_option("Folder for kernels.json, .txt, .png and .svg.")] = Path("bench"),
) -> None:
    """Measure the CUDA kernels on the first GPU, beside what they cannot beat.

    Select, gather, scatter, route and order beside a copy of as many bytes; the routed FFN by all its tactics beside
    the dense FFN of cuBLASLt with bias and GELU in its kernels.
    """
    cases = Cases(
        _numbers("--token-counts", token_counts, _MOST_TOKENS),
        _widths(presets),
        _numbers("--active-experts", active_experts, EXPERTS),
        _recorded(routing) if routing else None,
    )
    with needs("tensorrt-rtx", "to run kernels"):
        from actvar.runtime.backends.cuda_memory import device_info
    device_info()
    make_out_folder(out)
    report = _measured(cases, out)
    page = show(report.tables())
    plots = plot_files("kernels", report.plot)
    write_reports(out, {JSON_FILE: report.to_json(), "kernels.txt": page, **plots})
    _leave_for_builds(report)


def _measured(cases: Cases, out: Path) -> KernelReport:
    """Every figure is in the JSON as soon as it is there: a machine may be taken away at any moment."""
    from actvar.benchmarks.kernels.bench import KernelBench
    from actvar.benchmarks.kernels.cublas_lt import open_cublas_lt
    from actvar.plugins.kernel_calls import open_kernels
    from actvar.runtime.backends.cuda_memory import CudaMemory

    memory = CudaMemory()
    machine, command = this_machine(), typed(["actvar-trt", *sys.argv[1:]])
    moved, routed = list[Moved](), list[Routed]()

    def report() -> KernelReport:
        return KernelReport(command, machine, ceiling, tuple(moved), tuple(routed))

    def keep(figures: Moved | Routed) -> None:
        if isinstance(figures, Moved):
            moved.append(figures)
        else:
            routed.append(figures)
        with written_whole(out / JSON_FILE) as file:
            file.write(report().to_json().encode())

    with progress_bar("kernels beside their peers") as progress:
        bench = KernelBench(open_kernels(), open_cublas_lt(), memory, memory.stream(), progress, keep)
        ceiling = bench.ceiling()
        bench.moves(cases.widths)
        bench.routed(cases)
    return report()


def _leave_for_builds(report: KernelReport) -> None:
    """In the cache, where `build --plugins auto` finds what this GPU is faster with."""
    if report.machine.gpu is None or not report.routed:
        return
    file = figures_file(report.machine.gpu)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as content:
            content.write(report.to_json().encode())
    except OSError as error:
        say(f"{file} cannot be written ({error.strerror}), so builds will go by what is expected.")
    else:
        say(f"`actvar-trt build` on this GPU goes by these figures: {file}")


def _numbers(option: str, text: str, most: int) -> tuple[int, ...]:
    values = tuple(sorted(set(integers(option, text))))
    if values[0] < 1 or values[-1] > most:
        raise UsageError(f"{option} must be numbers from 1 to {most}, got {text!r}.")
    return values


def _widths(text: str) -> tuple[int, ...]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in PRESETS:
            raise UsageError(f"No preset is called {name!r}. There are {', '.join(PRESETS)}.")
    return tuple(sorted({PRESETS[name].width for name in names}))


def _recorded(path: Path) -> np.ndarray:
    """Scores of a file.

    Raises:
        ActVARError: it cannot be read, or holds something else.
    """
    try:
        scores = np.load(path, allow_pickle=False)
    except OSError as error:
        raise ActVARError(f"{path} cannot be read: {error.strerror}. Name another --routing.") from None
    except (ValueError, EOFError):
        raise ActVARError(f"{path} is no .npy file. Record one with benchmarks/kernel_routing.py.") from None
    right = isinstance(scores, np.ndarray) and scores.ndim == 2 and scores.dtype.kind == "f" and len(scores) > 0
    if not right or scores.shape[1] != EXPERTS:
        raise ActVARError(f"{path} must hold scores [tokens, {EXPERTS}]. Record it with benchmarks/kernel_routing.py.")
    return scores
