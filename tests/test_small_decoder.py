"""The small decoder: its losses against loops, what a training of it leaves, and which models draw with it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from command_line import Command, in_process
from exported_graphs import run
from PIL import Image
from small_models import SMALL_VQVAE, small_config, vivid_model
from small_training import TEACHER, logged, random_store, write_teacher, write_tokens

from actvar.bundle.manifest import read_manifest
from actvar.checkpoint.files import Checkpoint
from actvar.checkpoint.model import load_checkpoint, load_model, open_checkpoint
from actvar.checkpoint.own import save_model
from actvar.config import ModelConfig, SmallDecoderConfig, VQVAEConfig
from actvar.distill.decoder import DecoderSettings, perceptual_loss, pixel_loss, train_decoder
from actvar.errors import ArgumentError, CheckpointError, UsageError
from actvar.export.binder import bind
from actvar.export.front_door import Pipeline
from actvar.export.onnx_export import export_bundle
from actvar.flops import decoder_work
from actvar.generation import generate
from actvar.models.actvar import ActVAR, random_model
from actvar.models.small_decoder import SmallDecoder

SMALL = SmallDecoderConfig(width=8, depth=1)
BOTH = replace(TEACHER, small_decoder=SMALL)
ROOMY = replace(small_config((1, 2, 3), depth=1, vqvae=VQVAEConfig(48, 6, 16, (1, 2, 2), 1, 8)), small_decoder=SMALL)
"""Two upsamplings, from side 3."""


def pictures(seed: int) -> torch.Tensor:
    return torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_pixel_loss_is_absolute_and_square():
    x, y = pictures(0), pictures(1)
    pairs = list(zip(x.flatten().tolist(), y.flatten().tolist(), strict=True))
    expected = sum(abs(a - b) + (a - b) ** 2 for a, b in pairs) / len(pairs)
    assert pixel_loss(x, y).item() == pytest.approx(expected, rel=1e-5)


def test_the_perceptual_loss_compares_directions_of_features_level_by_level():
    """Place by place: the squared distance of two vectors of length 1. A level counts as much as any other."""
    encoder = vivid_model(TEACHER).vqvae.encoder
    x, y = pictures(0), pictures(1)
    levels = []
    with torch.no_grad():
        a, b = encoder.conv_in(x), encoder.conv_in(y)
        for level in encoder.down:
            a, b = level(a), level(b)
            distances = []
            for n in range(2):
                for row in range(a.shape[2]):
                    for column in range(a.shape[3]):
                        u, v = a[n, :, row, column], b[n, :, row, column]
                        distances.append(float(((u / u.norm() - v / v.norm()) ** 2).sum()))
            levels.append(sum(distances) / len(distances))
            if level.downsample is not None:
                a, b = level.downsample(a), level.downsample(b)
    assert len(levels) == 2
    assert perceptual_loss(encoder, x, y).item() == pytest.approx(sum(levels) / 2, rel=1e-4)
    assert perceptual_loss(encoder, x, x).item() == 0


def test_the_decoder_is_plain_convolutions_of_doubling_maps():
    """Written again from the functions alone: no norm, no attention, nearest upsampling."""
    decoder = random_model(BOTH).small_decoder
    assert decoder is not None
    weights = decoder.state_dict()

    def conv(x: torch.Tensor, layer: str) -> torch.Tensor:
        return F.conv2d(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"], padding=1)

    def block(x: torch.Tensor, name: str) -> torch.Tensor:
        h = conv(conv(conv(x, f"{name}.conv1").relu(), f"{name}.conv2").relu(), f"{name}.conv3")
        return (h + x).relu()

    f_hat = torch.randn(2, SMALL_VQVAE.z_channels, 3, 3)
    h = block(conv(f_hat, "conv_in").relu(), "up.0.blocks.0")
    h = conv(h.repeat_interleave(2, 2).repeat_interleave(2, 3), "up.0.upsample.conv")
    expected = conv(block(h, "last"), "conv_out")
    with torch.no_grad():
        torch.testing.assert_close(decoder(f_hat), expected)


def test_its_work_is_counted_convolution_by_convolution():
    """By what the modules say of themselves, at the sides that they run at; and the official shape stays under 40 G."""
    shape, small = ModelConfig(16), SmallDecoderConfig()
    with torch.device("meta"):
        decoder = SmallDecoder(small, shape.vqvae)
        counted = 0

        def count(module: torch.nn.Module, _: object, out: torch.Tensor) -> None:
            nonlocal counted
            assert isinstance(module, torch.nn.Conv2d)
            counted += 2 * module.weight.numel() * out.shape[2] * out.shape[3]

        for module in decoder.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(count)
        assert decoder(torch.empty(1, 32, 16, 16)).shape == (1, 3, 256, 256)
    assert decoder_work(replace(shape, small_decoder=small)) == counted < 40e9 < decoder_work(shape)


@pytest.mark.parametrize(("width", "depth"), [(0, 1), (1, 0), (1 << 13, 1), (8, 65)])
def test_a_shape_out_of_range_is_refused(width: int, depth: int):
    with pytest.raises(ValueError, match="of a small decoder must lie in"):
        SmallDecoderConfig(width, depth)


def test_the_configuration_names_it_only_where_it_is():
    assert "small_decoder" not in TEACHER.to_dict()
    assert ModelConfig.from_dict(BOTH.to_dict()) == BOTH
    for wrong in (None, {}, {"width": 8}, {"width": 8, "depth": "1"}, {"width": 8, "depth": 1, "more": 1}):
        with pytest.raises(ValueError):
            ModelConfig.from_dict({**TEACHER.to_dict(), "small_decoder": wrong})


def settings(folder: Path, **changes: float) -> DecoderSettings:
    common = {"steps": 30, "batch": 8, "learning_rate": 1e-2, "warmup": 2, "log_every": 1, "save_every": 5}
    return DecoderSettings(folder=folder, precision="fp32", **{**common, **changes})


@pytest.mark.parametrize("perceptual", [0.0, 0.5])
def test_it_learns_the_large_decoders_pictures(tmp_path: Path, perceptual: float):
    model = vivid_model(TEACHER)
    before = {name: value.clone() for name, value in model.vqvae.state_dict().items()}
    run = settings(tmp_path, perceptual=perceptual)
    train_decoder(model.vqvae, TEACHER.vqvae, SMALL, run, random_store())
    log = logged(tmp_path)
    assert log[-1]["loss"] < 0.9 * log[0]["loss"] and ("perceptual" in log[0]) == bool(perceptual)
    for name, value in model.vqvae.state_dict().items():
        assert torch.equal(value, before[name]), name


class BrokenOff(Exception):
    """Stands for what ends a process."""


def test_a_killed_run_ends_as_an_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, store = vivid_model(TEACHER), random_store()

    def trained(folder: str) -> dict[str, torch.Tensor]:
        run = settings(tmp_path / folder, steps=8)
        return train_decoder(model.vqvae, TEACHER.vqvae, SMALL, run, store).state_dict()

    whole, calls = trained("whole"), 0

    def breaks_off(*pictures: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise BrokenOff
        return pixel_loss(*pictures)

    with monkeypatch.context() as patched:
        patched.setattr("actvar.distill.decoder.pixel_loss", breaks_off)
        with pytest.raises(BrokenOff):
            trained("broken")
    resumed = trained("broken")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def saved(model: ActVAR, path: Path, **how: bool) -> Path:
    save_model(model, path, torch.float32, **how)
    return path


def test_a_model_draws_with_it_where_it_was_asked_for(tmp_path: Path):
    """By default the full decoder draws, and the small one stays where it is."""
    both = vivid_model(BOTH)
    file = saved(both, tmp_path / "both.safetensors")
    full, small = load_model(file), load_checkpoint(Checkpoint(file, decoder="small"))
    assert full.config == TEACHER and full.small_decoder is None and small.config == BOTH
    drawn, also = (generate(model, [1], model.config.sampling) for model in (full, small))
    assert all(torch.equal(a, b) for a, b in zip(drawn.f_hats, also.f_hats, strict=True))
    with torch.no_grad():
        torch.testing.assert_close(drawn.pictures_B3HW, (both.vqvae.decode(drawn.f_hats[-1]) + 1) / 2)
        expected = (both.small_decoder(also.f_hats[-1]).clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(also.pictures_B3HW, expected)


def test_it_comes_from_the_file_of_the_vqvae(tmp_path: Path):
    """A model that shares a VQVAE shares what belongs to it."""
    both = vivid_model(BOTH)
    file = saved(both, tmp_path / "both.safetensors")
    alone = saved(both, tmp_path / "alone.safetensors", with_vqvae=False)
    assert open_checkpoint(Checkpoint(alone, file)).config == TEACHER
    model = load_checkpoint(Checkpoint(alone, file, decoder="small"))
    assert model.config == BOTH and model.small_decoder is not None
    for name, value in both.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_where_there_is_none_it_cannot_be_asked_for(tmp_path: Path):
    file = saved(vivid_model(TEACHER), tmp_path / "full.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no small decoder\. Make one: actvar-trt train decoder"):
        load_checkpoint(Checkpoint(file, decoder="small"))


def test_the_command_writes_a_model_with_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    teacher = write_teacher(Path("teacher.safetensors"))
    write_tokens(Path("tokens"), teacher)
    train: Command = in_process(monkeypatch, capsys, "train")
    line = ("decoder", "--model", "teacher.safetensors", "--tokens-dir", "tokens", "--out", "run", "--width", 8,
            "--depth", 1, "--steps", 3, "--batch-size", 4)  # fmt: skip
    code, out, _ = train(*line)
    assert code == 0 and "Wrote run/actvar.safetensors. Next: actvar-trt export --decoder small" in out
    made = load_checkpoint(Checkpoint(Path("run/actvar.safetensors"), decoder="small"))
    assert made.config == BOTH
    for name, value in teacher.state_dict().items():
        assert torch.equal(made.state_dict()[name], value), name
    code, _, err = train(*line, "--depth", 2)
    assert code == 1 and "holds another run (decoder SmallDecoderConfig(width=8, depth=1) -> " in err
    code, _, err = train(*line, "--width", 0)
    assert code == 2 and "width of a small decoder must lie in 1..4096, got 0" in err


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a small model, by precision, with the checkpoint that they were made from."""
    folder = tmp_path_factory.mktemp("bundles")
    both = vivid_model(ROOMY)
    saved(both, folder / "both.safetensors")
    for precision in ("fp32", "fp16", "bf16", "int8"):
        export_bundle(both, folder / precision, precision, "a test")
    return folder


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 1e-2), ("bf16", 1e-2), ("int8", 0.1)])
def test_the_exported_one_gives_the_eager_picture(bundles: Path, precision: str, tolerance: float):
    model = load_checkpoint(Checkpoint(bundles / "both.safetensors", decoder="small"))
    drawn = generate(model, [0, 3], model.config.sampling, seed=5)
    found = run(str(bundles / precision / "decoder.onnx"), {"f_hat": drawn.f_hats[-1].numpy()})["image"]
    expected = drawn.pictures_B3HW.numpy()
    assert found.shape == (2, 3, 12, 12) and (expected % 1 > 0).mean() > 0.2  # not clipped to a blank
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_its_graph_is_of_plain_operators_and_its_bundle_holds_no_other(bundles: Path, precision: str):
    manifest = read_manifest(bundles / precision)
    assert manifest.model == ROOMY and not any(name.startswith("vqvae.dec") for name in manifest.weights.tensors)
    graph = onnx.load(bundles / precision / "decoder.onnx", load_external_data=False).graph
    kinds = {node.op_type for node in graph.node}
    plain = {"Conv", "Relu", "Add", "DepthToSpace", "Slice", "Clip", "Mul"}
    more = {"fp16": {"Cast"}, "int8": {"QLinearConv", "QuantizeLinear", "DequantizeLinear"}}
    assert kinds <= plain | more.get(precision, set())
    whole = [node for node in graph.node if node.op_type == "QLinearConv"]
    assert len(whole) == (11 if precision == "int8" else 0)


