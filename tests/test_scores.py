"""Scores by torch-fidelity, against formulas, naive loops, and torch-fidelity's own way through the same pictures.

Letters in shapes: N pictures, H W pixels down and across, F features, K classes.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from actvar.data.glyphs import TRAIN_SEED, glyph_batch
from actvar.errors import ActVARError
from actvar.evaluation import inception_file, scores
from actvar.evaluation.classifier import load_classifier
from actvar.evaluation.frechet import FeatureStatistics, frechet_distance
from actvar.evaluation.judges import Judge, Seen, glyph_judge, inception_judge
from actvar.evaluation.picture_sets import PictureSet, open_folder, open_npz, write_npz
from actvar.evaluation.reference import GlyphStream, open_reference
from actvar.evaluation.scores import fitted, score
from actvar.evaluation.statistics_file import read_statistics, write_statistics


@pytest.fixture(scope="module")
def judge() -> Judge:
    return glyph_judge()


def random_features(rows: int, features: int, seed: int, centre: float = 0.0) -> Tensor:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, features)) @ rng.normal(size=(features, features)) + centre
    return torch.from_numpy(values.astype(np.float32))


def random_seen(rows: int, seed: int, centre: float = 0.0) -> Seen:
    return Seen(random_features(rows, 8, seed, centre), random_features(rows, 6, seed + 100))


def in_one(pictures: PictureSet) -> np.ndarray:
    return np.concatenate(list(pictures.batches(7)))


# ---- the figures


def test_fid_is_the_frechet_distance_of_our_own():
    """Two implementations that share no code: eigenvalues of a product, and of a symmetric form of it."""
    a_NF, b_NF = random_features(300, 32, seed=1), random_features(500, 32, seed=2, centre=0.5)
    ours = frechet_distance(FeatureStatistics.of(a_NF.numpy()), FeatureStatistics.of(b_NF.numpy()))
    theirs = score(Seen(a_NF, a_NF), fitted(b_NF)).frechet_distance
    assert theirs == pytest.approx(ours, rel=1e-9) and ours > 10


def test_the_inception_score_is_that_of_stretches_in_their_order(monkeypatch: pytest.MonkeyPatch):
    """exp of the mean KL to the stretch's own marginal (Salimans et al. 2016), as the ADM suite cuts it."""
    monkeypatch.setattr(scores, "STRETCH", 40)
    seen = random_seen(120, seed=3)
    expected = []
    for first in range(0, 120, 40):
        rows = np.exp(seen.logits_NK[first : first + 40].double().numpy())
        p_NK = rows / rows.sum(1, keepdims=True)
        expected.append(np.exp(np.mean([np.sum(p_K * np.log(p_K / p_NK.mean(0))) for p_K in p_NK])))
    found = score(seen, fitted(seen.features_NF))
    assert found.inception_score == pytest.approx(np.mean(expected), rel=1e-9)
    assert found.inception_score_spread == pytest.approx(np.std(expected), rel=1e-9)


def share_within(points_NF: np.ndarray, of_NF: np.ndarray) -> float:
    """The share of points that lie within the third neighbour's distance of some point of another set."""
    inside = 0
    for point_F in points_NF:
        for centre_F in of_NF:
            distances = sorted(float(np.linalg.norm(centre_F - other_F)) for other_F in of_NF)  # the first is itself
            if np.linalg.norm(point_F - centre_F) <= distances[3]:
                inside += 1
                break
    return inside / len(points_NF)


def test_precision_and_recall_are_shares_within_the_third_neighbour():
    """Kynkäänniemi et al. 2019, by loops; precision is of the pictures, recall of the reference."""
    seen, other = random_seen(40, seed=4), random_seen(50, seed=5, centre=1.5)
    found = score(seen, fitted(other.features_NF), other)
    ours, theirs = seen.features_NF.double().numpy(), other.features_NF.double().numpy()
    assert found.precision == pytest.approx(share_within(ours, theirs), abs=1e-6)
    assert found.recall == pytest.approx(share_within(theirs, ours), abs=1e-6)
    assert 0 < found.precision < 1 and found.precision != found.recall


def test_without_pictures_there_is_no_precision():
    found = score(random_seen(20, seed=6), fitted(random_features(30, 8, seed=7)))
    assert found.precision is found.recall is found.class_accuracy is None


class AsTheyAre(Dataset):
    """Pictures as torch-fidelity takes them: uint8 [3, H, W] by index."""

    def __init__(self, pictures: PictureSet):
        self.pictures_N3HW = torch.from_numpy(in_one(pictures).transpose(0, 3, 1, 2).copy())

    def __len__(self) -> int:
        return len(self.pictures_N3HW)

    def __getitem__(self, i: int) -> Tensor:
        return self.pictures_N3HW[i]


