"""`actvar-trt train`: the two stages of any ActVAR, and the trainings of the mini models, as arguments and no more.

PyTorch is imported inside the commands, so that the rest of the command line does not wait for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from actvar.cli import train_stages

if TYPE_CHECKING:
    from actvar.config import Activation
    from actvar.distill.mini import MiniRecipe

app = typer.Typer(
    no_args_is_help=True,
    help="Train an ActVAR from a VAR (stage1, stage2), or the mini models from nothing. All go on where they stopped.",
    epilog="Example: actvar-trt train mini --out runs/mini",
)
app.command(epilog=train_stages.STAGE1_EXAMPLES)(train_stages.stage1)
app.command(epilog=train_stages.STAGE2_EXAMPLES)(train_stages.stage2)

Out = Annotated[Path, typer.Option(help="Folder of the run: states, logs, tokens, checkpoints.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Seed = Annotated[int, typer.Option(min=0, help="Decides weights, data order and noise.")]
VQVAESteps = Annotated[int, typer.Option(min=1, help="Steps of 16 pictures.")]
Pictures = Annotated[int, typer.Option(min=100, help="Pictures that are encoded for the transformer.")]
VARSteps = Annotated[int, typer.Option(min=1, help="Steps of 32 pictures.")]
StageSteps = Annotated[int, typer.Option(min=1, help="Steps of 16 pictures.")]
Rates = Annotated[str, typer.Option(help="One share for each active scale, comma-separated.")]
Scales = Annotated[str, typer.Option(help="Active scales, numbered from 1, comma-separated.")]
Experts = Annotated[int, typer.Option(min=1, help="Experts that the FFN is cut into.")]


@app.command()
def vqvae(out: Out = Path("runs/mini"), device: Device = "cpu", seed: Seed = 0, steps: VQVAESteps = 1400) -> None:
    """Train the VQVAE."""
    from actvar.distill.mini import MiniRecipe

    MiniRecipe(out, device, seed, vqvae_steps=steps).vqvae()
    typer.echo(f"The VQVAE is in {out / 'vqvae'}. Next: actvar-trt train mini --out {out}")


@app.command()
def mini(
    out: Out = Path("runs/mini"),
    device: Device = "cpu",
    seed: Seed = 0,
    vqvae_steps: VQVAESteps = 1400,
    pictures: Pictures = 24_000,
    var_steps: VARSteps = 1600,
    stage1_steps: StageSteps = 100,
    stage2_steps: StageSteps = 200,
    experts: Experts = 16,
    scales: Scales = "9,10",
    token_rates: Rates = "0.75,0.75",
    expert_rates: Rates = "0.75,0.75",
) -> None:
    """Train everything: VQVAE, VAR-mini, then ActVAR-mini by stage 1 and stage 2. Finished parts are reused."""
    from actvar.distill.mini import MiniRecipe

    activation = _activation(experts, scales, token_rates, expert_rates)
    recipe: MiniRecipe = MiniRecipe(out, device, seed, vqvae_steps, pictures, var_steps, stage1_steps, stage2_steps)
    for path in recipe.run(activation):
        typer.echo(f"Wrote {path}")


@app.command()
def var(
    out: Out = Path("runs/mini"),
    device: Device = "cpu",
    seed: Seed = 0,
    vqvae_steps: VQVAESteps = 1400,
    pictures: Pictures = 24_000,
    steps: VARSteps = 1600,
) -> None:
    """Train VAR-mini on the VQVAE's tokens (the VQVAE first, if it is not there yet)."""
    from actvar.distill.mini import MiniRecipe

    recipe = MiniRecipe(out, device, seed, vqvae_steps, pictures, steps)
    trained = recipe.vqvae()
    dense = recipe.var(trained, recipe.tokens(trained))
    typer.echo(f"Wrote {recipe.save(dense, trained, 'var_mini.safetensors')}")


def _activation(experts: int, scales: str, token_rates: str, expert_rates: str) -> Activation:
    from actvar.config import Activation
    from actvar.errors import UsageError

    try:
        return Activation(
            experts,
            tuple(int(scale) for scale in scales.split(",")),
            tuple(float(rate) for rate in token_rates.split(",")),
            tuple(float(rate) for rate in expert_rates.split(",")),
        )
    except ValueError as error:
        raise UsageError(f"{error}. Give comma-separated numbers such as 0.75,0.75.") from None
