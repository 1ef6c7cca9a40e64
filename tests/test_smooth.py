"""Mixtures of codes in place of codes (`smooth`): the same pictures on every path, and graphs of their own.

A mixture is a number, and no choice: rounding is not lost in it. So pixels may differ by a little where another
library, or another size of a batch, rounds otherwise.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import gpu_on_host
import graphs_on_host
import numpy as np
import pytest
import reference_var as reference
import torch
from command_line import Command, in_process
from drawn_models import ORDERS, SAMPLING, Bundles, assert_same_pictures, bundles_of, draw
from gpu_on_host import CAPABILITY, HostCuda, HostTensorRT
from small_models import small_config, vivid_model

from actvar.bundle.contract import DRAWN
from actvar.bundle.manifest import read_manifest
from actvar.bundle.plans import MODULES, RTX, PlanOptions, PlanTarget
from actvar.checkpoint.files import Checkpoint
from actvar.checkpoint.own import save_model
from actvar.config import FIXED, STATIC, Activation, ModelConfig, Sampling
from actvar.drawers import EagerModel, ToDraw
from actvar.editing.area import Keep, Rectangle, Replace, kept_by_rectangle, kept_tokens
from actvar.errors import ActVARError, ArgumentError
from actvar.evaluation.picture_run import RunSpec, open_run
from actvar.export.binder import bind
from actvar.export.front_door import Pipeline
from actvar.export.onnx_export import export_bundle, export_graphs
from actvar.export.parity.check import check_parity
from actvar.generation import generate
from actvar.recorded.model import RecordedModel
from actvar.recorded.operators import PlainOperators
from actvar.runtime.backends import cuda_memory
from actvar.runtime.backends.torch_source import eager_source
from actvar.runtime.machine import CACHE_VARIABLE
from actvar.runtime.pictures import Order
from actvar.runtime.sources import open_engines, open_graphs
from actvar.sampling import mix
from actvar.uniforms import token_noise, token_uniforms

ACTIVE = Activation(4, (2, 4), (0.5, 0.6), (0.75, 0.25))
PLAIN = small_config()
MODELS: dict[str, ModelConfig] = {
    "VAR": replace(PLAIN, smooth=True, sampling=SAMPLING),
    "guided to 2": replace(small_config(activation=ACTIVE), smooth=True, guided_scales=2, sampling=SAMPLING),
    "guidance-free": replace(
        small_config(activation=replace(ACTIVE, expert_choice=STATIC, token_choice=FIXED)),
        smooth=True,
        guided_scales=0,
        sampling=SAMPLING,
    ),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """Of the models above."""
    return bundles_of(MODELS, tmp_path_factory)


def noise_of(config: ModelConfig, seed: int, number: int) -> list[np.ndarray]:
    return [
        token_noise(seed, number, si, tokens, config.vqvae.vocab_size)
        for si, tokens in enumerate(config.schedule.tokens)
    ]


# ---- the noise


def test_noise_is_gumbel_s_and_finite():
    """Mean 0.5772, variance pi^2 / 6; -log(-log(u)) has no end at either side of [0, 1]."""
    noise_LV = token_noise(3, 1, 9, 256, 4096)
    assert noise_LV.shape == (256, 4096) and noise_LV.dtype == np.float32
    assert -3.2 < noise_LV.min() < -2 and 10 < noise_LV.max() < 22.2
    assert abs(noise_LV.mean() - np.euler_gamma) < 0.005 and abs(noise_LV.var() - np.pi**2 / 6) < 0.01


def test_a_code_s_noise_depends_on_its_place_alone():
    """Not on how many tokens its scale has; every seed, picture and scale has its own, and uniforms are others."""
    whole = token_noise(7, 3, 9, 25, 47)
    np.testing.assert_array_equal(token_noise(7, 3, 9, 3, 47), whole[:3])
    others = [token_noise(*key, 25, 47) for key in ((8, 3, 9), (3, 7, 9), (7, 4, 9), (7, 3, 8), (2**64 - 1, 3, 9))]
    others.append(-np.log(-np.log(token_uniforms(7, 3, 9, 25 * 47).astype(float) + 2.0**-25)).reshape(25, 47))
    assert all(abs(np.corrcoef(whole.ravel(), other.ravel())[0, 1]) < 0.15 for other in others)


def test_the_noise_is_this_for_good():
    """A seed names a picture."""
    expected = [[4.399329662322998, -1.0899635553359985], [0.047151610255241394, 2.124340295791626]]
    assert token_noise(7, 2, 9, 2, 2).tolist() == expected


@pytest.mark.parametrize(("seed", "picture"), [(-1, 0), (0, 2**64)])
def test_seeds_beyond_64_bits_are_refused(seed: int, picture: int):
    with pytest.raises(ValueError, match="must lie in"):
        token_noise(seed, picture, 0, 1, 8)


# ---- the mixture


@pytest.mark.parametrize(("top_k", "top_p"), [(900, 0.96), (7, 0.5), (48, 0.3), (1, 1.0), (48, 1.0)])
@pytest.mark.parametrize("si", [0, 4, 9])
def test_a_mixture_is_that_of_the_formula(top_k: int, top_p: float, si: int):
    schedule = small_config((1, 2, 3, 4, 5, 6, 8, 10, 13, 16)).schedule
    logits_BLV = 2 * torch.randn(1, 60, 48, generator=torch.Generator().manual_seed(0))
    noise_BLV = torch.from_numpy(token_noise(1, 0, si, 60, 48))[None]
    gain, temperature = schedule.smooth_gain(si), schedule.smooth_temperature(si)
    ids_BL, weights_BLV = mix(logits_BLV, noise_BLV, top_k, top_p, gain, temperature)
    pairs = zip(logits_BLV[0].double().numpy(), noise_BLV[0].double().numpy(), strict=True)
    expected_LV = np.array([reference.mixture(*pair, si / 9, top_k, top_p) for pair in pairs])
    np.testing.assert_allclose(weights_BLV[0].numpy(), expected_LV, rtol=0, atol=2e-4)
    assert ids_BL[0].tolist() == expected_LV.argmax(1).tolist()


def test_the_heaviest_code_is_a_draw_from_what_is_kept():
    """At logits times the gain: so a token's id means what it means without smoothing, at the first scale exactly."""
    logits_V, count = torch.tensor([0.3, 2.0, -1.0, 1.5, 0.0, -3.0]), 20_000
    noise_BLV = torch.from_numpy(token_noise(5, 0, 0, count, 6))[None]
    for gain in (1.0, 2.0):
        ids_BL, _ = mix(logits_V.expand(1, count, 6), noise_BLV, 4, 1.0, gain, 0.1)
        expected = (logits_V * gain).masked_fill(logits_V < 0.0, -torch.inf).softmax(0)
        shares = torch.bincount(ids_BL[0], minlength=6) / count
        assert (shares - expected).abs().max() < 0.015


