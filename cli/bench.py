"""`actvar-trt bench`: how fast, beside what: one command, one run, one report."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from actvar.arguments import require_place
from actvar.benchmarks.pictures.contestants import named_contestants, peer_kinds, peers_of, random_contestants
from actvar.benchmarks.pictures.measure import Contestant, Plan, measure
from actvar.benchmarks.pictures.plot import plot
from actvar.benchmarks.pictures.process import Setting, command_seconds, started
from actvar.benchmarks.pictures.report import BenchReport
from actvar.cli.completion import complete_model
from actvar.cli.model_choice import Facts, Rates, Size, chosen_model
from actvar.cli.options import (
    DecoderOption,
    DeviceOption,
    Fp16Option,
    GraphBackend,
    PrecisionOption,
    Preset,
    ThreadsOption,
    VqvaeOption,
    chosen_precision,
    engine_option,
    integers,
    make_out_folder,
    model_option,
    out_option,
)
from actvar.config import Decoder, ModelConfig
from actvar.console import progress_bar, say
from actvar.errors import UsageError, counted
from actvar.files import scratch_folder
from actvar.plotting import plot_files
from actvar.provenance import typed
from actvar.reports import show, write_reports
from actvar.runtime.backends.protocol import Device
from actvar.runtime.machine import Machine, first_gpu, this_machine, usable_cores

EXAMPLES = """Examples:

actvar-trt bench

actvar-trt bench --preset d16 --batch-sizes 1,2,4,8 --threads 2 --official-var ../VAR

actvar-trt bench --preset d16 --deployed --threads 2 --official-var ../VAR --peers compile,bf16,openvino

actvar-trt bench --depth 16 --token-rates 0.5 --expert-rates 0.5 --peers none

