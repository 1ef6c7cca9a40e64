"""`actvar-trt train vqvae` and `train var`: from a folder of pictures to a VQVAE, and from its tokens to a VAR.

Without a folder, and without tokens, they are the first parts of `train mini`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from actvar.cli.model_choice import chosen_schedule
from actvar.cli.options import (
    MAX_DEPTH,
    Preset,
    TorchDeviceOption,
    ZnormOption,
    batch_size_option,
    data_option,
    model_option,
    out_option,
    patch_nums_option,
    training_option,
    vqvae_option,
)
from actvar.cli.train import CountOption, SeedOption, VqvaeStepsOption, mini_recipe
from actvar.cli.training_run import LearningRateOption, Run
from actvar.config import PRESETS
from actvar.errors import UsageError, needs
from actvar.provenance import pasteable

if TYPE_CHECKING:
    from actvar.training.var import VARSettings

VQVAE_EXAMPLES = """Examples:

actvar-trt train vqvae --data mine --steps 20000 --device cuda --out runs/mine/vqvae

actvar-trt train vqvae --out runs/mini"""
VAR_EXAMPLES = """Examples:

actvar-trt train var --tokens-dir tokens/train --vqvae vae_ch160v4096z32.pth --device cuda --out runs/mine/var

actvar-trt train var --out runs/mini --count 48000 --steps 3200"""

_GLYPHS = "glyphs"
_MINI_RUN = Path("runs/mini")
_MINI_STEPS = 1600
_EPOCHS = 200.0  # official VAR's own, as are the others below
_RATE_OF_256 = 1e-4
_WARM_UP = 1 / 50  # of all steps
_DEPTH_DROP = 0.1 / 24  # for each block


def vqvae(
    *,
    preset: Annotated[
        Preset, model_option("--preset", help="The VQVAE of a model of this size: mini's, or official VAR's.")
    ] = "mini",
    patch_nums: Annotated[str | None, patch_nums_option("Sides of the token maps.", "the preset's")] = None,
    data: Annotated[
        str, data_option(metavar="FOLDER|glyphs", help="Folder with train/CLASS/*.jpg, or the word glyphs.")
    ] = _GLYPHS,
    steps: Annotated[int, training_option(min=1, help="Updates.")] = 1400,
    batch_size: Annotated[int, batch_size_option("Pictures an update.", "Training")] = 16,
    learning_rate: LearningRateOption = 1.2e-3,
    seed: SeedOption = 0,
    device: TorchDeviceOption = "cpu",
    out: Annotated[Path, out_option("Folder of the run: its state, its curves, vqvae.safetensors.")] = _MINI_RUN,
) -> None:
    """Train a VQVAE on a folder of pictures, or that of the mini models on Glyphs-100.

    Pictures are resized and cropped at random, as for official VAR. The losses are plain distances: for photographs
    official VAR's own VQVAE, which has learned from others too, is sharper.
    """
    if data == _GLYPHS:
        given = {"--preset": preset != "mini", "--patch-nums": bool(patch_nums), "--batch-size": batch_size != 16}
        given |= {"--lr": learning_rate != 1.2e-3}
        _refuse("is for a folder of pictures, and Glyphs-100 have their own", given)
        mini_recipe(device)(out, device, seed, vqvae_steps=steps).vqvae()
        same = ["--vqvae-steps", steps, "--seed", seed, "--device", device]  # or it would not be the same VQVAE
        typer.echo(f"The VQVAE is in {out / 'vqvae'}. Next: {pasteable('train', 'mini', '--out', out, *same)}")
        return
    with needs("train", "to train"):
        from actvar.checkpoint.own import save_vqvae
        from actvar.data.encoding import require_device
        from actvar.data.imagenet import list_pictures
        from actvar.data.shuffled import ShuffledPictures
        from actvar.training.vqvae import VQVAESettings, train_vqvae
    require_device(device)
    listed, like = list_pictures(Path(data), "train"), PRESETS[preset]
    like = replace(like, schedule=chosen_schedule(patch_nums)) if patch_nums else like
    config = replace(like, num_classes=listed.num_classes, class_names=listed.printed_names)
    settings = VQVAESettings(
        folder=out,
        steps=steps,
        batch=batch_size,
        learning_rate=learning_rate,
        warmup=min(50, steps // 4),
        seed=seed,
        device=device,
    )
    pictures = ShuffledPictures(listed, config.picture_size, seed)
    trained = train_vqvae(config, settings, pictures, {"data": pictures.identity, "preset": preset})
    path = out / "vqvae.safetensors"
    save_vqvae(trained, config, path)
    following = pasteable("encode", "--data", data, "--vqvae", path, "--out", "tokens/train")
    typer.echo(f"Wrote {path}. Next: {following}")


@dataclass(frozen=True, kw_only=True)
class VARRun(Run):
    """The run of a VAR on stored tokens, by official VAR's recipe; `tokens_dir` is None for VAR-mini's own."""

    tokens_dir: Annotated[
        Path | None,
        training_option(
            metavar="FOLDER", show_default="those of VAR-mini", help="What `encode` made of the training pictures."
        ),
    ] = None
    out: Annotated[Path, out_option("Folder of the run: its state, its curves, var.safetensors.")] = _MINI_RUN
    epochs: Annotated[float | None, training_option(show_default="200", help="Times all stored pictures.")] = None
    batch_size: Annotated[int, batch_size_option("Pictures an update, over all processes.", "Training")] = 768
    learning_rate: Annotated[
        float | None,
        training_option(
            "--lr",
            min=0,
            show_default="1e-4 for each 256 of a batch",
            help="Learning rate at its peak; it stays there for a twentieth of the run, then falls to a tenth.",
        ),
    ] = None
    warmup: Annotated[
        int | None, training_option(min=0, show_default="a fiftieth of all", help="Updates until the peak.")
    ] = None

    def settings(self, pictures: int, depth: int) -> "VARSettings":
        """The run's settings, for a store of so many pictures and a VAR of so many blocks."""
        from actvar.training.var import VARSettings

        rate, warmup, steps = self.learning_rate, self.warmup, self.steps_of(_EPOCHS, pictures)
        return VARSettings(
            folder=self.out,
            steps=steps,
            batch=self.batch_size,
            learning_rate=_RATE_OF_256 * self.batch_size / 256 if rate is None else rate,
            seed=self.seed,
            device=self.device,
            precision=self.precision,
            warmup=round(_WARM_UP * steps) if warmup is None else warmup,
            save_every=self.save_every,
            tensorboard=self.tensorboard,
            accumulate=self.accumulate,
            average=self.average,
            recipe="official",
            depth_drop=_DEPTH_DROP * depth,
        )