# ---- whole pictures


def test_a_whole_picture_agrees_with_the_formulas():
    """Ten scales, by a reading that shares no code: tokens, and f_hat, in which rounding grows from scale to scale."""
    config = replace(small_config((1, 2, 3, 4, 5, 6, 8, 10, 13, 16)), smooth=True)
    model, noise = vivid_model(config), noise_of(config, 11, 4)
    expected = reference.generate(state_of(model), config.schedule.patch_nums, 3, noise, 1.5, 20, 0.9, 8, smooth=True)
    found = generate(model, [3], Sampling(1.5, 20, 0.9), seed=11, picture_numbers=[4])
    assert [ids[0].tolist() for ids in found.token_ids] == expected.ids
    for f_hat_BEHH, expected_EHH in zip(found.f_hats, expected.f_hats, strict=True):
        np.testing.assert_allclose(f_hat_BEHH[0].numpy(), expected_EHH, rtol=0, atol=1e-3)
    plain = generate(vivid_model(replace(config, smooth=False)), [3], Sampling(1.5, 20, 0.9), 11, [4])
    assert (plain.f_hats[0] - found.f_hats[0]).abs().max() > 0.1


@pytest.mark.parametrize(
    "area", [Replace(0.2, 0.2, 0.8, 0.8), Keep(0.2, 0, 0.8, 0.8)], ids=["in-painting", "out-painting"]
)
def test_an_edit_keeps_codes_and_mixes_the_others(area: Rectangle):
    """As official VAR's notebook has it: vectors are put together, each token's own code or what is drawn there."""
    config, random = MODELS["VAR"], np.random.default_rng(8)
    model, schedule = vivid_model(config), config.schedule
    own = [random.integers(48, size=tokens) for tokens in schedule.tokens]
    kept_SS = kept_by_rectangle(area, 5)
    noise, kept = noise_of(config, 11, 0), kept_tokens(kept_SS, schedule)
    arguments = (state_of(model), schedule.patch_nums, 3, noise, 1.5, 20, 0.9, 8, own, kept_SS.astype(float))
    expected = reference.generate(*arguments, smooth=True)
    given = [np.where(kept_L, codes_L, DRAWN)[None] for kept_L, codes_L in zip(kept, own, strict=True)]
    found = generate(model, [3], Sampling(1.5, 20, 0.9), seed=11, picture_numbers=[0], given=given)
    assert [ids[0].tolist() for ids in found.token_ids] == expected.ids
    np.testing.assert_allclose(found.f_hats[-1][0].numpy(), expected.f_hats[-1], rtol=0, atol=1e-3)
    everything = [codes_L[None] for codes_L in own]
    kept_all = generate(model, [3], SAMPLING, given=everything).f_hats[-1]
    torch.testing.assert_close(kept_all, model.vqvae.quantize.decode(torch.from_numpy(np.concatenate(everything, 1))))


