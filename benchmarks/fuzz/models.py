"""The model that samples are of: five classes, pictures of ten pixels, random weights."""

from dataclasses import dataclass
from functools import cache

import torch

from actvar.config import ModelConfig, VQVAEConfig
from actvar.data.pictures import PictureBatch, SkippedPicture
from actvar.models.actvar import ActVAR, random_model
from actvar.scales import ScaleSchedule

SIDE = 10


@cache
def teacher() -> ActVAR:
    """The same in every process."""
    vqvae = VQVAEConfig(vocab_size=48, z_channels=6, ch=16, ch_mult=(1, 2), num_res_blocks=1, norm_groups=8)
    return random_model(ModelConfig(1, ScaleSchedule((1, 2, 3, 5)), 5, vqvae=vqvae))


@dataclass(frozen=True)
class Noise:
    """A data set of noise; see `actvar.data.pictures.PictureSource`."""

    count: int
    bad: tuple[int, ...] = ()

    @property
    def identity(self) -> dict[str, object]:
        """What decides the pixels."""
        return {"name": "noise", "pictures": self.count, "classes": 5}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Five, none a number."""
        return ("one", "two", "three", "four", "five")

    def __len__(self) -> int:
        """N."""
        return self.count

    def load(self, numbers: range) -> PictureBatch:
        """The pictures of these numbers."""
        generators = [torch.Generator().manual_seed(number) for number in numbers]
        pictures_N3HW = torch.stack([torch.rand(3, SIDE, SIDE, generator=each) * 2 - 1 for each in generators])
        skipped = tuple(SkippedPicture(number, f"{number}.png", "torn") for number in numbers if number in self.bad)
        return PictureBatch(pictures_N3HW, torch.tensor([number % 5 for number in numbers]), skipped)