actvar-trt bench --model bundles/d20-fp16 --model bundles/actvar-d20-fp16 --backend tensorrt"""

_DEFAULT_PRESET: Preset = "mini"
_rival_option = partial(typer.Option, rich_help_panel="Measuring")


def bench(
    context: typer.Context,
    *,
    models: Annotated[
        list[str] | None,
        model_option(
            "--model",
            metavar="NAME",
            show_default="VAR and ActVAR of a preset",
            autocompletion=complete_model,
            help="Who takes part: as for `generate`; may be given often.",
        ),
    ] = None,
    vqvae: VqvaeOption = None,
    facts: Facts,
    size: Size,
    rates: Rates,
    decoder: DecoderOption = None,
    deployed: Annotated[
        bool,
        model_option(
            help="Of a size also what is meant for use on a CPU: guidance-free with static experts, with the full and "
            "the small decoder, in fp32 and int8."
        ),
    ] = False,
    batch_sizes: Annotated[str, engine_option(metavar="1,2,4", help="Pictures drawn at a time.")] = "1",
    precision: PrecisionOption = None,
    fp16: Fp16Option = False,
    backend: GraphBackend = "onnxruntime",
    device: DeviceOption = None,
    threads: ThreadsOption = 0,
    peers: Annotated[
        str,
        _rival_option(
            metavar="PEERS",
            help="Beside it: eager, compile and bf16 of the dense model in PyTorch; openvino and openvino-bf16, with "
            "the same graphs; or none.",
        ),
    ] = "eager,compile",
    official_var: Annotated[
        Path | None,
        _rival_option(
            metavar="FOLDER",
            show_default="left out",
            help="A checkout of FoundationVision/VAR beside it; peers in PyTorch run its code, too.",
        ),
    ] = None,
    rounds: Annotated[int, _rival_option(min=1, max=10_000, help="Turns of every contestant at each batch size.")] = 5,
    starts: Annotated[int, _rival_option(min=1, max=1000, help="Fresh processes, for the cold start.")] = 3,
    out: Annotated[Path, out_option("Folder for bench.json, .txt, .png and .svg.")] = Path("bench"),
) -> None:
    """Measure how fast pictures are drawn, beside PyTorch and official VAR.

    Of a --preset or --depth both the VAR and its ActVAR take part, with random weights; without one it is mini.
    Everyone has a process of its own and as many threads; they take turns, and ratios are taken turn by turn. What is
    attainable is told by a large product, which each multiplies in its turn. Leave the machine alone meanwhile.
    """
    if context.invoked_subcommand:  # whose options are its own
        return
    place: Device = device or ("cuda" if backend == "tensorrt" else "cpu")
    plan = Plan(_batches(batch_sizes), rounds, starts)
    make_out_folder(out)
    precision = chosen_precision(precision, fp16)
    require_place(backend, place, precision)
    if place == "cuda" and first_gpu() is None:
        raise UsageError(f"--device {place} needs an NVIDIA GPU, and there is none. Leave it out, and --backend, too.")
    kinds = peer_kinds(peers)
    if models and (replace(size, patch_nums=None) != Size() or rates.are_given or deployed):
        raise UsageError("--model names what is there, and a preset, rates or scales shape another. Leave them out.")
    if models:
        named = [chosen_model(model, vqvae, size.patch_nums, facts, backend == "tensorrt") for model in models]
        graphs = named_contestants(named, precision, decoder, backend, official_var)
        who = None
    else:
        size = size if size.is_given else replace(size, preset=_DEFAULT_PRESET)
        size.refuse_beside(None, vqvae, rates)
        if deployed and (size.dense or size.guidance_free or decoder or precision or place == "cuda"):
            raise UsageError("--deployed says which forms take part, and that on a CPU. Leave the others' options out.")
        of_size = _forms(size, rates, decoder, precision or "fp32", deployed)
        graphs = random_contestants(of_size, backend, official_var)
        who = f"VAR-{size.name}"
    contestants = [*graphs, *peers_of(graphs, who, kinds, official_var, place)]
    machine = this_machine()
    if machine.load > machine.cores / 2:
        say(f"This machine is busy, with a load of {machine.load:.1f}: the figures will say more about that.")
    report = _report(contestants, plan, machine, place, threads or usable_cores())
    page = show(report.tables())
    plots = plot_files("bench", lambda: plot(report))
    write_reports(out, {"bench.json": report.to_json(), "bench.txt": page, **plots})


def _forms(
    size: Size, rates: Rates, decoder: Decoder | None, precision: str, deployed: bool
) -> list[tuple[str, ModelConfig, str]]:
    """The VAR of a size and its ActVAR, with what is deployed of it: names, shapes and precisions."""

    def form(size: Size, rates: Rates, decoder: Decoder | None, precision: str) -> tuple[str, ModelConfig, str]:
        name, model = size.model(rates, decoder)
        return name.replace("actvar", "ActVAR") if model.activation else f"VAR-{name}", model, precision

    found = [form(replace(size, dense=True), Rates(), decoder, precision)]
    if not size.dense:
        found.append(form(size, rates, decoder, precision))
    if deployed:
        free, static = replace(size, guidance_free=True), replace(rates, expert_choice="static")
        decoders: tuple[Decoder, ...] = ("full", "small")
        found += [form(free, static, one, precise) for precise in ("fp32", "int8") for one in decoders]
    return found


def _batches(text: str) -> tuple[int, ...]:
    batches = tuple(sorted(set(integers("--batch-sizes", text))))
    if batches[0] < 1:
        raise UsageError(f"--batch-sizes must be numbers of pictures from 1, got {text!r}.")
    return batches


def _report(contestants: list[Contestant], plan: Plan, machine: Machine, device: Device, threads: int) -> BenchReport:
    with scratch_folder("bench") as scratch:
        setting = Setting(threads, device, plan.batches[-1], scratch)
        with progress_bar(f"{counted(len(contestants), 'contestant')} take turns") as progress:
            measured = measure(
                contestants,
                plan,
                lambda contestant: started(contestant, setting),
                lambda contestant: command_seconds(contestant, setting),
                progress,
            )
    command = typed(["actvar-trt", *sys.argv[1:]])
    return BenchReport(command, machine, device, threads, plan, tuple(measured))