def state_of(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: parameter.detach().double().numpy() for name, parameter in module.named_parameters()}


# ---- graphs


@pytest.mark.parametrize("name", MODELS)
def test_graphs_draw_what_the_eager_model_draws_in_batches_of_any_size(bundles: Bundles, name: str):
    """One picture alone, several, and edits among them; the graph of all scales gives the same bytes in any batch."""
    model, folder, _ = bundles(name)
    codes = tuple(np.where(np.arange(tokens) % 3 == 0, 5, DRAWN) for tokens in model.config.schedule.tokens)
    orders = [*ORDERS, Order(1, 3, given=codes)]
    alone = draw(open_graphs(folder, 1, threads=1), orders)
    assert_same_pictures(alone, draw(eager_source(model), orders))
    for batch_size in (3, 8):
        assert_same_pictures(draw(open_graphs(folder, batch_size, threads=1), orders), alone, off=0)
        assert_same_pictures(draw(open_graphs(folder, batch_size, threads=1, scales="each"), orders), alone)


@pytest.mark.parametrize("name", MODELS)
def test_noise_is_read_by_smooth_graphs_alone(bundles: Bundles, name: str):
    """[B, L, V] in place of [B, L]: nobody else pays for it."""
    _, _, manifest = bundles(name)
    for si, tokens in enumerate(manifest.model.schedule.tokens):
        inputs = {tensor.name: tensor.shape for tensor in manifest.graphs[f"scale_{si + 1:02d}"].inputs}
        assert inputs["noise"] == ("B", tokens, 48) and "uniform" not in inputs


@pytest.mark.parametrize(("name", "cpu_graph"), [("VAR", "each"), ("guided to 2", "scales"), ("guidance-free", "each")])
def test_every_graph_is_at_par_with_pytorch(bundles: Bundles, name: str, cpu_graph: str):
    model, folder, _ = bundles(name)
    report = check_parity(model, open_graphs(folder, 2, threads=1, scales=cpu_graph), 3)
    assert report.passed, report.verdict


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_precisions_draw(tmp_path: Path, precision: str):
    """Sampling is in fp32 there, too; what half precision rounds may make another code the heaviest."""
    model = vivid_model(MODELS["guided to 2"])
    export_bundle(model, tmp_path / "bundle", precision, "random weights")
    report = check_parity(model, open_graphs(tmp_path / "bundle", 2, threads=1), 2)
    assert report.passed, report.verdict


