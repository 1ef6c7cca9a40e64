"""`actvar-trt train decoder`: a small decoder learned from a model's own, as arguments and no more."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from actvar.cli.model_choice import Facts, chosen_checkpoint
from actvar.cli.options import (
    CheckpointOption,
    PatchNumsOption,
    TorchDeviceOption,
    VqvaeOption,
    batch_size_option,
    out_option,
    output_option,
    precision_option,
    seed_option,
    training_option,
)
from actvar.config import SmallDecoderConfig
from actvar.errors import UsageError, needs
from actvar.provenance import pasteable

EXAMPLES = """Examples:

actvar-trt train decoder --model var_d16.pth --vqvae vae_ch160v4096z32.pth --tokens-dir tokens/train --out
runs/d16/decoder --device cuda

actvar-trt train decoder --model actvar-mini --tokens-dir tokens --out runs/decoder --width 32 --depth 1 --steps 800"""


def decoder(
    *,
    model: CheckpointOption = "actvar-mini",
    vqvae: VqvaeOption = None,
    patch_nums: PatchNumsOption = None,
    facts: Facts,
    tokens_dir: Annotated[
        Path, training_option(metavar="FOLDER", show_default=False, help="What `encode` made of the training pictures.")
    ],
    width: Annotated[int, training_option(help="Channels of all its maps.")] = 64,
    depth: Annotated[int, training_option(help="Blocks, of three convolutions, at each side below the picture's.")] = 3,
    perceptual: Annotated[
        float, training_option(min=0, help="Weight of the distance in the VQVAE's encoder, beside the pixels'.")
    ] = 0.1,
    steps: Annotated[int, training_option(min=1, help="Updates.")] = 20_000,
    batch_size: Annotated[int, batch_size_option("Pictures an update.", "Training")] = 16,
    accumulate: Annotated[int, training_option(min=1, help="Take a batch in so many parts.")] = 1,
    learning_rate: Annotated[
        float, training_option("--lr", min=0, help="Learning rate at its peak; then half a cosine down to 2 % of it.")
    ] = 2e-3,
    warmup: Annotated[int, training_option(min=0, help="Updates until the peak.")] = 100,
    seed: Annotated[int, seed_option("Decides first weights and data order.", "Training", max=2**31 - 1)] = 0,
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        precision_option("auto takes bfloat16, under autocast, where the device has it."),
    ] = "auto",
    device: TorchDeviceOption = "cpu",
    out: Annotated[
        Path, out_option("Folder of the run: its state, its curves, actvar.safetensors.", show_default=False)
    ],
    tensorboard: Annotated[bool, output_option(help="Write the curves for TensorBoard, too.")] = False,
    save_every: Annotated[int, output_option(min=1, help="Updates between states, which a kill may cost.")] = 200,
) -> None:
    """Learn a small decoder from a model's own: the same pictures by a tenth of the work.

    The same command goes on where it was stopped. The checkpoint at the end is the model with both decoders.
    """
    with needs("train", "to train"):
        from actvar.checkpoint.model import load_checkpoint
        from actvar.data.encoding import require_device
        from actvar.distill.decoder import DecoderSettings, train_decoder
        from actvar.distill.files import CHECKPOINT, open_tokens, write_decoder
        from actvar.training.curves import require_tensorboard
    require_device(device)
    if tensorboard:
        require_tensorboard()
    try:
        small = SmallDecoderConfig(width, depth)
    except ValueError as error:
        raise UsageError(f"{error}.") from None
    _, checkpoint = chosen_checkpoint(model, vqvae, patch_nums, facts)
    network = load_checkpoint(checkpoint)
    store = open_tokens(tokens_dir, network, batch_size)
    settings = DecoderSettings(
        folder=out,
        steps=steps,
        batch=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        device=device,
        precision=precision,
        warmup=warmup,
        save_every=save_every,
        tensorboard=tensorboard,
        accumulate=accumulate,
        perceptual=perceptual,
    )
    trained = train_decoder(network.vqvae, network.config.vqvae, small, settings, store)
    write_decoder(out, network, small, trained)
    file = out / CHECKPOINT
    typer.echo(f"Wrote {file}. Next: {pasteable('export', '--decoder', 'small', '--model', file)}")
