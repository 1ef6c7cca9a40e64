"""What a model is: frozen dataclasses that the checkpoint, the exporter and the runtime agree on.

`depth` derives width and heads, as in VAR. Plain Python: no tensors, no files.
"""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias

from actvar.class_names import CLASS_NAMES
from actvar.errors import counted, shown
from actvar.scales import LARGE_PATCH_NUMS, MAX_SCALES, ScaleSchedule

HEAD_WIDTH = 64
NORM_EPS = 1e-6
"""Of the transformer's LayerNorms."""
MAX_SCALE_MUL = math.log(100)
"""The most that counts of a head's learned temperature, which is a logarithm."""
SORTED_CODES = 900
"""The most that top_k can be: as many codes are sorted (official VAR samples from its best 900)."""

# Sizes that a file may claim: far above every known model, so that whatever counts to one of them ends.
MAX_DEPTH = 128
MAX_CLASSES = 1_000_000
MAX_LEVELS = 16  # of the VQVAE, each half as wide as the one before
_MAX_VQVAE = {
    "vocab_size": 1 << 20,
    "z_channels": 1 << 14,
    "ch": 1 << 14,
    "num_res_blocks": 64,
    "norm_groups": 1 << 14,
    "phi_count": 1 << 10,
}
_SAID_IF_OTHER = ("phi_count", "code_kernel", "znorm")  # in JSON: of a VQVAE, where it is not the official choice
_MAX_MULTIPLE = 1 << 10  # in ch_mult
_MAX_SMALL_WIDTH, _MAX_SMALL_DEPTH = 1 << 12, 64

Decoder: TypeAlias = Literal["full", "small"]
"""The VQVAE's, or the small one beside it."""

DYNAMIC, FIXED, STATIC = "dynamic", "fixed", "static"
_CHOICES = {"token_choice": (DYNAMIC, FIXED), "expert_choice": (DYNAMIC, STATIC)}


@dataclass(frozen=True)
class VQVAEConfig:
    """Shape of the multi-scale VQVAE; the defaults are those of the official `vae_ch160v4096z32.pth`.

    `phi_count` convolutions follow the upsamplings of all scales; `code_kernel` is the side of those before and after
    the quantizer; with `znorm` a picture's codes are those of the nearest direction. What is not said of the last three
    is the official choice.
    """

    vocab_size: int = 4096
    z_channels: int = 32
    ch: int = 160
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    norm_groups: int = 32
    phi_count: int = 4
    code_kernel: int = 3
    znorm: bool = False

    def __post_init__(self) -> None:
        sizes = (self.vocab_size, self.z_channels, self.ch, *self.ch_mult, self.num_res_blocks, self.norm_groups)
        sizes += (self.phi_count,)
        if not self.ch_mult or min(sizes) < 1:
            raise ValueError(f"the sizes of a VQVAE must be 1 or more, got {shown(self)}")
        for name, largest in _MAX_VQVAE.items():
            if getattr(self, name) > largest:
                raise ValueError(f"{name} of a VQVAE must be {largest} at most, got {getattr(self, name)}")
        if len(self.ch_mult) > MAX_LEVELS or max(self.ch_mult) > _MAX_MULTIPLE:
            raise ValueError(
                f"ch_mult must be {MAX_LEVELS} numbers up to {_MAX_MULTIPLE} at most, got {shown(self.ch_mult)}"
            )
        if self.code_kernel not in (1, 3):
            raise ValueError(f"code_kernel of a VQVAE must be 1 or 3, got {self.code_kernel}")
        if self.ch % self.norm_groups:
            raise ValueError(f"ch must be a multiple of the {self.norm_groups} norm_groups, got {self.ch}")

    @property
    def downsampling(self) -> int:
        """Pixels per side of one latent."""
        return 2 ** (len(self.ch_mult) - 1)


@dataclass(frozen=True)
class SmallDecoderConfig:
    """A decoder that was learned from the VQVAE's: its channels, and its blocks at each side below the picture's.

    Raises:
        ValueError: a number outside its range.
    """

    width: int = 64
    depth: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.width <= _MAX_SMALL_WIDTH:
            raise ValueError(f"width of a small decoder must lie in 1..{_MAX_SMALL_WIDTH}, got {self.width}")
        if not 1 <= self.depth <= _MAX_SMALL_DEPTH:
            raise ValueError(f"depth of a small decoder must lie in 1..{_MAX_SMALL_DEPTH}, got {self.depth}")