def test_the_classifier_is_an_extractor_of_torch_fidelity(judge: Judge):
    """By its registered name, through torch-fidelity's own reading, batching and choice of layers: the same figures."""
    from torch_fidelity import calculate_metrics

    pictures, reference = GlyphStream(seed=3, count=60), GlyphStream(TRAIN_SEED, 130)
    theirs = calculate_metrics(
        input1=AsTheyAre(pictures),
        input2=AsTheyAre(reference),
        feature_extractor="glyphs",
        **dict.fromkeys(("isc", "fid", "prc"), True),
        isc_splits=1,
        samples_shuffle=False,
        cuda=False,
        save_cpu_ram=True,
        verbose=False,
    )
    other = judge.look(reference)
    ours = score(judge.look(pictures), fitted(other.features_NF), other, np.arange(60))
    assert ours.frechet_distance == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert ours.inception_score == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert (ours.precision, ours.recall) == (theirs["precision"], theirs["recall"])
    assert ours.class_accuracy == 1.0


def test_the_extractor_sees_what_the_classifier_sees(judge: Judge):
    """Bytes instead of numbers in [-1, 1]: less than one step of 255 between them."""
    pictures_N3HW, _ = glyph_batch(np.arange(10), TRAIN_SEED)
    classifier = load_classifier()
    with torch.no_grad():
        expected_NF = classifier.features((((pictures_N3HW + 1) * 127.5).floor()) / 127.5 - 1)
    seen = judge.look(GlyphStream(TRAIN_SEED, 10))
    torch.testing.assert_close(seen.features_NF, expected_NF, rtol=1e-5, atol=1e-5)
    assert seen.features_NF.shape == (10, judge.features) and seen.logits_NK.argmax(1).tolist() == list(range(10))


# ---- references


def written(path: Path, pictures: PictureSet) -> Path:
    write_npz(path, pictures.shape, pictures.batches(50))
    return path


def test_a_folder_an_npz_and_statistics_say_the_same(judge: Judge, tmp_path: Path):
    """The same twenty pictures in each form; a compressed .npz too."""
    from PIL import Image

    stream = GlyphStream(TRAIN_SEED, 20)
    pictures_NHW3 = in_one(stream)
    (tmp_path / "folder" / "a").mkdir(parents=True)
    for i, picture in enumerate(pictures_NHW3):
        Image.fromarray(picture).save(tmp_path / "folder" / ("a" if i < 5 else "") / f"z{i:02d}.png")
    written(tmp_path / "plain.npz", stream)
    np.savez_compressed(tmp_path / "small.npz", arr_0=pictures_NHW3)
    expected = judge.look(stream)
    for name in ("folder", "plain.npz", "small.npz"):
        reference = open_reference(str(tmp_path / name), 0, judge, 64)
        assert reference.pictures is not None and reference.statistics is None and reference.count == 20
        np.testing.assert_array_equal(in_one(reference.pictures), pictures_NHW3)
    write_statistics(tmp_path / "statistics.npz", fitted(expected.features_NF), judge.name)
    reference = open_reference(str(tmp_path / "statistics.npz"), 0, judge, 64)
    assert reference.pictures is None and reference.count == 0 and reference.statistics is not None
    assert score(expected, reference.statistics).frechet_distance == pytest.approx(0, abs=1e-4)


def test_the_adm_suites_reference_gives_statistics_and_pictures(judge: Judge, tmp_path: Path):
    """Its files hold mu and sigma of all pictures, and 10,000 of them for precision and recall."""
    pictures_NHW3, mu_F, sigma_FF = in_one(GlyphStream(TRAIN_SEED, 8)), np.ones(128, np.float32), np.eye(128)
    np.savez(tmp_path / "virtual.npz", arr_0=pictures_NHW3, mu=mu_F, sigma=sigma_FF, mu_s=mu_F, sigma_s=sigma_FF)
    reference = open_reference(str(tmp_path / "virtual.npz"), 0, judge, 64)
    assert reference.count == 8 and reference.statistics is not None
    np.testing.assert_array_equal(reference.statistics.mean, mu_F)


