"""The command `python -m actvar.evaluation`: how good a checkpoint's pictures are, beside real ones.

Knows arguments and the terminal; the figures are `glyph_report`'s.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from actvar.checkpoint.model import load_model
from actvar.data.glyphs import HELD_OUT_SEED
from actvar.errors import ActVARError
from actvar.evaluation.classifier import load_classifier
from actvar.evaluation.draws import generated_pictures, real_pictures, reconstructions
from actvar.evaluation.glyph_report import make_report

REFERENCE_PICTURES = 10_000


def main(
    checkpoints: Annotated[list[Path], typer.Argument(help="Models to judge, a row each; the first's VQVAE is, too.")],
    vqvae: Annotated[Path | None, typer.Option(help="The file with the VQVAE of those that hold none.")] = None,
    out: Annotated[Path, typer.Option(help="Where to write the figures, as JSON.")] = Path("glyph-report.json"),
    pictures: Annotated[int, typer.Option(min=100, help="Pictures a row.")] = 5000,
    batch: Annotated[int, typer.Option(min=1, help="Pictures drawn at once.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the generated pictures.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Class accuracy and Fréchet distance of real, reconstructed and generated Glyphs-100 pictures."""
    try:
        models = {file.stem: load_model(file, None if file == vqvae else vqvae).to(device) for file in checkpoints}
        draws = {
            f"held-out real, seed {HELD_OUT_SEED}": real_pictures(HELD_OUT_SEED),
            "reconstructions": reconstructions(next(iter(models.values())).vqvae),
            **{
                f"{name}, seed {seed}": generated_pictures(model, model.config.sampling, seed)
                for name, model in models.items()
            },
        }
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns) as progress:
            task = progress.add_task("Pictures", total=REFERENCE_PICTURES + len(draws) * pictures)
            report = make_report(
                draws, load_classifier(), pictures, batch, REFERENCE_PICTURES, lambda done: progress.advance(task, done)
            )
        report.write(out)
    except (ActVARError, OSError) as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from None
    console = Console()
    console.print(report.table())
    console.print(f"Written to {out}. Generated with seed {seed}, against {REFERENCE_PICTURES:,} training pictures.")


if __name__ == "__main__":
    typer.run(main)
