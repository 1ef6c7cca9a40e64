"""The judge of Glyphs-100: a small CNN that names the class of a picture and describes it by 128 features.

Knows its own layers and its file; not the generators it judges, and not how it is trained (`train_classifier`).

Letters in shapes: N pictures, 3 H W their pixels, F features, K classes.
"""

from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from actvar.class_names import CLASS_NAMES
from actvar.errors import CheckpointError
from actvar.files import written_whole

SHIPPED_CLASSIFIER = Path(__file__).parents[1] / "assets" / "glyph_classifier.safetensors"


class GlyphClassifier(nn.Module):
    """Five convolutions, four of them of stride 2, a mean over the picture, and one linear layer.

    Shapes: pictures_N3HW in [-1, 1] -> logits_NK.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_layer(3, 32, stride=2, kernel=5),
            *_layer(32, 64, stride=2),
            *_layer(64, 128, stride=2),
            *_layer(128, 128, stride=1),
            *_layer(128, 128, stride=2),
        )
        self.head = nn.Linear(128, len(CLASS_NAMES))

    def features(self, pictures_N3HW: Tensor) -> Tensor:
        """What the last layer decides from: features_NF, not negative."""
        return self.layers(pictures_N3HW).mean((2, 3))

    def forward(self, pictures_N3HW: Tensor) -> Tensor:
        return self.head(self.features(pictures_N3HW))


def _layer(wide_in: int, wide_out: int, stride: int, kernel: int = 3) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(wide_in, wide_out, kernel, stride, padding=kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(wide_out), nn.ReLU()


def save_classifier(classifier: GlyphClassifier, file: Path) -> None:
    """Writes the weights in fp16, under a temporary name first, so that the file is whole or absent."""
    weights = classifier.state_dict()
    state = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as stream:
        stream.write(save(state))  # safetensors' own save_file makes files that only their owner may read


def load_classifier(file: Path = SHIPPED_CLASSIFIER) -> GlyphClassifier:
    """Reads what `save_classifier` wrote; returns the classifier in fp32 and evaluation mode.

    Raises:
        CheckpointError: the file is missing, is not safetensors, or holds other tensors than the classifier's.
    """
    try:
        state = load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{file} cannot be read as a classifier ({error}). "
            "Make it by python -m actvar.evaluation.train_classifier --out FILE."
        ) from error
    classifier = GlyphClassifier()
    expected = {name: tuple(value.shape) for name, value in classifier.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    wrong = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    if wrong:
        raise CheckpointError(
            f"{file} is not a Glyphs-100 classifier: {wrong[0]} is {found.get(wrong[0], 'missing')}, "
            f"expected {expected.get(wrong[0], 'no such tensor')}. "
            "Make it by python -m actvar.evaluation.train_classifier --out FILE."
        )
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise CheckpointError(f"{file} holds numbers that are not finite. Train it again.")
    classifier.load_state_dict(state)
    return classifier.eval()