def bad_references(folder: Path) -> dict[str, str]:
    """Names in the folder, and what is said of each."""
    from PIL import Image

    pictures_NHW3, eye = in_one(GlyphStream(TRAIN_SEED, 8)), np.eye(128)
    np.savez(folder / "float.npz", arr_0=pictures_NHW3.astype(np.float32))
    np.savez(folder / "planes.npz", arr_0=pictures_NHW3.transpose(0, 3, 1, 2))
    np.savez(folder / "fortran.npz", arr_0=np.asfortranarray(pictures_NHW3))
    np.savez(folder / "unnamed.npz", pictures=pictures_NHW3)
    np.savez(folder / "half.npz", arr_0=pictures_NHW3[:, :32, :32])
    np.savez(folder / "three.npz", arr_0=pictures_NHW3[:3])
    np.savez(folder / "inception.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    np.savez(folder / "named.npz", mu=np.zeros(128), sigma=eye, extractor="vgg16")
    np.savez(folder / "nan.npz", mu=np.full(128, np.nan), sigma=eye)
    np.savez(folder / "pickle.npz", mu=np.array([print], object), sigma=eye)
    (folder / "text.npz").write_text("no zip")
    (folder / "empty").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    (folder / "pictures").mkdir()
    Image.fromarray(pictures_NHW3[0, :32, :32]).save(folder / "pictures" / "a.png")
    return {
        "float.npz": "must be uint8 .*, found float32",
        "planes.npz": r"must be uint8 .*, found uint8 \[8, 3, 64, 64\]",
        "fortran.npz": "must be uint8",
        "unnamed.npz": "must hold pictures as arr_0, found pictures",
        "half.npz": "holds pictures of 32×32, and the model draws 64×64",
        "pictures": "holds pictures of 32×32, and the model draws 64×64",
        "three.npz": "holds 3 pictures, expected 4 or more",
        "inception.npz": r"statistics of another feature extractor: mu \[2048\]",
        "named.npz": "of the extractor vgg16, expected glyphs",
        "nan.npz": "not finite",
        "pickle.npz": "cannot be read as statistics",
        "text.npz": "cannot be read as an .npz",
        "empty": "holds no pictures",
        "broken": "a.png cannot be read as a picture",
        "absent": "is not there. Name a folder of pictures, an .npz, or glyphs-train or glyphs-held-out",
    }


def test_a_bad_reference_is_refused_by_name(judge: Judge, tmp_path: Path):
    """Each with its own words, before a picture is drawn."""
    for name, words in bad_references(tmp_path).items():
        with pytest.raises(ActVARError, match=words) as refused:
            open_reference(str(tmp_path / name), 0, judge, 64)
        assert str(tmp_path / name) in str(refused.value)


def test_an_npz_that_is_cut_is_told_while_it_is_read(tmp_path: Path):
    """Its directory lies at the end; a byte changed in the midst shows at the end of the pictures."""
    path = written(tmp_path / "a.npz", GlyphStream(TRAIN_SEED, 8))
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ActVARError, match=r"cannot be read as an \.npz"):
        list(open_npz(path).batches(3))
    path.write_bytes(content[:4000])
    with pytest.raises(ActVARError, match=r"cannot be read as an \.npz"):
        open_npz(path)


def test_pictures_of_two_sizes_are_told_while_they_are_read(tmp_path: Path):
    from PIL import Image

    for name, side in (("a", 64), ("b", 64), ("c", 32)):
        Image.new("RGB", (side, 64)).save(tmp_path / f"{name}.png")
    with pytest.raises(ActVARError, match=r"c\.png is 32×64, and .*a\.png is 64×64"):
        list(open_folder(tmp_path).batches(2))


def test_statistics_come_back_as_they_were(tmp_path: Path):
    statistics = fitted(random_features(30, 8, seed=8))
    write_statistics(tmp_path / "a.npz", statistics, "glyphs")
    found = read_statistics(tmp_path / "a.npz", "glyphs", 8)
    np.testing.assert_array_equal(found.mean, statistics.mean)
    np.testing.assert_array_equal(found.covariance, statistics.covariance)
    assert found.count == 30


# ---- Inception


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_missing_inception_says_which_file_and_where(hub: Path, monkeypatch: pytest.MonkeyPatch):
    """Where it cannot be fetched: address, size, hash, and both ways to bring it."""
    from urllib.error import URLError

    def unreachable(*_, **__):
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(ActVARError) as refused:
        inception_judge(None)
    said = str(refused.value)
    assert "v0.2.0/weights-inception-2015-12-05-6726825d.pth (96 MB, SHA-256 6726825d0af5…)" in said
    assert str(hub / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth") in said and "no route" in said
    assert "--inception" in said


def test_a_file_that_is_not_inception_is_refused(hub: Path, tmp_path: Path):
    other = tmp_path / "other.pth"
    with pytest.raises(ActVARError, match=r"other\.pth is missing, or no file. Fetch https://"):
        inception_judge(other)
    torch.save({"fc.weight": torch.zeros(2, 2)}, other)
    with pytest.raises(ActVARError, match="is not the Inception network of FID: expected SHA-256 6726825d0af5…, found"):
        inception_judge(other)


@pytest.mark.slow
def test_inception_judges_by_2048_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The network with random weights, as its own are not at hand: layers, shapes, and a set held against itself."""
    import hashlib

    from torch_fidelity import FeatureExtractorInceptionV3

    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
        patched.setattr(torch, "load", lambda *_, **__: {})
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path="none")
    path = tmp_path / "random.pth"
    torch.save(network.state_dict(), path)
    monkeypatch.setattr(inception_file, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    judge = inception_judge(path)
    seen = judge.look(GlyphStream(TRAIN_SEED, 6))
    assert seen.features_NF.shape == (6, judge.features) == (6, 2048) and seen.logits_NK.shape == (6, 1008)
    assert not judge.knows_classes
