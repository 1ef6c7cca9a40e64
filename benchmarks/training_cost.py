"""What a step of stage 1 and of stage 2 costs beside a step of plain VAR training, at the same batch, in one run.

    python benchmarks/training_cost.py --preset mini --batch 8 --json benchmarks/results/training-cost-mini.json

Each training runs in a fresh process, in turn, for some rounds; random weights and tokens cost what real ones do. A
step of plain VAR is the cross-entropy of all tokens and AdamW on all weights. Ratios are taken within a round. Memory
is the peak beyond Python and PyTorch alone (VmHWM) on a CPU, and what PyTorch allocated on a GPU. Linux only.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from actvar.benchmarks.command import end_with
from actvar.config import PRESETS, Activation, ModelConfig
from actvar.data.tokens import TokenStore
from actvar.distill.stages import StageSettings, student_of, train_stage1, train_stage2
from actvar.models.actvar import ActVAR, random_model
from actvar.process_memory import process_memory
from actvar.provenance import typed
from actvar.runtime.machine import this_machine
from actvar.training.loop import run
from actvar.training.token_batches import TokenBatches
from actvar.training.update import Update
from actvar.training.var import teacher_forced_loss

PLAIN, STAGES = "var", {"stage1": train_stage1, "stage2": train_stage2}
WARM_UP = 2  # steps that are not counted


def memory(device: str) -> int:
    """The peak so far, in bytes."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    return process_memory().peak


@dataclass(frozen=True)
class Clock(TokenStore):
    """Random tokens that note when each step asks for its own, and the peak of memory until then."""

    device: str = "cpu"
    times: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)

    def batch(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """See `TokenStore`."""
        if self.device != "cpu":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        self.peaks.append(memory(self.device))
        return super().batch(places)


def train_plain(model: ActVAR, settings: StageSettings, store: TokenStore) -> None:
    """VAR's own training, all weights by AdamW."""
    var, quantizer = model.var.to(settings.device).requires_grad_(True), model.vqvae.quantize.to(settings.device)
    optimizer = torch.optim.AdamW(var.parameters(), betas=(0.9, 0.95), weight_decay=settings.weight_decay)
    update = Update(var, dict(var.named_parameters()), {"optimizer": optimizer})
    batches = TokenBatches(store, settings, var.config.num_classes, settings.device)

    def losses(token_ids_BT: Tensor, class_ids_B: Tensor) -> dict[str, Tensor]:
        return {"loss": teacher_forced_loss(var, quantizer, class_ids_B, token_ids_BT, settings.precision).mean()}

    def step(number: int, learning_rate: float) -> dict[str, Tensor]:
        return update.step(learning_rate, (partial(losses, *part) for part in batches.parts(number, settings.batch)))

    run("VAR", step, {"var": var, **update.states}, settings)


def measure(training: str, config: ModelConfig, batch: int, steps: int, device: str, folder: Path) -> dict[str, object]:
    """Run one training in this process; seconds of each step, and bytes."""
    warm = torch.nn.Parameter(torch.zeros(1))
    torch.optim.AdamW([warm]).zero_grad()  # imports what PyTorch needs for any optimiser
    alone = memory(device)
    model = random_model(config.dense())
    ids = np.random.default_rng(0).integers(0, config.vqvae.vocab_size, (4 * batch, config.schedule.total))
    store = Clock(ids.astype(np.uint16), np.arange(4 * batch) % config.num_classes, device=device)
    settings = StageSettings(folder, WARM_UP + steps + 1, batch, 2e-4, device=device, log_every=10**6, save_every=10**6)
    if training == PLAIN:
        train_plain(model, settings, store)
    else:
        STAGES[training](model.var, student_of(model.var, config), settings, store, model.vqvae.quantize)
    seconds = [after - before for before, after in zip(store.times, store.times[1:], strict=False)]
    return {"seconds": seconds[WARM_UP:], "bytes": store.peaks[-1] - alone, "threads": torch.get_num_threads()}


def in_a_process(training: str, arguments: argparse.Namespace) -> dict[str, object]:
    """The same in a fresh one."""
    options = ["--preset", arguments.preset, "--batch", arguments.batch, "--steps", arguments.steps]
    command = [sys.executable, __file__, "--training", training, *options, "--device", arguments.device]
    done = subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def compare(rounds: list[dict[str, dict]], batch: int) -> dict[str, dict]:
    """Seconds, pictures a second and bytes of each training, and their ratios to plain VAR's in the same round."""
    found: dict[str, dict] = {}
    for training in (PLAIN, *STAGES):
        seconds = [statistics.median(each[training]["seconds"]) for each in rounds]
        plain = [statistics.median(each[PLAIN]["seconds"]) for each in rounds]
        size, plain_size = ([each[name]["bytes"] for each in rounds] for name in (training, PLAIN))
        found[training] = {
            "seconds": spread(seconds),
            "pictures_a_second": batch / statistics.median(seconds),
            "bytes": spread(size),
            "throughput_ratio": spread([b / a for a, b in zip(seconds, plain, strict=True)]),
            "memory_ratio": spread([a / b for a, b in zip(size, plain_size, strict=True)]),
        }
    return found


def main() -> None:
    """Measure in turn, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="mini")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8, help="counted in each process")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--training", choices=(PLAIN, *STAGES), help="measure this one in this process, and no more")
    arguments = parser.parse_args()
    if arguments.training:
        config = replace(PRESETS[arguments.preset], activation=Activation())
        with tempfile.TemporaryDirectory() as folder:
            found = measure(
                arguments.training, config, arguments.batch, arguments.steps, arguments.device, Path(folder)
            )
        print(json.dumps(found))
        return
    rounds = []
    for number in range(arguments.rounds):
        names = [PLAIN, *STAGES] if number % 2 == 0 else [*reversed(STAGES), PLAIN]
        rounds.append({name: in_a_process(name, arguments) for name in names})
    figures = compare(rounds, arguments.batch)
    for name, each in figures.items():
        speed, size = each["throughput_ratio"], each["memory_ratio"]
        print(
            f"{name:8}{each['pictures_a_second']:8.2f} pictures a second, {each['bytes']['median'] / 1e6:7.0f} MB; of "
            f"plain VAR: speed {speed['median']:.2f} ({speed['least']:.2f} to {speed['most']:.2f}), "
            f"memory {size['median']:.2f} ({size['least']:.2f} to {size['most']:.2f})"
        )
    if arguments.json:
        report = {
            "command": typed(["python", *sys.argv]),
            **{name: getattr(arguments, name) for name in ("preset", "batch", "steps", "device")},
            "cpu": this_machine().cpu,
            "torch": torch.__version__,
            "threads": rounds[0][PLAIN]["threads"],
            "figures": figures,
            "rounds": rounds,
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    end_with(main)
