"""torch-fidelity, imported; and what of it is used here.

It imports torchvision, which names two of its compiled operators when it is imported itself, and fails where those do
not load: as where its build from PyPI, for CUDA, stands beside a CPU build of PyTorch. Nothing here calls them, so they
are declared, and torchvision then does without. Where both come from one index, nothing is declared.
"""

import torch

_OPERATORS = ("nms", "qnms")


def _require_torchvision() -> None:
    """Import torchvision, its compiled operators or no.

    Raises:
        RuntimeError: it fails for another reason.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for name in _OPERATORS:
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
        import torchvision  # noqa: F401


_require_torchvision()

# After torchvision, whatever the order of the alphabet.
from torch_fidelity import FeatureExtractorBase, register_feature_extractor  # noqa: E402
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3  # noqa: E402
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric  # noqa: E402
from torch_fidelity.metric_isc import isc_features_to_metric  # noqa: E402
from torch_fidelity.metric_prc import prc_features_to_metric  # noqa: E402
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY  # noqa: E402
from torch_fidelity.utils import create_feature_extractor  # noqa: E402

__all__ = [
    "FEATURE_EXTRACTORS_REGISTRY",
    "URL_INCEPTION_V3",
    "FeatureExtractorBase",
    "create_feature_extractor",
    "fid_features_to_statistics",
    "fid_statistics_to_metric",
    "isc_features_to_metric",
    "prc_features_to_metric",
    "register_feature_extractor",
]
