"""`actvar-trt train`: what its commands share, and the training of the mini models, as arguments and no more.

PyTorch is imported inside the commands, so that the rest of the command line does not wait for it.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from actvar.cli.model_choice import Rates, activated
from actvar.cli.options import TorchDeviceOption, count_option, out_option, seed_option, training_option
from actvar.config import MINI, Activation
from actvar.errors import needs

if TYPE_CHECKING:
    from actvar.distill.mini import MiniRecipe

HELP = "Train an ActVAR from a VAR, a small decoder, or a VQVAE and a VAR from nothing. All go on where they stopped."
ANY, NOTHING = "From a VAR's checkpoint", "From nothing"
EXAMPLES = """Examples:

actvar-trt train mini --out runs/mini

actvar-trt train stage1 --help"""
MINI_EXAMPLES = """Examples:

actvar-trt train mini --out runs/mini

actvar-trt train mini --out runs/half --token-rates 0.5 --expert-rates 0.5"""

_steps_option = partial(training_option, min=1)
OutOption: TypeAlias = Annotated[Path, out_option("Folder of the run: states, logs, tokens, checkpoints.")]
SeedOption: TypeAlias = Annotated[int, seed_option("Decides weights, data order and noise.", "Training")]
CountOption: TypeAlias = Annotated[
    int, count_option("Pictures in all that are encoded for the transformer.", least=100, panel="Training")
]
VqvaeStepsOption: TypeAlias = Annotated[int, _steps_option(help="Updates of the VQVAE, of 16 pictures each.")]


def mini(
    *,
    rates: Rates,
    vqvae_steps: VqvaeStepsOption = 1400,
    count: CountOption = 24_000,
    var_steps: Annotated[int, _steps_option(help="Updates of VAR-mini, of up to 32 pictures each.")] = 1600,
    stage1_steps: Annotated[int, _steps_option(help="Updates of stage 1, of 16 pictures each.")] = 100,
    stage2_steps: Annotated[int, _steps_option(help="Updates of stage 2, of 16 pictures each.")] = 200,
    seed: SeedOption = 0,
    device: TorchDeviceOption = "cpu",
    out: OutOption = Path("runs/mini"),
) -> None:
    """Train everything: VQVAE, VAR-mini, then ActVAR-mini by stage 1 and stage 2. Finished parts are reused."""
    activation = rates.of(MINI) or Activation()
    activated(MINI, activation)
    recipe = mini_recipe(device)(out, device, seed, vqvae_steps, count, var_steps, stage1_steps, stage2_steps)
    for path in recipe.run(activation):
        typer.echo(f"Wrote {path}")


def mini_recipe(device: str) -> "type[MiniRecipe]":
    """What trains on a device that has been found to be here."""
    with needs("train", "to train"):
        from actvar.data.encoding import require_device
        from actvar.distill.mini import MiniRecipe
    require_device(device)
    return MiniRecipe
