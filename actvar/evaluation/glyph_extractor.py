"""The classifier of Glyphs-100 as a feature extractor of torch-fidelity, under the name "glyphs".

Letters in shapes: N pictures, 3 H W their pixels, F features, K classes.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actvar.evaluation.classifier import SHIPPED_CLASSIFIER, load_classifier
from actvar.evaluation.fidelity import FEATURE_EXTRACTORS_REGISTRY, FeatureExtractorBase, register_feature_extractor

NAME = "glyphs"
FEATURES, LOGITS = "features", "logits"


class GlyphExtractor(FeatureExtractorBase):
    """Shapes: uint8 pictures_N3HW -> a tuple of what was asked for, features_NF and logits_NK.

    Raises:
        CheckpointError: the classifier's file cannot be used.
    """

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None, **_: Any
    ) -> None:
        super().__init__(name, features_list)
        self.classifier = load_classifier(Path(feature_extractor_weights_path or SHIPPED_CLASSIFIER))

    def forward(self, pictures_N3HW: Tensor) -> tuple[Tensor, ...]:
        features_NF = self.classifier.features(pictures_N3HW.to(torch.float32) / 127.5 - 1)
        made = {FEATURES: features_NF, LOGITS: self.classifier.head(features_NF)}
        return tuple(made[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return FEATURES, LOGITS

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return LOGITS if metric == "isc" else FEATURES

    @staticmethod
    def can_be_compiled() -> bool:
        return False


def register_glyph_extractor() -> None:
    """Make torch-fidelity know the extractor; once is enough."""
    if NAME not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(NAME, GlyphExtractor)
