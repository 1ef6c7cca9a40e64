"""Training of the judge: `python -m actvar.evaluation.train_classifier --out FILE.safetensors`.

Knows pictures of the classifier's own stream (CLASSIFIER_SEED) and nothing of any generator. Each picture is seen once.

Letters in shapes: N pictures, 3 H W their pixels, h w a coarser grid, K classes.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from torch import Tensor

from actvar.data.glyphs import CLASSIFIER_SEED, HELD_OUT_SEED, glyph_batch
from actvar.errors import ActVARError
from actvar.evaluation.classifier import SHIPPED_CLASSIFIER, GlyphClassifier, load_classifier, save_classifier
from actvar.training.loop import RunSettings, autocast, run, step_generator


def train_classifier(settings: RunSettings) -> GlyphClassifier:
    """Train from random weights, or resume; returns the classifier on the CPU in evaluation mode."""
    torch.manual_seed(settings.seed)  # the initial weights
    classifier = GlyphClassifier().to(settings.device)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=settings.learning_rate, weight_decay=0.01)

    def step(number: int, learning_rate: float) -> dict[str, Tensor]:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        first = number * settings.batch
        pictures_N3HW, class_ids_N = glyph_batch(np.arange(first, first + settings.batch), CLASSIFIER_SEED)
        pictures_N3HW = spoilt(pictures_N3HW, step_generator(settings, number)).to(settings.device)
        class_ids_N = class_ids_N.to(settings.device)
        with autocast(settings.device, settings.precision):
            logits_NK = classifier(pictures_N3HW.contiguous(memory_format=torch.channels_last)).float()
        loss = F.cross_entropy(logits_NK, class_ids_N)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach(), "accuracy": (logits_NK.argmax(1) == class_ids_N).float().mean()}

    run("Classifier", step, {"classifier": classifier, "optimizer": optimizer}, settings)
    return classifier.to("cpu").eval()


def spoilt(pictures_N3HW: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture blurred and stained by an amount of its own, from nothing up to what a weak VQVAE does.

    Blur: halved and doubled again, a deviation of about one pixel. Stains: noise on a grid of 4 pixels, deviation up
    to 0.10. The amounts are squares of uniforms, so that half of the pictures stay nearly as they were drawn.
    """
    pictures, channels, height, width = pictures_N3HW.shape
    amounts_2N111 = torch.rand(2, pictures, 1, 1, 1, generator=generator).square()
    soft_N3HW = F.interpolate(F.avg_pool2d(pictures_N3HW, 2), scale_factor=2, mode="bilinear")
    patches_N3hw = torch.randn(pictures, channels, height // 4, width // 4, generator=generator)
    stains_N3HW = F.interpolate(patches_N3hw, scale_factor=4, mode="bilinear")
    return pictures_N3HW + amounts_2N111[0] * (soft_N3HW - pictures_N3HW) + 0.10 * amounts_2N111[1] * stains_N3HW


@torch.no_grad()
def held_out_accuracy(classifier: GlyphClassifier, pictures: int = 5000, batch: int = 500) -> float:
    """Share of the first `pictures` of the held-out stream that the classifier names rightly."""
    right = 0
    for first in range(0, pictures, batch):
        pictures_N3HW, class_ids_N = glyph_batch(np.arange(first, min(first + batch, pictures)), HELD_OUT_SEED)
        right += int((classifier(pictures_N3HW).argmax(1) == class_ids_N).sum())
    return right / pictures


def main(
    out: Annotated[Path, typer.Option(help="Where to write the classifier, in safetensors.")] = SHIPPED_CLASSIFIER,
    folder: Annotated[Path, typer.Option(help="Where the run keeps its state and its log.")] = Path("runs/classifier"),
    steps: Annotated[int, typer.Option(min=1, help="Updates.")] = 800,
    batch: Annotated[int, typer.Option(min=2, help="Pictures an update.")] = 128,
    learning_rate: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 3e-3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Train the judge of Glyphs-100 and say how it does on held-out pictures. A killed run goes on where it was."""
    settings = RunSettings(folder, steps, batch, learning_rate, device=device)
    try:
        save_classifier(train_classifier(settings), out)
    except (ActVARError, OSError) as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from None
    Console().print(f"{out}: {held_out_accuracy(load_classifier(out)):.2%} of 5,000 held-out pictures named rightly")


if __name__ == "__main__":
    typer.run(main)
