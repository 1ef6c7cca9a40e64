"""Records the router of the mini model while it draws: scores for `actvar-trt bench kernels --routing`, on a CPU.

    python benchmarks/kernel_routing.py --out routing.npy

Draws pictures of all classes with PyTorch, keeps what every block's router says at the last scale, and prints how much
of the dense FFN's work the kernels' tiles are left with (benchmarks/kernels/tile_density.py), beside random
routing. The file holds the block whose tiles are densest, the hardest for the kernels: [tokens, 16] fp32.
"""

import argparse
from pathlib import Path

import numpy as np

from actvar.benchmarks.command import end_with

SLICES = (1, 2, 4)


def record(pictures: int, at_once: int = 16) -> np.ndarray:
    """Scores of every block's router at the last scale, in the order in which the FFN sees the tokens.

    Returns: [blocks, tokens, experts] fp32; a picture has two rows of tokens, with its class and without.
    """
    from actvar.checkpoint.files import shipped_checkpoint
    from actvar.checkpoint.model import load_model
    from actvar.config import Sampling
    from actvar.generation import generate

    checkpoint = shipped_checkpoint("actvar-mini")
    model = load_model(checkpoint.path, checkpoint.vqvae)
    said: list[list[np.ndarray]] = [[] for _ in model.var.blocks]
    for scores, block in zip(said, model.var.blocks, strict=True):
        assert block.ffn.router is not None  # of an ActVAR
        block.ffn.router.register_forward_hook(lambda router, given, result, to=scores: to.append(result.numpy()))
    batches: list[list[np.ndarray]] = [[] for _ in said]
    for first in range(0, pictures, at_once):
        numbers = range(first, min(first + at_once, pictures))
        generate(model, [number % model.config.num_classes for number in numbers], Sampling(), 0, list(numbers))
        for scores, of_block in zip(said, batches, strict=True):
            of_block.append(scores[-1].reshape(-1, scores[-1].shape[-1]))  # the last call is the last scale's
            scores.clear()
    return np.stack([np.concatenate(of_block) for of_block in batches])


def densities(scores: np.ndarray, active: int) -> list[float]:
    """The part of all pairs of tile and expert that is computed: as tokens come, then by order and slices."""
    import torch

    from actvar.benchmarks.kernels.tile_density import density
    from actvar.models.selection import top_mask

    masks = top_mask(torch.from_numpy(scores), active).numpy()
    return [density(masks, 1, False), *(density(masks, slices, True) for slices in SLICES)]


def main() -> None:
    """Record, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=64, help="each has 384 tokens at the last scale")
    given = parser.parse_args()
    if given.pictures < 1:
        parser.error("--pictures must be at least 1")
    scores = record(given.pictures)
    tokens, experts = scores.shape[1:]
    named = {f"block {i + 1}": of_block for i, of_block in enumerate(scores)}
    named["random"] = np.random.default_rng(0).standard_normal((tokens, experts))
    print(f"tokens: {tokens}\nactive  masks     as they come  " + "  ".join(f"{n} slices" for n in SLICES))
    for active in (12, 8, 4):
        for name, of_block in named.items():
            first, *rest = densities(of_block, active)
            print(f"{active:6}  {name:8}  {first:12.2f}  " + "  ".join(f"{value:8.2f}" for value in rest))
    hardest = max(scores, key=lambda of_block: min(densities(of_block, 12)))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with given.out.open("wb") as file:  # a file, as np.save would add a suffix to a name
        np.save(file, hardest.astype(np.float32))


if __name__ == "__main__":
    end_with(main)