def var(
    *,
    vqvae: Annotated[Path | None, vqvae_option("The VQVAE that made the tokens.")] = None,
    znorm: ZnormOption = False,
    depth: Annotated[
        int | None, model_option(min=1, max=MAX_DEPTH, show_default="16", help="Of the VAR, which is 64 times as wide.")
    ] = None,
    vqvae_steps: VqvaeStepsOption = 1400,
    count: CountOption = 24_000,
    run: VARRun,
) -> None:
    """Train a VAR on the tokens of pictures by official VAR's recipe, or VAR-mini on those of Glyphs-100.

    The recipe: AdamW, weight decay 0.05, gradients clipped at 2, stochastic depth, a tenth of the pictures shown
    without their class.
    """
    if run.tokens_dir is None:
        of_tokens = {"--vqvae": vqvae, "--znorm": znorm, "--depth": depth, **_changed(run)}
        _refuse("is for tokens of your own, and there is no --tokens-dir", of_tokens)
        recipe = mini_recipe(run.device)(run.out, run.device, run.seed, vqvae_steps, count, run.steps or _MINI_STEPS)
        of_codes = recipe.vqvae()
        dense = recipe.var(of_codes, recipe.tokens(of_codes))
        typer.echo(f"Wrote {recipe.save(dense, of_codes, 'var_mini.safetensors')}")
        return
    of_glyphs = {"--vqvae-steps": vqvae_steps != 1400, "--count": count != 24_000}
    _refuse("is of Glyphs-100, and --tokens-dir names other pictures", of_glyphs)
    if vqvae is None:
        raise UsageError("--tokens-dir holds codes of a VQVAE, and there is none. Name its file with --vqvae.")
    run.check()
    with needs("train", "to train"):
        from actvar.training.launch import team_of
        from actvar.training.own_data import open_own_tokens, write_var
        from actvar.training.var import train_var
    with team_of(run.parallel, run.device) as team:
        tokens = open_own_tokens(run.tokens_dir, vqvae, znorm, depth or 16)
        settings = run.settings(len(tokens.store), tokens.config.depth)
        trained = train_var(tokens.config, settings, tokens.store, tokens.vqvae.quantize, team)
        if team.is_main:
            path = write_var(run.out, trained, tokens.vqvae)
            typer.echo(f"Wrote {path}. Next: {pasteable('export', '--model', path, '--out', 'bundles/mine')}")
        team.wait()


def _changed(run: VARRun) -> dict[str, object]:
    """The options of a run that VAR-mini's has not, where they were given."""
    own = [field for field in fields(run) if field.name not in ("tokens_dir", "out", "steps", "seed", "device")]
    names = {"learning_rate": "lr"}
    return {
        f"--{names.get(field.name, field.name).replace('_', '-')}": getattr(run, field.name) != field.default
        for field in own
    }


def _refuse(why: str, options: Mapping[str, object]) -> None:
    """Refuse what belongs to the other use of a command.

    Raises:
        UsageError: there is such an option.
    """
    for name, given in options.items():
        if given:
            raise UsageError(f"{name} {why}. Leave it out.")
