"""What all cells of a study share: the teacher, encoded pictures, the judge and the real pictures' statistics.

Pictures are encoded, and real ones judged, once per machine; they are kept in the study's working folder.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actvar.checkpoint.model import load_model
from actvar.data.encoding import EncodeSettings, build_token_store
from actvar.data.glyphs import HELD_OUT_SEED, TRAIN_SEED, GlyphPictures
from actvar.data.tokens import TokenStore
from actvar.evaluation.classifier import SHIPPED_CLASSIFIER, GlyphClassifier, load_classifier
from actvar.evaluation.draws import real_pictures
from actvar.evaluation.frechet import FeatureStatistics
from actvar.evaluation.glyph_report import judge
from actvar.evaluation.npz_file import opened_npz
from actvar.files import hash_file, written_whole
from actvar.models.actvar import ActVAR
from actvar.study.budget import Budget

_BATCH = 100  # real pictures judged at once


@dataclass(frozen=True)
class Inputs:
    """Everything that a cell reads and none changes."""

    teacher: ActVAR
    store: TokenStore
    held_out: TokenStore
    classifier: GlyphClassifier
    reference: FeatureStatistics


def load_teacher(checkpoint: Path, vqvae: Path | None) -> tuple[ActVAR, str]:
    """The dense model that all cells start from, and the SHA-256 of its weights.

    Not of its files: a VQVAE comes in the file of another model, which may change while the VQVAE does not.

    Raises:
        CheckpointError: a file cannot be used.
    """
    teacher, digest = load_model(checkpoint, vqvae), hashlib.sha256()
    for name, weight in sorted(teacher.state_dict().items()):
        digest.update(name.encode() + weight.contiguous().numpy().tobytes())
    return teacher, digest.hexdigest()


def prepare(teacher: ActVAR, budget: Budget, folder: Path, device: str = "cpu") -> Inputs:
    """Encode and judge what is not yet in the folder.

    Args:
        teacher: see `load_teacher`.
        budget: how many pictures.
        folder: keeps what is made.
        device: where to work; the teacher is moved there.

    Raises:
        DataError: the folder holds tokens of another VQVAE or of another number of pictures.
    """
    teacher = teacher.to(device)

    def tokens(name: str, seed: int, count: int) -> TokenStore:
        return build_token_store(
            folder / name, teacher.vqvae, GlyphPictures(count, seed), EncodeSettings(device=device)
        )

    classifier = load_classifier()
    return Inputs(
        teacher,
        tokens("tokens", TRAIN_SEED, budget.train_pictures),
        tokens("held-out-tokens", HELD_OUT_SEED, budget.held_out_pictures),
        classifier,
        real_reference(classifier, budget.reference_pictures, folder),
    )


def real_reference(classifier: GlyphClassifier, count: int, folder: Path) -> FeatureStatistics:
    """Statistics of real training pictures in the judge's features."""
    file = folder / f"reference-{count}-{hash_file(SHIPPED_CLASSIFIER).sha256[:12]}.npz"
    if not file.exists():
        _, features_NF = judge(classifier, real_pictures(TRAIN_SEED), count, _BATCH)
        found = FeatureStatistics.of(features_NF)
        with written_whole(file) as stream:
            np.savez(stream, mean=found.mean, covariance=found.covariance)
    with opened_npz(file, "the reference's statistics", "Remove it: it is made anew.") as stored:
        mean_F, covariance_FF = stored.read("mean"), stored.read("covariance")
        if covariance_FF.dtype != np.float64 or covariance_FF.shape != 2 * mean_F.shape or not mean_F.size:
            raise ValueError("they are no mean and covariance")
    return FeatureStatistics(mean_F, covariance_FF, count)
