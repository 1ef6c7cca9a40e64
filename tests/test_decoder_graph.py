"""The decoder's graph: a convolution of an upsampled map is one of the map itself, and the picture stays the same."""

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from exported_graphs import run
from small_models import small_config, vivid_model
from torch import Tensor

from actvar.bundle.manifest import read_manifest
from actvar.config import ModelConfig, VQVAEConfig
from actvar.export.graphs.weights_file import WeightsFile, subpixel_bias, subpixel_weight
from actvar.export.onnx_export import export_bundle

DEEP = small_config((1, 2, 3), depth=1, vqvae=VQVAEConfig(48, 6, 16, (1, 1, 2, 3), 1, 8))
"""Three upsamplings, from side 3."""


def upsampled_and_convolved(x_IHW: np.ndarray, weight_OI33: np.ndarray, bias_O: np.ndarray) -> np.ndarray:
    """[O, 2H, 2W], pixel by pixel from the definitions, in double precision."""
    outputs, (inputs, height, width) = len(weight_OI33), x_IHW.shape
    result = np.zeros((outputs, 2 * height, 2 * width))
    for o, row, column in np.ndindex(result.shape):
        result[o, row, column] = bias_O[o]
        for i, dy, dx in np.ndindex(inputs, 3, 3):
            y, x = row + dy - 1, column + dx - 1
            if 0 <= y < 2 * height and 0 <= x < 2 * width:
                result[o, row, column] += float(weight_OI33[o, i, dy, dx]) * float(x_IHW[i, y // 2, x // 2])
    return result


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (2, 2), (5, 3)])
def test_four_pixels_for_each_place_are_what_the_upsampled_map_gives(height, width):
    """At odd sides too, and at the borders, where a window reaches beyond the map and two of its pixels are cut off."""
    random = np.random.default_rng(height + width)
    x_IHW, weight_OI33, bias_O = (
        random.standard_normal(shape, np.float32) for shape in ((3, height, width), (2, 3, 3, 3), (2,))
    )
    weight, bias = (torch.tensor(made) for made in (subpixel_weight(weight_OI33), subpixel_bias(bias_O)))
    windows_MHW = F.conv2d(torch.tensor(x_IHW)[None], weight, bias, padding=1)[0].numpy()
    found = np.full((2, 2 * height, 2 * width), np.nan)
    for place, (dy, dx) in enumerate(np.ndindex(2, 2)):
        for o, i, j in np.ndindex(2, height + 1, width + 1):
            row, column = 2 * i - 1 + dy, 2 * j - 1 + dx
            if 0 <= row < 2 * height and 0 <= column < 2 * width:
                found[o, row, column] = windows_MHW[2 * place + o, i, j]
    np.testing.assert_allclose(found, upsampled_and_convolved(x_IHW, weight_OI33, bias_O), rtol=0, atol=2e-6)


def decoder_of(config: ModelConfig, precision: str, folder) -> tuple[Tensor, np.ndarray]:
    """A picture of each of two f_hat, by the eager decoder and by the exported one."""
    model = vivid_model(config)
    export_bundle(model, folder, precision, "random weights, seed 0")
    side = config.schedule.side
    f_hat_BEHH = torch.randn(2, config.vqvae.z_channels, side, side, generator=torch.Generator().manual_seed(1))
    eager = (model.vqvae.decode(f_hat_BEHH) + 1) / 2
    return eager, run(str(folder / "decoder.onnx"), {"f_hat": f_hat_BEHH.numpy()})["image"]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 1e-2)])
def test_a_decoder_of_several_upsamplings_gives_the_eager_picture(tmp_path, precision, tolerance):
    """Each is fed by the one before, so a row that is off by one anywhere shows in the picture."""
    eager, found = decoder_of(DEEP, precision, tmp_path / "bundle")
    assert found.shape == (2, 3, 24, 24)
    assert (eager.remainder(1) > 0).float().mean() > 0.2  # not clipped to a blank
    np.testing.assert_allclose(found, eager.numpy(), rtol=0, atol=tolerance)


def test_no_map_is_upsampled_and_kernels_are_computed_at_export(tmp_path):
    """The graph holds a 2x2 kernel for each upsampling, as the weights file does; the checkpoint's 3x3 is gone."""
    export_bundle(vivid_model(DEEP), tmp_path / "bundle", "fp32", "random weights, seed 0")
    manifest = read_manifest(tmp_path / "bundle")
    nodes = onnx.load(tmp_path / "bundle" / "decoder.onnx", load_external_data=False).graph.node
    kinds = [node.op_type for node in nodes]
    assert "Resize" not in kinds and kinds.count("DepthToSpace") == 3
    shapes = {name: spec.shape for name, spec in manifest.weights.tensors.items() if "upsample" in name}
    assert shapes == {
        f"vqvae.decoder.up.{level}.upsample.subpixel_conv.{kind}": shape
        for level, width in ((1, 16), (2, 32), (3, 48))
        for kind, shape in (("weight", (4 * width, width, 2, 2)), ("bias", (4 * width,)))
    }


def test_in_fp16_nothing_changes_type_between_the_decoders_convolutions(tmp_path):
    """Only f_hat, the picture and each attention's softmax are in fp32; the sums of norms are the engine's own."""
    export_bundle(vivid_model(DEEP), tmp_path / "bundle", "fp16", "random weights, seed 0")
    nodes = onnx.load(tmp_path / "bundle" / "decoder.onnx", load_external_data=False).graph.node
    kinds = [node.op_type for node in nodes]
    assert kinds.count("InstanceNormalization") > 10
    assert kinds.count("Cast") == 2 + 2 * kinds.count("Softmax")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_rows_of_a_kernel_are_summed_before_they_are_rounded(tmp_path, precision):
    """In fp16, 2048 + 1 is 2048: summed in it, the two ones beside 2048 would be lost."""
    model = vivid_model(DEEP)
    kernel = model.vqvae.decoder.up[1].upsample.conv.weight
    kernel.zero_()
    kernel[0, 0, :, 0] = torch.tensor([2048.0, 1.0, 0.0])
    kernel[0, 0, 0, 1] = 1.0
    file = WeightsFile.of(DEEP, precision)
    file.write(tmp_path / "weights.bin", model.read)
    stored = file.layout.tensors["vqvae.decoder.up.1.upsample.subpixel_conv.weight"]
    values = np.fromfile(
        tmp_path / "weights.bin", stored.dtype, stored.length // np.dtype(stored.dtype).itemsize, offset=stored.offset
    )
    first = values.reshape(stored.shape)[0, 0]  # of rows 0 and 1 together, and of columns 0 and 1
    np.testing.assert_array_equal(first, [[2050, 0], [0, 0]])
