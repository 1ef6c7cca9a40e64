"""The report on generated pictures: generators of known faults get the figures that these faults must give.

Letters in shapes: N pictures, 3 H W their pixels.
"""

import json

import numpy as np
import torch
from rich.console import Console

from actvar.config import ModelConfig, Sampling, VQVAEConfig
from actvar.data.glyphs import HELD_OUT_SEED, render_glyphs
from actvar.evaluation.classifier import load_classifier
from actvar.evaluation.draws import generated_pictures, real_pictures, reconstructions
from actvar.evaluation.glyph_report import judge, make_report
from actvar.models.actvar import random_model

TINY = ModelConfig(
    depth=1,
    num_classes=100,
    vqvae=VQVAEConfig(vocab_size=32, z_channels=8, ch=32, ch_mult=(1, 1, 1), num_res_blocks=1),
)


def wrong_colours(numbers_N, class_ids_N):
    """The right shape in the next colour, red for white."""
    return render_glyphs(class_ids_N // 10 * 10 + (class_ids_N + 1) % 10, numbers_N, HELD_OUT_SEED)


def nothing_but_noise(numbers_N, class_ids_N):
    return torch.rand(len(numbers_N), 3, 64, 64, generator=torch.Generator().manual_seed(int(numbers_N[0]))) * 2 - 1


def test_the_figures_tell_faults_apart():
    """Real pictures are the floor of the distance; a wrong colour costs the colour and leaves the shape."""
    done = []
    report = make_report(
        {"real": real_pictures(HELD_OUT_SEED), "colours": wrong_colours, "noise": nothing_but_noise},
        load_classifier(),
        pictures=400,
        batch=150,
        reference_pictures=600,
        advance=done.append,
    )
    real, colours, noise = report.scores
    assert [score.name for score in report.scores] == ["real", "colours", "noise"]
    assert real.class_accuracy >= 0.98
    assert colours.class_accuracy == colours.colour_accuracy <= 0.02
    assert colours.shape_accuracy >= 0.98
    assert noise.class_accuracy <= 0.1
    assert real.frechet_distance < 0.1 * noise.frechet_distance
    assert sum(done) == 3 * 400 + 600


def test_a_half_wrong_generator_is_half_right():
    """Every picture counts once, also in a last batch that is not full."""

    def odd_ones_wrong(numbers_N, class_ids_N):
        return render_glyphs(np.where(numbers_N % 2, (class_ids_N + 10) % 100, class_ids_N), numbers_N, seed=9)

    report = make_report({"half": odd_ones_wrong}, load_classifier(), pictures=250, batch=64, reference_pictures=200)
    (half,) = report.scores
    assert abs(half.class_accuracy - 0.5) <= 0.01
    assert half.colour_accuracy >= 0.98
    assert half.pictures == 250


def test_the_batch_size_changes_no_figure():
    classifier = load_classifier()
    named_N, features_NF = judge(classifier, real_pictures(3), pictures=50, batch=50)
    other_named_N, other_features_NF = judge(classifier, real_pictures(3), pictures=50, batch=7)
    assert (named_N == other_named_N).all()
    np.testing.assert_allclose(features_NF, other_features_NF, rtol=1e-3, atol=1e-5)


def test_reconstructions_are_of_held_out_pictures():
    """Through tokens alone, as a transformer would hand them over: the same as training's straight-through pass."""
    vqvae, numbers_N = random_model(TINY).vqvae, np.arange(5, 9)
    trained_on_N3HW, _, _ = vqvae(render_glyphs(numbers_N, numbers_N, HELD_OUT_SEED))
    drawn_N3HW = reconstructions(vqvae)(numbers_N, numbers_N)
    torch.testing.assert_close(drawn_N3HW, trained_on_N3HW.clamp(-1, 1), rtol=0, atol=1e-4)


def test_generated_pictures_depend_on_number_class_and_seed_alone():
    """The report may be drawn in any batches, and another seed is another set."""
    model, numbers_N, class_ids_N = random_model(TINY), np.array([3, 40]), np.array([88, 7])
    drawn_N3HW = generated_pictures(model, Sampling(), seed=1)(numbers_N, class_ids_N)
    assert drawn_N3HW.shape == (2, 3, 64, 64)
    assert -1 <= drawn_N3HW.min() < 0 <= drawn_N3HW.max() <= 1
    alone_N3HW = generated_pictures(model, Sampling(), seed=1)(numbers_N[1:], class_ids_N[1:])
    torch.testing.assert_close(alone_N3HW, drawn_N3HW[1:], rtol=0, atol=1e-4)
    for seed, class_id in ((2, 7), (1, 8)):
        other_N3HW = generated_pictures(model, Sampling(), seed)(numbers_N[1:], np.array([class_id]))
        assert (other_N3HW - alone_N3HW).abs().max() > 0.01


def test_the_report_is_written_and_shown(tmp_path):
    report = make_report(
        {"held-out": real_pictures(HELD_OUT_SEED)}, load_classifier(), pictures=100, batch=100, reference_pictures=100
    )
    report.write(tmp_path / "report.json")
    read = json.loads((tmp_path / "report.json").read_text())
    assert read["reference_pictures"] == 100
    assert read["scores"][0]["class_accuracy"] == report.scores[0].class_accuracy
    console = Console(width=100)
    with console.capture() as shown:
        console.print(report.table())
    assert "held-out" in shown.get()