def test_weights_are_bound_to_a_bundle_with_the_decoder_that_it_has(bundles: Path, tmp_path: Path):
    other = saved(vivid_model(ROOMY, seed=1), tmp_path / "other.safetensors")
    bound = bind(bundles / "fp32", other, target=tmp_path / "bound")
    model = load_checkpoint(Checkpoint(other, decoder="small"))
    assert bound.model == ROOMY
    f_hat = torch.randn(1, 6, 3, 3)
    found = run(str(tmp_path / "bound" / "decoder.onnx"), {"f_hat": f_hat.numpy()})["image"]
    with torch.no_grad():
        np.testing.assert_allclose(found, ((model.decode(f_hat) + 1) / 2).numpy(), rtol=0, atol=1e-5)
    full = saved(vivid_model(replace(ROOMY, small_decoder=None)), tmp_path / "full.safetensors")
    with pytest.raises(CheckpointError, match="holds no small decoder"):
        bind(bundles / "fp32", full)


def test_the_commands_take_either(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """generate by graphs and by PyTorch, export, and parity of what was exported."""
    monkeypatch.setenv("ACTVAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    command: Command = in_process(monkeypatch, capsys)
    model = str(bundles / "both.safetensors")
    for out, decoder in (("full", ()), ("small", ("--decoder", "small"))):
        assert command("generate", "--class", 1, "--model", model, *decoder, "--out", f"{out}.png")[0] == 0
        by_torch = ("--backend", "torch", "--out", f"{out}-torch.png")
        assert command("generate", "--class", 1, "--model", model, *decoder, *by_torch)[0] == 0
    pixels = {path.stem: np.asarray(Image.open(path)).astype(int) for path in Path().glob("*.png")}
    assert np.abs(pixels["full"] - pixels["small"]).max() > 2
    assert all(np.abs(pixels[name] - pixels[f"{name}-torch"]).max() <= 1 for name in ("full", "small"))
    run_of_5 = ("evaluate", "--model", model, "--backend", "torch", "--count", 5, "--out", "run")
    assert command(*run_of_5)[0] == 0
    code, _, err = command(*run_of_5, "--decoder", "small")
    assert code == 1 and "run holds pictures of another run: activation is dense there, and dense, small decoder" in err
    assert command("export", "--model", model, "--decoder", "small", "--out", "bundle")[0] == 0
    assert read_manifest(Path("bundle")).model == ROOMY
    code, out, _ = command("inspect", "bundle")
    assert code == 0 and "small: 8 channels, 1 block at each side below" in out
    assert command("parity", "--model", model, "--bundle", "bundle", "--count", 4)[0] == 0
    code, _, err = command("generate", "--class", 1, "--model", "bundle", "--decoder", "full")
    assert code == 2 and "is a bundle with the small decoder, and the full one was asked for" in err
    assert command("export", "--preset", "mini", "--decoder", "small", "--guidance-free")[0] == 0
    made = read_manifest(Path("bundles/actvar-mini-guidance-free-small-decoder-fp32")).model
    assert made.small_decoder == SmallDecoderConfig() and made.guided_scales == 0


def test_a_small_decoder_is_saved_as_a_bundle_alone(bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A checkpoint that is opened again would draw with the full one."""
    monkeypatch.setenv("ACTVAR_CACHE", str(tmp_path / "cache"))
    model = bundles / "both.safetensors"
    pipe = Pipeline.from_pretrained(model, backend="torch", decoder="small", progress_bar=False)
    with pytest.raises(UsageError, match="would not draw as this does"):
        pipe.save_pretrained(tmp_path / "saved")
    pipe = Pipeline.from_pretrained(model, decoder="small", progress_bar=False)
    again = Pipeline.from_pretrained(pipe.save_pretrained(tmp_path / "saved"), progress_bar=False)
    first, second = (each(class_labels=[1], output_type="np").images[0] for each in (pipe, again))
    assert np.array_equal(first, second)
    with pytest.raises(ArgumentError, match="is a bundle with the small decoder"):
        Pipeline.from_pretrained(tmp_path / "saved", decoder="full", progress_bar=False)
