"""Configurations: what they derive, what they refuse, and that JSON brings them back unchanged."""

import copy
import json
from typing import Any

import pytest

from actvar.config import MINI, PRESETS, Activation, ModelConfig, Sampling, VQVAEConfig, round_half_up
from actvar.scales import ScaleSchedule


def test_the_standard_schedule_is_the_papers():
    schedule = ScaleSchedule()
    assert schedule.tokens == (1, 4, 9, 16, 25, 36, 64, 100, 169, 256)
    assert schedule.starts == (0, 1, 5, 14, 30, 55, 91, 155, 255, 424)
    assert schedule.total == 680
    assert [schedule.cfg_ramp(si) for si in (0, 3, 9)] == [0, pytest.approx(1 / 3), 1]
    assert PRESETS["d36"].schedule.total == 2240


@pytest.mark.parametrize("patch_nums", [(), (1,), (2, 3), (1, 3, 3), (1, 3, 2)])
def test_a_schedule_that_does_not_grow_from_1_is_refused(patch_nums):
    with pytest.raises(ValueError, match="patch_nums must"):
        ScaleSchedule(patch_nums)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ScaleSchedule(tuple(range(1, 100))),
        lambda: ScaleSchedule(tuple(range(1, 1_000_000))),
        lambda: ScaleSchedule((1, 2, 513)),
        lambda: ScaleSchedule((1, 10**400)),
        lambda: ModelConfig(129),
        lambda: ModelConfig(10**9),
        lambda: ModelConfig(16, num_classes=10**18),
        lambda: VQVAEConfig(ch_mult=(1,) * 17),
        lambda: VQVAEConfig(ch_mult=(1, 1025)),
        lambda: VQVAEConfig(num_res_blocks=65),
        lambda: VQVAEConfig(vocab_size=10**12),
        lambda: VQVAEConfig(ch=10**12, norm_groups=10**12),
        lambda: Activation(scales=tuple(range(1, 10**6)), token_rates=(1.0,) * 10**6, expert_rates=(1.0,) * 10**6),
    ],
)
def test_sizes_that_mean_endless_work_are_refused_at_once(make):
    """A manifest or a checkpoint may claim any number; whatever counts to one of them must end."""
    with pytest.raises(ValueError, match=r"at most|or below") as error:
        make()
    assert len(str(error.value)) < 1000


def test_the_largest_models_that_people_might_train_are_allowed():
    """1024 pixels, and a depth of 64: bounds are for files that lie."""
    config = ModelConfig(64, ScaleSchedule((1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)), num_classes=21_841)
    assert config.picture_size == 1024


@pytest.mark.parametrize("text", ["1,2,4,8", "1_2_4_8", "1, 2, 4, 8", "1_2,4_8"])
def test_patch_nums_are_read_with_commas_or_as_official_var_writes_them(text):
    """Python takes 1_2_4_8 for 1248."""
    assert ScaleSchedule.parse(text).patch_nums == (1, 2, 4, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1;2", r"whole numbers with commas between, such as 1,2,4,8; got '1;2'"),
        ("", "whole numbers"),
        ("1__2", "whole numbers"),
        ("1,-2", "whole numbers"),
        ("1,2.0", "whole numbers"),
        ("1,٢", "whole numbers"),
        ("1," + "9" * 5000, "whole numbers"),
        ("1\x1b[2J", r"got '1\\x1b\[2J'"),
        ("1248", "two or more numbers that start at 1"),
        ("2,4", r"patch_nums must be two or more numbers that start at 1, got \(2, 4\)"),
    ],
)
def test_a_text_that_is_no_patch_nums_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        ScaleSchedule.parse(text)


def test_the_papers_rates_keep_127_of_169_192_of_256_and_12_of_16():
    """126.75 is rounded; 0.75 means three quarters of tokens and of experts."""
    config = ModelConfig(16, activation=Activation())
    assert [config.kept_tokens(si) for si in (7, 8, 9)] == [100, 127, 192]
    assert [config.active_experts(si) for si in (7, 8, 9)] == [16, 12, 12]
    assert [config.is_active(si) for si in (7, 8, 9)] == [False, True, True]
    assert config.cached_tokens[8:] == (255, 255 + 127)
    assert config.dense().cached_tokens == config.schedule.starts


def test_rates_belong_to_the_scales_they_stand_beside():
    config = ModelConfig(16, activation=Activation(16, (10, 7), (0.25, 0.5), (1.0, 0.125)))
    assert (config.kept_tokens(9), config.kept_tokens(6), config.kept_tokens(8)) == (64, 32, 169)
    assert (config.active_experts(9), config.active_experts(6), config.active_experts(8)) == (16, 2, 16)


def test_halves_are_rounded_up():
    """Python's round would make 0.5 and 2.5 even: a rate of 1/8 of 4 tokens would keep none."""
    assert [round_half_up(value) for value in (0.5, 1.5, 2.5, 2.49, 126.75)] == [1, 2, 3, 2, 127]


