"""Which model a command is about: a name, or a size with rates; and what these options come to."""

from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from actvar.checkpoint.files import Checkpoint
from actvar.cli.options import MAX_DEPTH, Preset, ZnormOption, integers, model_option, numbers, patch_nums_option
from actvar.config import DYNAMIC, PRESETS, Activation, Decoder, ModelConfig, SmallDecoderConfig
from actvar.errors import UsageError
from actvar.naming import NamedModel, named_model
from actvar.scales import ScaleSchedule

DEFAULT_RATE = 0.75
_CHOICE = "the model's, or dynamic"
RANDOM_ROUTER = "This checkpoint is dense: its router and selector are random, and only show size and speed."


@dataclass(frozen=True)
class Facts:
    """What a model's name does not tell: which of a Hub repository's it is, and what is in no official file."""

    revision: Annotated[str | None, model_option(help="Of a Hub repository: a branch, a tag or a commit.")] = None
    local_files_only: Annotated[
        bool, model_option(help="Of a Hub repository: what was fetched before, and no network.")
    ] = False
    znorm: ZnormOption = False


@dataclass(frozen=True)
class Rates:
    """What an ActVAR leaves out, as it was given: nothing, where the model's own is meant."""

    active_scales: Annotated[
        str | None,
        model_option(
            metavar="9,10", show_default="the model's, or the last two", help="Scales that leave something out."
        ),
    ] = None
    token_rates: Annotated[
        str | None,
        model_option(
            metavar="RATES",
            show_default="the model's, or 0.75",
            help="Share of tokens kept: one, or one for each active scale.",
        ),
    ] = None
    expert_rates: Annotated[
        str | None,
        model_option(
            metavar="RATES",
            show_default="the model's, or 0.75",
            help="Share of experts used: one, or one for each active scale.",
        ),
    ] = None
    experts: Annotated[
        int | None, model_option(show_default="the model's, or 16", help="Number of experts that each FFN is cut into.")
    ] = None
    token_choice: Annotated[
        Literal["dynamic", "fixed"] | None,
        model_option(
            show_default=_CHOICE,
            help="dynamic: each block keeps tokens of its own. fixed: all keep what the first one chose (Table 4).",
        ),
    ] = None
    expert_choice: Annotated[
        Literal["dynamic", "static"] | None,
        model_option(
            show_default=_CHOICE,
            help="dynamic: each token uses experts of its own. static: all use the same ones (Table 5), which every "
            "engine runs as a smaller FFN.",
        ),
    ] = None

    @property
    def are_given(self) -> bool:
        """Whether there is anything to change."""
        return any(option is not None for option in astuple(self))

    def of(self, config: ModelConfig) -> Activation | None:
        """What they come to, filled up from the model's own activation; None where nothing was given.

        Raises:
            UsageError: an option is no list of numbers, or does not fit the others.
        """
        if not self.are_given:
            return None
        own = config.activation
        chosen: tuple[int, ...] = _last_two(config)
        if self.active_scales:
            chosen = integers("--active-scales", self.active_scales)
        elif own:
            chosen = own.scales
        same_scales = own is not None and chosen == own.scales

        def rates(option: str, text: str | None, of_model: tuple[float, ...]) -> tuple[float, ...]:
            if text is None:
                return of_model if same_scales else (DEFAULT_RATE,) * len(chosen)
            values = numbers(option, text)
            return values * len(chosen) if len(values) == 1 else values

        try:
            return replace(
                own or Activation(),
                experts=self.experts if self.experts is not None else own.experts if own else Activation.experts,
                scales=chosen,
                token_rates=rates("--token-rates", self.token_rates, own.token_rates if own else ()),
                expert_rates=rates("--expert-rates", self.expert_rates, own.expert_rates if own else ()),
                token_choice=self.token_choice or (own.token_choice if own else DYNAMIC),
                expert_choice=self.expert_choice or (own.expert_choice if own else DYNAMIC),
            )
        except ValueError as error:
            raise UsageError(f"The activation cannot be used: {error}.") from None


def guided_until(model: ModelConfig, scale: int | None) -> ModelConfig:
    """A model by its size, guided up to a scale (`--guidance-until`).

    Raises:
        UsageError: its guidance cannot end there.
    """
    try:
        return model.guided_until(scale)
    except ValueError as error:
        raise UsageError(f"--guidance-until: {error}.") from None


def form_suffix(guided_until: int | None, smooth: bool) -> str:
    """What a bundle's folder is called besides, where its guidance ends at a scale, and where it mixes codes."""
    return ("" if guided_until is None else f"-guided-{guided_until}") + ("-smooth" if smooth else "")


