"""`actvar-trt bench`: how fast, beside what: one command, one run, one report."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal, TypeAlias

import typer

from actvar.benchmarks.pictures.measure import Contestant, Plan, measure
from actvar.benchmarks.pictures.plot import plot
from actvar.benchmarks.pictures.process import Setting, command_seconds, started
from actvar.benchmarks.pictures.report import BenchReport
from actvar.cli.bench_choice import Field
from actvar.cli.bundle_to_build import ActivationChoice
from actvar.cli.model_choice import (
    ActiveScalesOption,
    Bf16Option,
    ExpertRatesOption,
    ExpertsOption,
    Fp16Option,
    Fp16WeightsOption,
    Int8Option,
    PatchNumsOption,
    Preset,
    TokenRatesOption,
    chosen_precision,
    integers,
    refuse_elsewhere,
)
from actvar.console import progress_bar, say
from actvar.errors import UsageError
from actvar.plotting import plot_files
from actvar.provenance import typed
from actvar.reports import show, write_reports
from actvar.runtime.backends.protocol import Device
from actvar.runtime.machine import Machine, this_machine, usable_cores

EXAMPLES = """Examples:

actvar-trt bench

actvar-trt bench --preset d16 --batch 1,2,4,8 --threads 2 --official-var ../VAR

actvar-trt bench --preset d16 --token-rates 0.5,0.5 --expert-rates 0.5,0.5 --peers none

actvar-trt bench --bundle bundles/d20-fp16 --bundle bundles/actvar-d20-fp16 --backend tensorrt"""

Backend: TypeAlias = Literal["onnxruntime", "tensorrt"]


def bench(
    context: typer.Context,
    preset: Annotated[
        Preset | None,
        typer.Option(show_default="mini", help="A VAR of this shape and its ActVAR, both with random weights."),
    ] = None,
    bundle: Annotated[
        list[Path] | None,
        typer.Option(show_default=False, help="In place of a preset, an exported model; may be given often."),
    ] = None,
    fp16: Fp16Option = False,
    bf16: Bf16Option = False,
    int8: Int8Option = False,
    fp16_weights: Fp16WeightsOption = False,
    active_scales: ActiveScalesOption = None,
    token_rates: TokenRatesOption = None,
    expert_rates: ExpertRatesOption = None,
    experts: ExpertsOption = None,
    patch_nums: PatchNumsOption = None,
    backend: Annotated[Backend, typer.Option(help="What runs the graphs.")] = "onnxruntime",
    device: Annotated[
        Device | None, typer.Option(show_default="cpu; cuda for tensorrt", help="Where everything runs.")
    ] = None,
    batch: Annotated[str, typer.Option(help="Pictures drawn at once, such as 1,2,4,8.")] = "1",
    threads: Annotated[
        int, typer.Option(min=0, max=1024, help="CPU threads of every contestant; 0 is one for each core.")
    ] = 0,
    rounds: Annotated[int, typer.Option(min=1, max=10_000, help="Turns of every contestant at each batch size.")] = 5,
    starts: Annotated[int, typer.Option(min=1, max=1000, help="Fresh processes, for the cold start.")] = 3,
    peers: Annotated[
        str, typer.Option(help="PyTorch beside it, with the dense model: eager, compile, both, or none.")
    ] = "eager,compile",
    official_var: Annotated[
        Path | None,
        typer.Option(show_default="left out", help="Official VAR beside it: a checkout of FoundationVision/VAR."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for bench.json, .txt, .png and .svg.")] = Path("bench"),
) -> None:
    """Measure how fast pictures are drawn, beside PyTorch and official VAR.

    Every contestant has a process of its own and as many threads; they take turns, and ratios are taken turn by turn.
    Leave the machine alone meanwhile.
    """
    if context.invoked_subcommand:  # whose options are its own
        return
    if backend == "tensorrt" and device == "cpu":
        raise UsageError("--backend tensorrt needs a GPU, and --device cpu names none. Leave --device out.")
    device = device or ("cuda" if backend == "tensorrt" else "cpu")
    plan = Plan(_batches(batch), rounds, starts)
    _make_folder(out)
    activation = ActivationChoice(active_scales, token_rates, expert_rates, experts)
    precision = chosen_precision(fp16=fp16, bf16=bf16, int8=int8, fp16_weights=fp16_weights)
    refuse_elsewhere(f"--{precision}", precision, backend, device)
    if bundle and precision != "fp32":
        raise UsageError(f"--{precision} is for a preset, and --bundle has its own precision. Leave it out.")
    field = Field(preset, bundle or [], precision, activation, patch_nums, backend, device, peers, official_var)
    contestants = field.contestants()
    machine = this_machine()
    if machine.load > machine.cores / 2:
        say(f"This machine is busy, with a load of {machine.load:.1f}: the figures will say more about that.")
    report = _report(contestants, plan, machine, device, threads or usable_cores())
    page = show(report.tables())
    plots = plot_files("bench", lambda: plot(report))
    write_reports(out, {"bench.json": report.to_json(), "bench.txt": page, **plots})


def _batches(text: str) -> tuple[int, ...]:
    batches = tuple(sorted(set(integers("--batch", text))))
    if batches[0] < 1:
        raise UsageError(f"--batch must be numbers of pictures from 1, got {text!r}.")
    return batches


def _make_folder(folder: Path) -> None:
    """Now rather than after all has been measured."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {folder} cannot be a folder: {error.strerror}. Name another.") from None


def _report(contestants: list[Contestant], plan: Plan, machine: Machine, device: Device, threads: int) -> BenchReport:
    with TemporaryDirectory(prefix="actvar-bench-") as scratch:
        setting = Setting(threads, device, plan.batches[-1], Path(scratch))
        with progress_bar(f"{len(contestants)} contestants take turns") as progress:
            measured = measure(
                contestants,
                plan,
                lambda contestant: started(contestant, setting),
                lambda contestant: command_seconds(contestant, setting),
                progress,
            )
    command = typed(["actvar-trt", *sys.argv[1:]])
    return BenchReport(command, machine, device, threads, plan, tuple(measured))