def test_engines_draw_the_pictures_of_the_graphs(bundles: Bundles, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Over the stand-in of a GPU: noise has a place for each scale, in recordings and in both lanes."""
    model, _, _ = bundles("guided to 2")
    host = HostTensorRT(HostCuda(), rtx=True)
    monkeypatch.setattr(cuda_memory, "cudart", host.cuda)
    for engine, module in MODULES.items():
        monkeypatch.setitem(sys.modules, module, host if engine == RTX else None)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    folder, gpu = tmp_path / "bundle", f"{CAPABILITY[0]}.{CAPABILITY[1]}"
    export_bundle(model, folder, "fp32", "random weights")
    gpu_on_host.build_on_host(folder, PlanTarget(RTX, HostTensorRT.__version__, (gpu,)), PlanOptions((1, 2, 4)))
    many = ORDERS[:-1] * 3
    assert_same_pictures(draw(open_engines(folder, 2), many), draw(open_graphs(folder, 2, 1, scales="each"), many))
    assert host.cuda.launches > 0


def test_recorded_steps_draw_what_the_eager_model_draws():
    """What a CUDA graph would replay, in a batch that is filled up, with other pictures than it was recorded with."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = vivid_model(MODELS["guided to 2"])
    drawer = RecordedModel(model, "fp32", "cpu", PlainOperators(), graphs_on_host.record, 4)
    for wanted in ([ToDraw(3, 7, 0), ToDraw(0, 7, 1), ToDraw(4, 9, 2**40)], [ToDraw(1, 8, 3), ToDraw(1, 8, 4)]):
        drawn = drawer.draw(wanted, SAMPLING)
        for i, picture in enumerate(wanted):
            alone = EagerModel(model).draw([picture], SAMPLING)
            np.testing.assert_array_equal(drawn.token_ids_BS[i], alone.token_ids_BS[0])
            assert np.abs(drawn.pixels_BHW3[i].astype(int) - alone.pixels_BHW3[0]).max() <= 1
    torch.set_num_threads(threads)


# ---- the configuration, and what is said of it


def test_a_configuration_is_read_back_and_says_nothing_of_an_ordinary_model():
    for config in (PLAIN, MODELS["VAR"]):
        assert ("smooth" in config.to_dict()) == config.smooth
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for value in (1, None, "yes"):
        with pytest.raises(ValueError, match="smooth"):
            ModelConfig.from_dict(PLAIN.to_dict() | {"smooth": value})


def test_a_run_of_smooth_pictures_is_another_run(tmp_path: Path):
    """A folder that was begun before there was this way goes on being what it is."""
    spec = RunSpec("00", "dense", "fp32", "onnxruntime", "cpu", 5, 10, 4, 0, 1.5, 900, 0.96)
    assert "smooth" not in spec.record and replace(spec, smooth=True).record["smooth"] is True
    open_run(tmp_path / "run", spec)
    open_run(tmp_path / "run", spec)
    with pytest.raises(ActVARError, match=r"smooth is .* there, and True here"):
        open_run(tmp_path / "run", replace(spec, smooth=True))


# ---- commands, and the front door


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return in_process(monkeypatch, capsys)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of a model that is not smooth by itself."""
    path = tmp_path / "plain.safetensors"
    save_model(vivid_model(replace(PLAIN, sampling=SAMPLING)), path, torch.float32)
    return path


def test_a_checkpoint_is_drawn_with_either_way(command: Command, checkpoint: Path):
    """Each has a bundle of its own in the cache, and draws as the model whose configuration says so."""
    assert Checkpoint(checkpoint).digest() != Checkpoint(checkpoint, smooth=True).digest()
    wanted = {smooth: draw(eager_source(vivid_model(replace(PLAIN, smooth=smooth)))) for smooth in (False, True)}
    for smooth, backend in ((True, "onnxruntime"), (None, "onnxruntime"), (True, "torch"), (False, "torch")):
        with Pipeline.from_pretrained(checkpoint, backend=backend, smooth=smooth, progress_bar=False) as pipe:
            assert pipe.model.smooth == bool(smooth)
            assert_same_pictures(draw(pipe.source), wanted[bool(smooth)])
    assert len(list(Path("cache").glob("bundles/*/manifest.json"))) == 2


def test_a_checkpoint_may_say_itself_that_it_is_smooth(command: Command, tmp_path: Path):
    """As one does that a smooth pipeline has saved; whoever names a way has that one."""
    save_model(vivid_model(MODELS["VAR"]), tmp_path / "smooth.safetensors", torch.float32)
    for asked, found in ((None, True), (True, True), (False, False)):
        path = tmp_path / "smooth.safetensors"
        with Pipeline.from_pretrained(path, backend="torch", smooth=asked, progress_bar=False) as pipe:
            assert pipe.model.smooth == found


def test_a_bundle_is_what_it_was_exported_as(command: Command, checkpoint: Path):
    """Its folder and `inspect` say so; what asks for the other way is refused with what to do."""
    code, out, err = command("export", "--model", checkpoint, "--smooth")
    folder = Path("bundles/plain-smooth-fp32")
    assert code == 0 and str(folder) in out, err
    assert read_manifest(folder).model.smooth
    code, out, _ = command("inspect", folder)
    assert code == 0 and "top-p 0.9, smooth" in out
    code, out, err = command("parity", "--model", checkpoint, "--bundle", folder, "--count", 2)
    assert code == 0, out + err
    for arguments in (
        ("parity", "--model", checkpoint, "--bundle", folder, "--count", 2),
        ("build", "--model", folder),
    ):
        code, _, err = command(*arguments, "--smooth")
        assert code == 2 and "--smooth" in err and "Leave" in err
    code, _, err = command("generate", "--class", 1, "--model", folder, "--smooth")
    assert code == 0, err
    with pytest.raises(ArgumentError, match="whose graphs mix codes, and not smooth drawing was asked for"):
        Pipeline.from_pretrained(folder, smooth=False, progress_bar=False)
    code, _, err = command("export", "--model", checkpoint)
    code, _, err = command("generate", "--class", 1, "--model", "bundles/plain-fp32", "--smooth")
    assert code == 2 and "whose graphs draw codes, and smooth drawing was asked for" in " ".join(err.split())


def test_a_checkpoint_is_bound_to_smooth_graphs(checkpoint: Path, tmp_path: Path):
    """How is drawn is the graphs' affair."""
    export_graphs(MODELS["VAR"], tmp_path / "graphs", "fp32", "none yet")
    assert bind(tmp_path / "graphs", checkpoint, target=tmp_path / "bound").model.smooth
    wanted = draw(eager_source(vivid_model(MODELS["VAR"])))
    assert_same_pictures(draw(open_graphs(tmp_path / "bound", 2, threads=1)), wanted)
