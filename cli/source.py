"""The options of drawing and of engines, and the pipeline that they come to: `actvar.Pipeline` does the work.

Shared by the commands that draw for people and for scores.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from actvar.arguments import require_guided
from actvar.cli.options import (
    DecoderOption,
    DeviceOption,
    Fp16Option,
    PrecisionOption,
    SmoothOption,
    ThreadsOption,
    batch_size_option,
    chosen_precision,
    drawing_option,
    engine_option,
)
from actvar.config import ModelConfig, Sampling
from actvar.errors import UsageError
from actvar.export.front_door import AnyBackend, Pipeline
from actvar.naming import NamedModel

AnyBackendOption: TypeAlias = Annotated[
    AnyBackend,
    engine_option(
        "--backend",
        metavar="BACKEND",
        help="onnxruntime draws with the graphs, tensorrt with engines built from them, torch with the checkpoint.",
    ),
]


@dataclass(frozen=True)
class Guidance:
    """How tokens are drawn; the model's own values where nothing is given."""

    cfg: Annotated[
        float | None, drawing_option(show_default="the model's", help="Strength of guidance, 0 or more.")
    ] = None
    top_k: Annotated[
        int | None, drawing_option(show_default="the model's", help="Draw from this many best codes, 1 to 900.")
    ] = None
    top_p: Annotated[
        float | None, drawing_option(show_default="the model's", help="Draw from the codes with this mass, up to 1.")
    ] = None

    def of(self, model: ModelConfig) -> Sampling:
        """What it comes to for a model.

        Raises:
            UsageError: a number is outside its range, or --cfg is given for a guidance-free model.
        """
        own = model.sampling
        if self.cfg is not None:
            require_guided(model, "--cfg")
        try:
            return Sampling(
                own.cfg if self.cfg is None else self.cfg,
                own.top_k if self.top_k is None else self.top_k,
                own.top_p if self.top_p is None else self.top_p,
            )
        except ValueError as error:
            raise UsageError(f"--{str(error).replace('_', '-')}.") from None  # its first word is the option's


@dataclass(frozen=True)
class Engine:
    """What runs the model, and how much at a time."""

    backend: AnyBackendOption = "onnxruntime"
    device: DeviceOption = None
    precision: PrecisionOption = None
    fp16: Fp16Option = False
    decoder: DecoderOption = None
    batch_size: Annotated[
        int, batch_size_option("Pictures that are drawn at a time; more take more memory, and no picture changes.")
    ] = 1
    threads: ThreadsOption = 0
    smooth: SmoothOption = False

    @property
    def place(self) -> str:
        """The device, chosen or not."""
        return self.device or ("cuda" if self.backend == "tensorrt" else "cpu")

    def open(
        self, named: NamedModel, accept: Callable[[ModelConfig], None], guidance_until: int | None = None
    ) -> Pipeline:
        """A pipeline of the model; see `Pipeline.from_pretrained`.

        Raises:
            UsageError: options exclude each other, or do not fit the model.
            ActVARError: the model cannot be used, or what it needs is not installed.
        """
        return Pipeline.from_pretrained(
            named,
            precision=chosen_precision(self.precision, self.fp16),
            decoder=self.decoder,
            smooth=self.smooth or None,
            backend=self.backend,
            device=self.device,
            batch_size=self.batch_size,
            threads=self.threads,
            guidance_until=guidance_until,
            accept=accept,
        )