@dataclass(frozen=True)
class Size:
    """A model by its size alone."""

    preset: Annotated[
        Preset | None,
        model_option(
            metavar="SIZE",
            help="In place of a model the paper's ActVAR of a size, with random weights (build: none yet): mini, d16, "
            "d20, d24, d30 or d36. It keeps 75 % at its last two scales, unless rates are named.",
        ),
    ] = None
    depth: Annotated[int | None, model_option(min=1, max=MAX_DEPTH, help="The same by its depth: 20 is d20.")] = None
    dense: Annotated[bool, model_option(help="With --preset or --depth: the VAR of that size.")] = False
    guidance_free: Annotated[
        bool, model_option(help="With --preset or --depth: a model that needs no guidance, with one row for a picture.")
    ] = False
    patch_nums: Annotated[
        str | None,
        patch_nums_option(
            "Sides of its token maps; with --model of a checkpoint's, where its file does not tell them.",
            "the preset's, or the checkpoint's",
        ),
    ] = None

    @property
    def is_given(self) -> bool:
        """Whether it names a model."""
        return bool(self.preset or self.depth)

    @property
    def name(self) -> str:
        """Of the size: "mini", "d20"."""
        return self.preset or f"d{self.depth}"

    def refuse_beside(self, model: str | None, vqvae: Path | None, rates: Rates) -> None:
        """Refuse options that exclude each other, or belong to what is not given.

        Raises:
            UsageError: there are any.
        """
        if self.preset and self.depth:
            raise UsageError("--depth and --preset both name a model. Give one of them.")
        if self.is_given and model:
            option = "--preset" if self.preset else "--depth"
            raise UsageError(f"{option} and --model both name a model. Give one of them.")
        if vqvae and not model:
            raise UsageError("--vqvae belongs to a checkpoint that --model names, and there is none. Leave it out.")
        if self.patch_nums and not (self.is_given or model):
            raise UsageError(
                "--patch-nums belongs to a --depth, to a --preset, or to a checkpoint that --model names, and there is "
                "none. Leave it out."
            )
        if self.dense and not self.is_given:
            raise UsageError("--dense belongs to a --depth or a --preset; a model is what it is. Leave it out.")
        if self.guidance_free and not self.is_given:
            raise UsageError(
                "--guidance-free belongs to a --depth or a --preset; a model is trained to be so. Leave it out."
            )
        if self.dense and rates.are_given:
            raise UsageError("Rates, scales and experts shape what is exported, and not densely. Leave them out.")

    def dense_config(self) -> ModelConfig:
        """The VAR of this size.

        Raises:
            UsageError: the token maps are none.
        """
        config = PRESETS[self.name] if self.name in PRESETS else ModelConfig(self.depth or 0)
        config = replace(config, guided_scales=0) if self.guidance_free else config
        return replace(config, schedule=chosen_schedule(self.patch_nums)) if self.patch_nums else config

    def model(self, rates: Rates, decoder: Decoder | None = None) -> tuple[str, ModelConfig]:
        """The model, and what people call it: the paper's ActVAR of this size, or the VAR if it is to be dense.

        The one rule of all commands: an ActVAR leaves out a quarter at its last two scales, unless rates say otherwise.
        A small decoder is of the width and depth that `train decoder` makes.

        Raises:
            UsageError: an option does not fit the others.
        """
        config = self.dense_config()
        name = self.name if self.dense else f"actvar-{self.name}"
        if self.guidance_free:
            name += "-guidance-free"
        if decoder == "small":
            name, config = f"{name}-small-decoder", replace(config, small_decoder=SmallDecoderConfig())
        if self.dense:
            return name, config
        config = activated(config, replace(Activation(), scales=_last_two(config)))
        activation = rates.of(config)
        return name, activated(config, activation) if activation else config


def activated(config: ModelConfig, activation: Activation) -> ModelConfig:
    """The ActVAR of this activation.

    Raises:
        UsageError: it does not fit the model.
    """
    try:
        return replace(config, activation=activation)
    except ValueError as error:
        raise UsageError(f"The activation does not fit the model: {error}.") from None


def chosen_schedule(patch_nums: str) -> ScaleSchedule:
    """The token maps that `--patch-nums` names.

    Raises:
        UsageError: they are none.
    """
    try:
        return ScaleSchedule.parse(patch_nums)
    except ValueError as error:
        raise UsageError(f"--patch-nums {patch_nums}: {error}.") from None


def chosen_model(
    model: str, vqvae: Path | None, patch_nums: str | None, facts: Facts, with_plans: bool = False
) -> NamedModel:
    """What `--model` names; of a bundle on the Hub with its plans, where they are wanted.

    Raises:
        UsageError: nothing bears this name, or an option does not belong to it.
        ActVARError: it cannot be fetched.
    """
    return named_model(
        model,
        vqvae,
        schedule=chosen_schedule(patch_nums) if patch_nums else None,
        znorm=facts.znorm,
        revision=facts.revision,
        local_files_only=facts.local_files_only,
        with_plans=with_plans,
    )


def chosen_checkpoint(model: str, vqvae: Path | None, patch_nums: str | None, facts: Facts) -> tuple[str, Checkpoint]:
    """The checkpoint that `--model` names, and what people call it.

    Raises:
        UsageError: it names a bundle, or nothing, or an option does not belong to it.
    """
    named = chosen_model(model, vqvae, patch_nums, facts)
    if named.checkpoint is None:
        raise UsageError(f"--model {model} is a bundle, and a checkpoint is wanted here. Name its file.")
    return named.name, named.checkpoint


def _last_two(config: ModelConfig) -> tuple[int, int]:
    """The scales that the paper's ActVAR leaves something out of: 9 and 10 of ten."""
    return len(config.schedule) - 1, len(config.schedule)