@pytest.mark.parametrize("depth", [16, 20, 24, 30])
def test_depth_decides_width_and_heads(depth):
    config = PRESETS[f"d{depth}"]
    assert (config.width, config.heads, config.hidden) == (64 * depth, depth, 256 * depth)
    assert config.picture_size == 256
    assert PRESETS["d36"].picture_size == 512
    assert MINI.picture_size == 64


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        (dict(scales=(1,), token_rates=(0.4,), expert_rates=(1.0,)), "keeps no token of scale 1"),
        (dict(scales=(9,), token_rates=(1.0,), expert_rates=(0.03,)), "scale 9 keeps no expert of 16"),
        (dict(experts=24), "experts must divide the FFN's hidden width 4096"),
        (dict(experts=0), "experts must be at least 1"),
        (dict(scales=(9, 11)), r"active scales must lie in 1\.\.10"),
        (dict(scales=(0, 10)), "different numbers from 1"),
        (dict(scales=(9, 9)), "different numbers from 1"),
        (dict(scales=(8, 9, 10)), "token_rates needs one rate for each"),
        (dict(expert_rates=(0.75,)), "expert_rates needs one rate for each"),
        (dict(token_rates=(0.75, 0.0)), r"token_rates must lie in \(0, 1\]"),
        (dict(expert_rates=(1.01, 0.75)), r"expert_rates must lie in \(0, 1\]"),
        (dict(expert_rates=(float("nan"), 0.75)), r"expert_rates must lie in \(0, 1\]"),
        (dict(token_choice="static"), "token_choice must be dynamic or fixed, got 'static'"),
        (dict(expert_choice="fixed"), "expert_choice must be dynamic or static, got 'fixed'"),
    ],
)
def test_an_activation_that_cannot_work_is_refused_by_name(activation: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ModelConfig(16, activation=Activation(**activation))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig(0), "depth must be at least 1"),
        (lambda: ModelConfig(16, num_classes=0), "num_classes must be at least 1"),
        (lambda: ModelConfig(16, class_names=("cat", "dog")), "1000 classes need as many names"),
        (lambda: VQVAEConfig(ch=100), "multiple of the 32 norm_groups"),
        (lambda: VQVAEConfig(norm_groups=0), "sizes of a VQVAE must be 1 or more"),
        (lambda: VQVAEConfig(ch_mult=()), "sizes of a VQVAE must be 1 or more"),
        (lambda: Sampling(cfg=-1), "cfg must be 0 or more"),
        (lambda: Sampling(cfg=float("inf")), "cfg must be 0 or more"),
        (lambda: Sampling(top_k=0), r"top_k must lie in 1\.\.900"),
        (lambda: Sampling(top_k=901), r"top_k must lie in 1\.\.900"),
        (lambda: Sampling(top_p=0), r"top_p must lie in \(0, 1\]"),
        (lambda: Sampling(top_p=float("nan")), r"top_p must lie in \(0, 1\]"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- JSON

EXAMPLES = {
    **PRESETS,
    "sparse": ModelConfig(16, activation=Activation(8, (10, 7), (0.25, 0.5), (1, 0.125))),
    "Table 4's and 5's baseline": ModelConfig(16, activation=Activation(token_choice="fixed", expert_choice="static")),
    "activated nowhere": ModelConfig(3, ScaleSchedule((1, 3)), activation=Activation(3, (), (), ())),
    "guided strongly": ModelConfig(2, num_classes=2, class_names=("cat", "dog"), sampling=Sampling(4, 1, 1)),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_json_brings_a_configuration_back(name):
    config = EXAMPLES[name]
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_papers_choices_are_not_written():
    """Files from before there were others have no such fields, and hashes of bundles and checkpoints stay theirs."""
    fields = ["experts", "scales", "token_rates", "expert_rates"]
    assert list(ModelConfig(16, activation=Activation()).to_dict()["activation"]) == fields
    fixed = ModelConfig(16, activation=Activation(token_choice="fixed")).to_dict()["activation"]
    assert list(fixed) == [*fields, "token_choice"]
    named = {**ModelConfig(16, activation=Activation()).to_dict()}
    named["activation"] |= {"token_choice": "dynamic", "expert_choice": "dynamic"}
    assert ModelConfig.from_dict(named) == ModelConfig(16, activation=Activation())


def changed(path: str, value: Any) -> dict[str, Any]:
    """The JSON of a sparse model with one value replaced, or removed if `value` is ...."""
    data = copy.deepcopy(EXAMPLES["sparse"].to_dict())
    *parents, last = path.split(".")
    place = data
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("depth", ..., "lacks the field 'depth'"),
        ("activation", ..., "lacks the field 'activation'"),
        ("vqvae.ch", ..., "vqvae lacks the field 'ch'"),
        ("colour", "red", "'colour', which is not understood"),
        ("sampling.temperature", 1.0, "'temperature', which is not understood"),
        ("depth", 16.0, "depth must be of the type int, got 16.0"),
        ("depth", True, "depth must be of the type int, got True"),
        ("depth", "16", "depth must be of the type int, got '16'"),
        ("shared_adaln", 1, "shared_adaln must be of the type bool"),
        ("patch_nums", "123", "patch_nums must be of the type list"),
        ("patch_nums", [1, 2.0], "an item of patch_nums must be of the type int"),
        ("class_names", [3], "an item of class_names must be of the type str"),
        ("vqvae", None, "vqvae must be of the type dict"),
        ("vqvae.ch_mult", 4, "ch_mult must be of the type list"),
        ("activation", [], "activation must be of the type dict"),
        ("activation.token_choice", 1, "token_choice must be of the type str, got 1"),
        ("activation.expert_choice", "random", "expert_choice must be dynamic or static, got 'random'"),
        ("activation.scales", [9.0], "an item of scales must be of the type int"),
        ("activation.token_rates", ["a lot", 1], "an item of token_rates must be of the type float"),
        ("sampling.top_k", 900.0, "top_k must be of the type int"),
        ("sampling.cfg", False, "cfg must be of the type float"),
        ("depth", 0, "depth must be at least 1"),
        ("activation.experts", 24, "experts must divide"),
        ("patch_nums", [1, 4, 3], "patch_nums must increase"),
    ],
)
def test_json_that_is_no_configuration_is_refused_by_field(path, value, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(changed(path, value))


@pytest.mark.parametrize("data", [None, [], 3, "{}"])
def test_json_that_is_no_object_is_refused(data):
    with pytest.raises(ValueError, match="the configuration must be of the type dict"):
        ModelConfig.from_dict(data)