@dataclass(frozen=True)
class Activation:
    """Which tokens and experts work at which scales (ActVAR, Sec. 3.2 and 3.3).

    `scales` are numbered from 1, as in the paper; `token_rates` and `expert_rates` hold one share in (0, 1] for each.
    Scales that are not named run densely.

    The choices are the paper's own, or what its tables hold against them at the same rates:

    - `token_choice` "dynamic": every block selects its tokens. "fixed": all blocks keep the tokens that the first one
      selects at that scale (fixed token pruning, Table 4).
    - `expert_choice` "dynamic": every token is routed. "static": every block has one order of its experts, learned and
      the same for all tokens (static weight pruning, Table 5).

    Raises:
        ValueError: scales repeat or are below 1, the counts differ, a rate lies outside (0, 1], or a choice is unknown.
    """

    experts: int = 16
    scales: tuple[int, ...] = (9, 10)
    token_rates: tuple[float, ...] = (0.75, 0.75)
    expert_rates: tuple[float, ...] = (0.75, 0.75)
    token_choice: str = DYNAMIC
    expert_choice: str = DYNAMIC

    def __post_init__(self) -> None:
        if self.experts < 1:
            raise ValueError(f"experts must be at least 1, got {self.experts}")
        if len(self.scales) > MAX_SCALES:
            raise ValueError(f"active scales must be {MAX_SCALES} at most, got {len(self.scales)}")
        if len(set(self.scales)) != len(self.scales) or any(scale < 1 for scale in self.scales):
            raise ValueError(f"active scales must be different numbers from 1, got {self.scales}")
        for name, rates in (("token_rates", self.token_rates), ("expert_rates", self.expert_rates)):
            if len(rates) != len(self.scales):
                raise ValueError(f"{name} needs one rate for each of the scales {self.scales}, got {shown(rates)}")
            if any(not 0 < rate <= 1 for rate in rates):
                raise ValueError(f"{name} must lie in (0, 1], got {rates}")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}, got {getattr(self, name)!r}")

    @property
    def other_choices(self) -> str:
        """Those that are not the paper's, in words: "fixed tokens, static experts"; empty without any."""
        tokens = ["fixed tokens"] if self.token_choice == FIXED else []
        return ", ".join([*tokens, *(["static experts"] if self.expert_choice == STATIC else [])])

    def token_rate(self, si: int) -> float:
        """Share of the tokens that each block updates at scale index si (from 0)."""
        return self.token_rates[self.scales.index(si + 1)] if si + 1 in self.scales else 1.0

    def active_experts(self, si: int) -> int:
        """Experts that each token uses at scale index si (from 0)."""
        rate = self.expert_rates[self.scales.index(si + 1)] if si + 1 in self.scales else 1.0
        return round_half_up(rate * self.experts)


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: guidance strength at the last scale, and the cuts of the distribution.

    Raises:
        ValueError: a number outside its range.
    """

    cfg: float = 1.5
    top_k: int = 900
    top_p: float = 0.96

    def __post_init__(self) -> None:
        if not (math.isfinite(self.cfg) and self.cfg >= 0):
            raise ValueError(f"cfg must be 0 or more, got {self.cfg}")
        if not 1 <= self.top_k <= SORTED_CODES:
            raise ValueError(f"top_k must lie in 1..{SORTED_CODES}, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")


@dataclass(frozen=True)
class ModelConfig:
    """A VAR (activation None) or an ActVAR, with its VQVAE; `sampling` is what it is used with unless told otherwise.

    `guided_scales` says how many of the first scales are guided, each picture with a row of its class and a row without
    one. None is all of them: an ordinary model. 0 is a guidance-free model, which draws by the conditional row alone.
    After the last guided scale the conditional row goes on alone.

    A model with a `small_decoder` draws with that one.

    A `smooth` one adds to f_hat not the code that was drawn, but a mixture of codes (official VAR's `more_smooth`).

    Raises:
        ValueError: the parts do not fit each other, or a rate keeps no token or no expert.
    """

    depth: int
    schedule: ScaleSchedule = field(default_factory=ScaleSchedule)
    num_classes: int = 1000
    shared_adaln: bool = False
    vqvae: VQVAEConfig = field(default_factory=VQVAEConfig)
    activation: Activation | None = None
    class_names: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    guided_scales: int | None = None
    small_decoder: SmallDecoderConfig | None = None
    smooth: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.depth <= MAX_DEPTH:
            raise ValueError(f"depth must be at least 1 and at most {MAX_DEPTH}, got {self.depth}")
        if not 1 <= self.num_classes <= MAX_CLASSES:
            raise ValueError(f"num_classes must be at least 1 and at most {MAX_CLASSES}, got {self.num_classes}")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(
                f"{counted(self.num_classes, 'class', 'classes')} need as many names, got {len(self.class_names)}"
            )
        if self.guided_scales is not None and not 0 <= self.guided_scales < len(self.schedule):
            most = len(self.schedule) - 1
            raise ValueError(f"guided_scales must lie in 0..{most} or be left out, got {shown(self.guided_scales)}")
        if self.activation is None:
            return
        if self.hidden % self.activation.experts:
            raise ValueError(
                f"experts must divide the FFN's hidden width {self.hidden} (4C), got {self.activation.experts}"
            )
        if any(scale > len(self.schedule) for scale in self.activation.scales):
            raise ValueError(f"active scales must lie in 1..{len(self.schedule)}, got {self.activation.scales}")
        for si in range(len(self.schedule)):
            if self.kept_tokens(si) < 1:
                raise ValueError(f"the token rate {self.activation.token_rate(si)} keeps no token of scale {si + 1}")
            if self.active_experts(si) < 1:
                raise ValueError(f"the expert rate of scale {si + 1} keeps no expert of {self.activation.experts}")

    @property
    def width(self) -> int:
        """C."""
        return HEAD_WIDTH * self.depth

    @property
    def heads(self) -> int:
        """Attention heads, each HEAD_WIDTH wide."""
        return self.depth

    @property
    def hidden(self) -> int:
        """Hidden width of the FFN, 4C."""
        return 4 * self.width

    @property
    def picture_size(self) -> int:
        """Pixels per side of a picture."""
        return self.schedule.side * self.vqvae.downsampling

    def kept_tokens(self, si: int) -> int:
        """K: the tokens that each block updates at scale index si (from 0)."""
        tokens = self.schedule.tokens[si]
        return round_half_up(self.activation.token_rate(si) * tokens) if self.activation else tokens

    def active_experts(self, si: int) -> int:
        """K_w: the experts that each token uses at scale index si (from 0); 1 of 1 for a dense FFN."""
        return self.activation.active_experts(si) if self.activation else 1

    def is_active(self, si: int) -> bool:
        """Whether scale index si leaves out any token or expert."""
        if self.activation is None:
            return False
        return self.kept_tokens(si) < self.schedule.tokens[si] or self.active_experts(si) < self.activation.experts

    def row_groups(self, si: int) -> int:
        """G of scale index si (from 0): 2 where it is guided, with a conditional and an unconditional group of rows."""
        return 2 if self.guided_scales is None or si < self.guided_scales else 1

    @property
    def is_guided(self) -> bool:
        """Whether any scale is guided, so that the strength of guidance means something."""
        return self.guided_scales != 0

    @property
    def cached_tokens(self) -> tuple[int, ...]:
        """P of every scale as inference has it: the tokens that the scales before it left in each block's KV cache."""
        kept = [self.kept_tokens(si) for si in range(len(self.schedule))]
        return tuple(sum(kept[:si]) for si in range(len(kept)))

    def guided_until(self, scale: int | None) -> "ModelConfig":
        """The same model, guided at its first `scale` scales alone; None leaves it as it is, and its last scale is all.

        Raises:
            ValueError: the model has no guidance that could end, or cannot do without any.
        """
        if scale is None:
            return self
        if not self.is_guided:
            raise ValueError("the model is guidance-free, and has no guidance that could end")
        if scale == 0:
            raise ValueError(
                "guidance until scale 0 is none at all, for which a model is trained to be guidance-free "
                "(train stage2 --distil-guidance); to draw without guidance set its strength to 0"
            )
        last = len(self.schedule)
        if not 1 <= scale <= last:
            raise ValueError(f"guidance must end at a scale of 1..{last - 1}, or at {last}, which is all; got {scale}")
        return replace(self, guided_scales=scale if scale < last else None)

    def dense(self) -> "ModelConfig":
        """The VAR that this ActVAR was made from."""
        return replace(self, activation=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        return {
            "depth": self.depth,
            "patch_nums": list(self.schedule.patch_nums),
            "num_classes": self.num_classes,
            "shared_adaln": self.shared_adaln,
            "vqvae": _vqvae_dict(self.vqvae),
            "activation": self.activation and _activation_dict(self.activation),
            "class_names": list(self.class_names),
            "sampling": asdict(self.sampling),
            **({} if self.guided_scales is None else {"guided_scales": self.guided_scales}),
            **({} if self.small_decoder is None else {"small_decoder": asdict(self.small_decoder)}),
            **({"smooth": True} if self.smooth else {}),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ModelConfig":
        """Read what `to_dict` wrote.

        Raises:
            ValueError: a field is missing, unknown, of the wrong type, or does not fit the others.
        """
        given = data.get("activation") if isinstance(data, dict) else None
        like = replace(MINI, activation=Activation()).to_dict()
        if given is None:
            like["activation"] = None
        elif isinstance(given, dict):
            like["activation"] |= {name: DYNAMIC for name in _CHOICES if name in given}
        if isinstance(data, dict) and isinstance(vqvae := data.get("vqvae"), dict):
            like["vqvae"] |= {name: getattr(VQVAEConfig(), name) for name in _SAID_IF_OTHER if name in vqvae}
        if isinstance(data, dict) and "guided_scales" in data:
            like["guided_scales"] = 0
        if isinstance(data, dict) and "small_decoder" in data:
            like["small_decoder"] = asdict(SmallDecoderConfig())
        if isinstance(data, dict) and "smooth" in data:
            like["smooth"] = True
        _check_types("the configuration", data, like)
        activation = data["activation"]
        return cls(
            depth=data["depth"],
            schedule=ScaleSchedule(tuple(data["patch_nums"])),
            num_classes=data["num_classes"],
            shared_adaln=data["shared_adaln"],
            vqvae=VQVAEConfig(**{name: _frozen(value) for name, value in data["vqvae"].items()}),
            activation=activation and Activation(**{name: _frozen(value) for name, value in activation.items()}),
            class_names=tuple(data["class_names"]),
            sampling=Sampling(**data["sampling"]),
            guided_scales=data.get("guided_scales"),
            small_decoder=SmallDecoderConfig(**data["small_decoder"]) if "small_decoder" in data else None,
            smooth=data.get("smooth", False),
        )


def round_half_up(value: float) -> int:
    """Nearest integer, halves up: 126.75 -> 127, 0.5 -> 1. Python's own `round` takes halves to the even side."""
    return math.floor(value + 0.5)


def _activation_dict(activation: Activation) -> dict[str, Any]:
    """Plain JSON types; a choice that is the paper's is left out, as it was when there was no other."""
    fields = {name: _plain(getattr(activation, name)) for name in Activation.__dataclass_fields__}
    return {name: value for name, value in fields.items() if name not in _CHOICES or value != DYNAMIC}


def _vqvae_dict(vqvae: VQVAEConfig) -> dict[str, Any]:
    """Plain JSON types; what is as it was when there was no choice is left out."""
    official = VQVAEConfig()
    fields = {name: getattr(vqvae, name) for name in VQVAEConfig.__dataclass_fields__}
    dropped = [name for name in _SAID_IF_OTHER if fields[name] == getattr(official, name)]
    return {name: _plain(value) for name, value in fields.items() if name not in dropped}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_types(where: str, value: Any, like: Any) -> None:
    """Hold JSON to the types of an example, whose lists have items of one type; an integer may stand for a float."""
    wanted = (float, int) if isinstance(like, float) else (type(like),)
    if type(value) not in wanted:
        raise ValueError(f"{where} must be of the type {wanted[0].__name__}, got {shown(repr(value))}")
    if isinstance(like, dict):
        for name in like.keys() - value.keys():
            raise ValueError(f"{where} lacks the field {name!r}")
        for name in value.keys() - like.keys():
            raise ValueError(f"{where} has the field '{shown(name)}', which is not understood")
        for name, item in value.items():
            _check_types(name, item, like[name])
    elif isinstance(like, list):
        for item in value:
            _check_types(f"an item of {where}", item, like[0])


MINI = ModelConfig(
    depth=4,
    num_classes=len(CLASS_NAMES),
    # 4 groups, not 32: a norm over one channel alone would wipe out a picture's mean colour.
    vqvae=VQVAEConfig(vocab_size=512, z_channels=16, ch=32, ch_mult=(1, 2, 3), num_res_blocks=1, norm_groups=4),
    class_names=CLASS_NAMES,
)

PRESETS: dict[str, ModelConfig] = {
    "mini": MINI,
    **{f"d{depth}": ModelConfig(depth=depth) for depth in (16, 20, 24, 30)},
    "d36": ModelConfig(depth=36, schedule=ScaleSchedule(LARGE_PATCH_NUMS), shared_adaln=True),
}
