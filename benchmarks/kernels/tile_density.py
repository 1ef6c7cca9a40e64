"""How much of the dense FFN's work is left to tiles of tokens that skip the experts none of their tokens uses.

Simulates the order and the tiles of expert_route.cu and routed_product.cuh for random routing, where every expert is
as likely as any other: the hardest case, as a trained router repeats itself.

    python benchmarks/kernels/tile_density.py
"""

import argparse

import numpy as np
import torch

from actvar.benchmarks.command import end_with
from actvar.models.selection import top_mask

EXPERTS, TILE_ROWS, SORTED_EXPERTS = 16, 128, 8


def random_masks(tokens: int, active: int, seed: int = 0) -> np.ndarray:
    """Which experts each token uses: [tokens, EXPERTS] bool."""
    drawn = np.random.default_rng(seed).standard_normal((tokens, EXPERTS))
    return top_mask(torch.from_numpy(-drawn), active).numpy()  # the lowest, as plugins/kernels/NOTES.md has its figures


def sort_keys(used: np.ndarray) -> np.ndarray:
    """The place of each token's bits in the Gray code: [tokens, experts] -> [tokens]."""
    keys = used @ (1 << np.arange(used.shape[1]))
    for shift in (1, 2, 4):
        keys ^= keys >> shift
    return keys


def density(masks: np.ndarray, slices: int, ordered: bool) -> float:
    """The part of all pairs of tile and expert that is computed."""
    tokens, size = len(masks), EXPERTS // slices
    tiles = np.arange(tokens) // TILE_ROWS
    computed = 0
    for first in range(0, EXPERTS, size):
        of_slice = masks[:, first : first + size]
        if ordered:
            of_slice = of_slice[np.argsort(sort_keys(of_slice[:, :SORTED_EXPERTS]), kind="stable")]
        computed += sum(of_slice[tiles == tile].any(axis=0).sum() for tile in range(tiles[-1] + 1))
    return computed / ((tiles[-1] + 1) * EXPERTS)


def main() -> None:
    """Print a table: one row per number of tokens and of active experts."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("tokens  active  as they come  1 slice  2 slices  4 slices")
    for active in (12, 8, 4):
        for tokens in (384, 4096, 24576):
            masks = random_masks(tokens, active)
            values = [density(masks, 1, False), *(density(masks, slices, True) for slices in (1, 2, 4))]
            print(f"{tokens:6}  {active:6}  {values[0]:12.2f}  " + "  ".join(f"{value:7.2f}" for value in values[1:]))


if __name__ == "__main__":
    end_with(main)
