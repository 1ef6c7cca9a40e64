"""Which model a command is about: the options that shape one, and what they come to.

Shared by the commands that make bundles.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from actvar.bundle.contract import CPU_PRECISIONS
from actvar.config import PRESETS, Activation, ModelConfig
from actvar.errors import UsageError
from actvar.scales import ScaleSchedule

Preset: TypeAlias = Literal["mini", "d16", "d20", "d24", "d30", "d36"]
DEFAULT_RATE = 0.75

CheckpointOption: TypeAlias = Annotated[Path | None, typer.Option(help="A .safetensors, or an official .pth file.")]
VqvaeOption: TypeAlias = Annotated[Path | None, typer.Option(help="The VQVAE that belongs to an official checkpoint.")]
Fp16Option: TypeAlias = Annotated[
    bool, typer.Option("--fp16", help="Matrices in fp16; what must be exact stays in fp32.")
]
Bf16Option: TypeAlias = Annotated[bool, typer.Option("--bf16", help="Matrices in bfloat16, else as --fp16.")]
Int8Option: TypeAlias = Annotated[
    bool, typer.Option("--int8", help="Matrices and convolutions in int8, for ONNX Runtime on a CPU.")
]
Fp16WeightsOption: TypeAlias = Annotated[
    bool, typer.Option("--fp16-weights", help="Matrices held in fp16 and computed in fp32, for ONNX Runtime on a CPU.")
]
ActiveScalesOption: TypeAlias = Annotated[
    str | None, typer.Option(show_default="the last two", help="Scales that leave tokens and experts out, from 1.")
]
TokenRatesOption: TypeAlias = Annotated[
    str | None, typer.Option(show_default="0.75", help="Share of tokens kept at each active scale, or one for all.")
]
ExpertRatesOption: TypeAlias = Annotated[
    str | None,
    typer.Option(show_default="0.75", help="Share of experts used at each active scale, or one for all."),
]
ExpertsOption: TypeAlias = Annotated[
    int | None, typer.Option(show_default="the model's, or 16", help="Experts that the FFN is cut into.")
]
PatchNumsOption: TypeAlias = Annotated[
    str | None,
    typer.Option(show_default="the preset's", help="Sides of a preset's token maps, such as 1,2,4,8,16."),
]


def chosen_precision(**given: bool) -> str:
    """The precision that the options name, which are given as they are called in Python.

    Raises:
        UsageError: more than one is given.
    """
    named = [name.replace("_", "-") for name, is_given in given.items() if is_given]
    if len(named) > 1:
        options = " and ".join(f"--{name}" for name in named)
        raise UsageError(f"{options} exclude each other. Give one of them.")
    return named[0] if named else "fp32"


def refuse_elsewhere(option: str, precision: str | None, backend: str, device: str | None) -> None:
    """Refuse precisions that are for ONNX Runtime on a CPU for everything else.

    Args:
        option: that asks for the precision.
        precision: of the graphs.
        backend: what runs them.
        device: where; None leaves it to the backend.

    Raises:
        UsageError: it is one of these, and for something else.
    """
    if precision in CPU_PRECISIONS and (backend != "onnxruntime" or device == "cuda"):
        other = f"--backend {backend}" if backend != "onnxruntime" else "--device cuda"
        raise UsageError(f"{option} is for ONNX Runtime on a CPU. Leave {other} out, or take another precision.")


def preset_config(name: str, patch_nums: str | None) -> ModelConfig:
    """A preset's configuration, with other token maps if asked for.

    Raises:
        UsageError: they are no token maps.
    """
    return with_patch_nums(PRESETS[name], patch_nums)


def with_patch_nums(config: ModelConfig, patch_nums: str | None) -> ModelConfig:
    """The same model with other token maps, if asked for.

    Raises:
        UsageError: they are no token maps.
    """
    if patch_nums is None:
        return config
    try:
        return replace(config, schedule=ScaleSchedule(integers("--patch-nums", patch_nums)))
    except ValueError as error:
        raise UsageError(f"--patch-nums {patch_nums}: {error}.") from None


def chosen_activation(
    config: ModelConfig,
    scales: str | None,
    token_rates: str | None,
    expert_rates: str | None,
    experts: int | None,
) -> Activation | None:
    """What is asked for, filled up from the model's own activation; None where nothing is asked for.

    Raises:
        UsageError: an option is no list of numbers, or does not fit the others.
    """
    if scales is token_rates is expert_rates is experts is None:
        return None
    own = config.activation
    last_two = (len(config.schedule) - 1, len(config.schedule))
    chosen = integers("--active-scales", scales) if scales else own.scales if own else last_two
    same_scales = own is not None and chosen == own.scales

    def rates(option: str, text: str | None, of_model: tuple[float, ...]) -> tuple[float, ...]:
        if text is None:
            return of_model if same_scales else (DEFAULT_RATE,) * len(chosen)
        values = _numbers(option, text)
        return values * len(chosen) if len(values) == 1 else values

    try:
        return replace(
            own or Activation(),
            experts=experts if experts is not None else own.experts if own else Activation.experts,
            scales=chosen,
            token_rates=rates("--token-rates", token_rates, own.token_rates if own else ()),
            expert_rates=rates("--expert-rates", expert_rates, own.expert_rates if own else ()),
        )
    except ValueError as error:
        raise UsageError(f"The activation cannot be used: {error}.") from None


def activated(config: ModelConfig, activation: Activation) -> ModelConfig:
    """The ActVAR of this activation.

    Raises:
        UsageError: it does not fit the model.
    """
    try:
        return replace(config, activation=activation)
    except ValueError as error:
        raise UsageError(f"The activation does not fit the model: {error}.") from None


def integers(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers with commas between.

    Raises:
        UsageError: the text is something else.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} must be whole numbers with commas between, such as 9,10; got {text!r}.") from None


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} must be numbers with commas between, such as 0.75,0.5; got {text!r}.") from None
