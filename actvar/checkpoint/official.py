"""Checkpoints as official VAR lays them out: what model the tensors are of.

The model's parameters bear the official names, so nothing is renamed. An official file has no configuration; it is read
off the shapes. Loading is `actvar.checkpoint.model`'s.

Letters in shapes: L tokens of all scales, C width, V codes, E code width, S scales.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from actvar.checkpoint.networks import networks
from actvar.checkpoint.tensor_file import TensorFile, open_tensor_file
from actvar.checkpoint.values import Values
from actvar.checkpoint.weights import Weights
from actvar.config import HEAD_WIDTH, ModelConfig, VQVAEConfig
from actvar.errors import CheckpointError, UsageError, counted, shown
from actvar.scales import LARGE_PATCH_NUMS, ScaleSchedule

_SCHEDULES = {schedule.total: schedule for schedule in (ScaleSchedule(), ScaleSchedule(LARGE_PATCH_NUMS))}
_ORIGINAL = "Use the whole, original file."
_PHI_LIST = "quantize.quant_resi."
_PHIS = f"{_PHI_LIST}qresi_ls."
_NO_PHIS = "Use a VQVAE with a quant_resi of 0.5, which is official VAR's."
_ITS_VQVAE = "Give the VQVAE that it was trained with; the official one is vae_ch160v4096z32.pth."


def read_official(
    file: TensorFile, vqvae: Path | None, schedule: ScaleSchedule | None = None, znorm: bool = False
) -> tuple[ModelConfig, Weights, Weights]:
    """The weights of VAR and VQVAE in official files, and the model that they make.

    Args:
        file: `var_d16.pth` and the like, which need `vqvae`; or a self-trained file, which nests both networks under
            `trainer.var_wo_ddp` and `trainer.vae_local`; in any of the wrappings that `networks` knows.
        vqvae: `vae_ch160v4096z32.pth`, or a self-trained file whose VQVAE is wanted.
        schedule: the token maps, where VAR's file does not tell them.
        znorm: of the VQVAE, which no file tells.

    Returns: the configuration, VAR's weights, the VQVAE's by our names; without the buffers that official files carry.

    Raises:
        CheckpointError: a file is not what it should be, or the two do not fit each other.
        UsageError: the file tells other token maps.
    """
    var_weights, own_vqvae = networks(file)
    if var_weights is None:
        held = "a VQVAE and no VAR" if own_vqvae else f"no VAR (its first entries: {_first_names(file.content)})"
        raise CheckpointError(
            f"{shown(file.path)} holds {held}. Name an official var_d*.pth, a self-trained file with "
            "trainer.var_wo_ddp, or a checkpoint of this project's own."
        )
    if own_vqvae and vqvae:
        raise CheckpointError(
            f"{shown(file.path)} holds a VQVAE of its own, and {shown(vqvae)} was given too. Leave the latter out."
        )
    vqvae_weights = own_vqvae
    if vqvae:
        vqvae_weights = networks(open_tensor_file(vqvae))[1]
        if vqvae_weights is None:
            raise CheckpointError(f"{shown(vqvae)} holds no VQVAE. {_ITS_VQVAE}")
    if vqvae_weights is None:
        raise CheckpointError(f"{shown(file.path)} holds a VAR without its VQVAE. {_ITS_VQVAE}")
    vqvae_weights = own_names(vqvae_weights)
    config = derive_config(var_weights, vqvae_weights, schedule_of(var_weights, schedule), znorm=znorm)
    return config, _without_buffers(var_weights, config), without_hits(vqvae_weights)


def _first_names(content: Mapping[str, Any]) -> str:
    return shown(", ".join(list(content)[:3]), 100) or "none"


# ---- the configuration


def derive_config(
    var: Weights,
    vqvae: Weights,
    schedule: ScaleSchedule,
    norm_groups: int = VQVAEConfig.norm_groups,
    znorm: bool = False,
) -> ModelConfig:
    """The dense model that the tensors are of, as far as shapes tell.

    Args:
        var: VAR's weights.
        vqvae: the VQVAE's.
        schedule: the scales; only their sum is held against the tensors.
        norm_groups, znorm: of the VQVAE, which no shape tells.

    Raises:
        CheckpointError: a tensor that tells is missing, or two of them disagree.
    """
    vqvae_config = derive_vqvae(vqvae, norm_groups, znorm)
    width, code_width = var.shape("word_embed.weight", 2)
    depth = var.count("blocks.")
    if width != HEAD_WIDTH * depth:
        raise var.wrong(
            "word_embed.weight", f"the width {HEAD_WIDTH * depth} of {counted(depth, 'block')}", width, _ORIGINAL
        )
    codes = (var.shape("head.weight", 2)[0], code_width)
    if codes != (vqvae_config.vocab_size, vqvae_config.z_channels):
        raise CheckpointError(
            f"{shown(var.path)} predicts {counted(codes[0], 'code')} of width {codes[1]}, but {shown(vqvae.path)} has "
            f"{vqvae_config.vocab_size} of width {vqvae_config.z_channels}. {_ITS_VQVAE}"
        )
    total = var.shape("pos_1LC", 3)[1]
    if total != schedule.total:
        raise var.wrong(
            "pos_1LC", f"{counted(schedule.total, 'token')} of the scales {schedule.patch_nums}", total, _ORIGINAL
        )
    labels = var.shape("class_emb.weight", 2)[0]
    if labels < 2:
        raise var.wrong("class_emb.weight", "one row for each class and one for none", labels, _ORIGINAL)
    shared = "shared_ada_lin.1.weight" in var.tensors
    try:
        return ModelConfig(depth, schedule, labels - 1, shared_adaln=shared, vqvae=vqvae_config)
    except ValueError as error:
        raise CheckpointError(f"{shown(var.path)}: {error}. {_ORIGINAL}") from None


def derive_vqvae(weights: Weights, norm_groups: int = VQVAEConfig.norm_groups, znorm: bool = False) -> VQVAEConfig:
    """The VQVAE that the tensors are of, by our names; no shape tells its `norm_groups`, nor `znorm`."""
    vocab_size, z_channels = weights.shape("quantize.embedding.weight", 2)
    ch = weights.shape("encoder.conv_in.weight", 4)[0]
    multiples = []
    for i in range(max(1, weights.count("encoder.down."))):
        name = f"encoder.down.{i}.block.0.conv2.weight"
        channels = weights.shape(name, 4)[0]
        if channels % ch:
            raise weights.wrong(name, f"a multiple of encoder.conv_in's {ch} channels", channels, _ORIGINAL)
        multiples.append(channels // ch)
    try:
        blocks = weights.count("encoder.down.0.block.")
        phis, kernel = weights.count(_PHIS), weights.shape("quant_conv.weight", 4)[-1]
        return VQVAEConfig(vocab_size, z_channels, ch, tuple(multiples), blocks, norm_groups, phis, kernel, znorm)
    except ValueError as error:
        raise CheckpointError(f"{shown(weights.path)}: {error}. {_ORIGINAL}") from None


def schedule_of(var: Weights, given: ScaleSchedule | None = None) -> ScaleSchedule:
    """The scales of an official VAR: as `lvl_1L` numbers its tokens, else those given, else the known ones of so many.

    Raises:
        CheckpointError: no scales are told, or those given have another number of tokens.
        UsageError: others are given than `lvl_1L` tells.
    """
    total = var.shape("pos_1LC", 3)[1]
    if "lvl_1L" in var.tensors:
        own = _numbered_scales(var, total)
        require_same(var.path, own, given)
        return own
    if given and given.total != total:
        maps = f"{counted(given.total, 'token')}, as patch_nums {given.patch_nums} have"
        raise var.wrong("pos_1LC", maps, total, "Give the patch_nums that it was trained with.")
    if not given and total not in _SCHEDULES:
        known = " or ".join(str(count) for count in _SCHEDULES)
        advice = "Give the patch_nums that it was trained with (--patch-nums 1,2,4,8), or use the whole, original file."
        raise var.wrong("pos_1LC", f"{known} tokens (or lvl_1L to tell their scales)", total, advice)
    return given or _SCHEDULES[total]


def require_same(path: Path, own: ScaleSchedule, given: ScaleSchedule | None) -> None:
    """Make sure that nobody asks a file for other token maps than it tells.

    Raises:
        UsageError: somebody does.
    """
    if given and given != own:
        raise UsageError(f"{shown(path)} has its own patch_nums, {own.patch_nums}. Leave --patch-nums out.")


def _numbered_scales(var: Weights, total: int) -> ScaleSchedule:
    expected = "the scale of each token, p*p tokens of every scale, with p growing from 1"
    level = var.tensors["lvl_1L"]
    if level.size > 4 * total:  # what is told wrongly is told below; this could be longer than all else in the file
        raise var.wrong("lvl_1L", expected, "others", _ORIGINAL)
    counts = Counter(level.read().reshape(-1).tolist())
    try:
        return ScaleSchedule(tuple(round(counts[scale] ** 0.5) for scale in sorted(counts)))
    except ValueError:
        raise var.wrong("lvl_1L", expected, "others", _ORIGINAL) from None


# ---- the buffers: official files carry values that follow from the configuration


def _without_buffers(var: Weights, config: ModelConfig) -> Weights:
    """Check the buffers that are there, and leave them out."""
    tokens = config.schedule.total
    shapes: dict[str, tuple[int, ...]] = {"lvl_1L": (1, tokens), "attn_bias_for_masking": (1, 1, tokens, tokens)}
    shapes |= {f"blocks.{i}.attn.zero_k_bias": (config.width,) for i in range(config.depth)}
    for name, shape in shapes.items():
        if name not in var.tensors:
            continue
        found = var.tensors[name]
        if found.shape != shape:
            raise var.wrong(name, f"the shape {list(shape)}", list(found.shape), _ORIGINAL)
        expected = _buffer(name, config)  # made for a file that has it, and so is as large itself
        with np.errstate(invalid="ignore"):
            are_same = np.array_equal(found.read().astype(expected.dtype), expected)
        if not are_same:
            raise var.wrong(name, "the values that follow from patch_nums and width", "others", _ORIGINAL)
    return var.without(shapes.keys())


def _buffer(name: str, config: ModelConfig) -> np.ndarray:
    if name.endswith("zero_k_bias"):
        return np.zeros(config.width, np.float32)
    lvl_1L = np.repeat(np.arange(len(config.schedule)), config.schedule.tokens)[None]
    if name == "lvl_1L":
        return lvl_1L
    return np.where(lvl_1L > lvl_1L.T, -np.float32(np.inf), np.float32(0))[None, None]


def own_names(vqvae: Weights) -> Weights:
    """An official VQVAE's tensors as ours are called.

    Its phis are a list only where scales share some of several (`share_quant_resi` 2 and more). One that all share is
    `qresi`, and those that each scale has for itself bear their numbers alone. Which phi follows a scale depends on
    their number, in all three forms.

    Raises:
        CheckpointError: there are none.
    """
    found: dict[str, Values] = {}
    for name, values in vqvae.tensors.items():
        rest = name.removeprefix(_PHI_LIST)
        if rest != name and rest.startswith("qresi."):
            name = f"{_PHIS}0.{rest.removeprefix('qresi.')}"
        elif rest != name and rest.partition(".")[0].isdecimal():
            name = _PHIS + rest
        found[name] = values
    if not any(name.startswith(_PHIS) for name in found):
        raise vqvae.wrong(_PHIS.rstrip("."), "the quantizer's convolutions", "none", _NO_PHIS)
    return replace(vqvae, tensors=found)


def without_hits(vqvae: Weights) -> Weights:
    """Leave out the training's count of used codes, [S, V]; its S is that of the VQVAE's own training."""
    name = "quantize.ema_vocab_hit_SV"
    if name in vqvae.tensors:
        codes = vqvae.shape("quantize.embedding.weight", 2)[0]
        if vqvae.shape(name, 2)[1] != codes:
            raise vqvae.wrong(name, f"{counted(codes, 'code')} in a row", list(vqvae.tensors[name].shape), _ORIGINAL)
    return vqvae.without([name])
