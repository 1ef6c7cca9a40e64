"""Who judges pictures: a feature extractor of torch-fidelity, and which of its layers mean what.

Inception is the judge of FID and of all published figures; the classifier of Glyphs-100 sees what Inception, trained on
photographs, does not.

Letters in shapes: N pictures, F features, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from actvar.evaluation import glyph_extractor
from actvar.evaluation.classifier import SHIPPED_CLASSIFIER
from actvar.evaluation.fidelity import URL_INCEPTION_V3, create_feature_extractor
from actvar.evaluation.inception_file import SHA256, inception_file
from actvar.evaluation.picture_sets import PictureSet
from actvar.evaluation.protocol import Extractor
from actvar.files import hash_file

AT_ONCE = 50

Advance = Callable[[int], None]
"""Told how many more pictures are done."""


@dataclass(frozen=True)
class Seen:
    """What a judge saw in a set of pictures, on the CPU: features_NF and logits_NK, in the order of the pictures."""

    features_NF: Tensor
    logits_NK: Tensor

    def __len__(self) -> int:
        return len(self.features_NF)


@dataclass(frozen=True)
class Judge:
    """An extractor that gives features and logits, in this order.

    Attributes:
        name: under which torch-fidelity knows it.
        features: F.
        knows_classes: whether its classes are those of the pictures.
        weights: SHA-256 of the file that holds them.
        resizing: what it does to pictures before it looks.
    """

    name: str
    extractor: nn.Module
    features: int
    knows_classes: bool
    weights: str
    resizing: str

    @property
    def described(self) -> Extractor:
        """As a report names it."""
        return Extractor(self.name, self.weights, self.resizing)

    @torch.no_grad()
    def look(self, pictures: PictureSet, advance: Advance = lambda _: None) -> Seen:
        """Show it all pictures of a set, a batch at a time.

        Raises:
            ActVARError: a picture cannot be read.
        """
        device = next(self.extractor.parameters()).device
        features, logits = [], []
        for batch_NHW3 in pictures.batches(AT_ONCE):
            pictures_N3HW = torch.from_numpy(np.ascontiguousarray(batch_NHW3.transpose(0, 3, 1, 2)))
            features_NF, logits_NK = self.extractor(pictures_N3HW.to(device))
            features.append(features_NF.cpu())
            logits.append(logits_NK.cpu())
            advance(len(batch_NHW3))
        return Seen(torch.cat(features), torch.cat(logits))


def glyph_judge() -> Judge:
    """The classifier of Glyphs-100.

    Raises:
        CheckpointError: its file cannot be used.
    """
    glyph_extractor.register_glyph_extractor()
    layers = [glyph_extractor.FEATURES, glyph_extractor.LOGITS]
    weights = hash_file(SHIPPED_CLASSIFIER).sha256
    return Judge(glyph_extractor.NAME, _extractor(glyph_extractor.NAME, layers), 128, True, weights, "not at all")


def inception_judge(file: Path | None) -> Judge:
    """Inception v3 as FID has it; IS is taken without the last layer's bias, as by the ADM suite.

    Args:
        file: its weights; None takes torch.hub's copy, and fetches it if need be.

    Raises:
        ActVARError: the weights are missing, or others.
    """
    path = inception_file(file, URL_INCEPTION_V3)
    name = "inception-v3-compat"
    resizing = "to 299×299, bilinear, as TensorFlow 1 does"
    return Judge(name, _extractor(name, ["2048", "logits_unbiased"], path), 2048, False, SHA256, resizing)


def _extractor(name: str, layers: list[str], weights: Path | None = None) -> nn.Module:
    cuda, path = torch.cuda.is_available(), str(weights) if weights else None
    return create_feature_extractor(name, layers, cuda=cuda, feature_extractor_weights_path=path, verbose=False)
