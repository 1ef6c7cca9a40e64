"""What graphs are compared with for speed: our eager model or official VAR, as they are, compiled, or in bfloat16.

Official VAR is whatever checkout of it the user names; nothing of it is here. It is imported under the names that it
gives itself, among them `models` and `utils`, so it wants a process that does nothing else.

Letters in shapes: B pictures, H height and W width of a picture.
"""

import importlib
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from actvar.benchmarks.pictures import products
from actvar.benchmarks.pictures.graph_times import Lap
from actvar.bundle.contract import scale_name
from actvar.checkpoint.model import load_model
from actvar.config import ModelConfig
from actvar.errors import ActVARError
from actvar.generation import generate
from actvar.image import to_bytes
from actvar.runtime.backends.protocol import Device

_COMPILED_VARIANTS = 1024  # torch.compile gives a function up after 8, and every scale is one

Draw: TypeAlias = Callable[[list[int], int], Tensor]
"""Classes and the first picture's number to pictures in [0, 1], B3HW."""


@dataclass(frozen=True)
class Where:
    """What a peer runs on: so many threads of the CPU, the device, and the precision."""

    threads: int
    device: Device
    precision: str

    @property
    def half(self) -> torch.dtype | None:
        """What autocast is to compute in; None for fp32."""
        return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.precision)


class TorchDrawer:
    """Draws with PyTorch, a whole batch at once; see `actvar.benchmarks.pictures.graph_times.Drawer`."""

    def __init__(self, draw: Draw, classes: int, clock: "_ScaleClock", where: Where):
        self._draw, self._classes, self._clock, self._where = draw, classes, clock, where
        self._product: tuple[Tensor, ...] | None = None

    @torch.no_grad()
    def draw(self, first: int, pictures: int, looked_into: bool) -> list[Lap]:
        """See `Drawer`."""
        class_ids = [number % self._classes for number in range(first, first + pictures)]
        self._clock.start(looked_into)
        half = self._where.half
        with torch.autocast(self._where.device, dtype=half, enabled=half is not None):
            pictures_B3HW = self._draw(class_ids, first)
        to_bytes(pictures_B3HW.float().cpu().numpy())
        return self._clock.laps

    @torch.no_grad()
    def multiply(self) -> float:
        """See `Drawer`: by PyTorch, in the type of autocast."""
        where = self._where
        if self._product is None:
            shapes = (products.M, products.K), (products.N, products.K)
            self._product = tuple(torch.ones(shape, device=where.device, dtype=where.half) for shape in shapes)
        x_MK, weight_NK = self._product

        def multiply() -> None:
            nn.functional.linear(x_MK, weight_NK)
            if where.device == "cuda":
                torch.cuda.synchronize()

        return products.fastest(multiply)


class _ScaleClock:
    """Notes when methods return: a lap is from one such moment to the next."""

    def __init__(self, where: Where):
        self._where = where
        self._looks, self._since = False, 0.0
        self.laps: list[Lap] = []

    def start(self, looks: bool) -> None:
        """A batch begins."""
        self._looks, self._since, self.laps = looks, time.perf_counter(), []

    def laps_end_with(self, owner: Any, method: str, graph: str | None = None) -> None:
        """From now on a lap ends when this object's method returns: of this graph, or of the next scale."""
        original = getattr(owner, method)

        def observed(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if self._looks:
                if self._where.device == "cuda":
                    torch.cuda.synchronize()
                now = time.perf_counter()
                scales = sum(lap.graph.startswith("scale") for lap in self.laps)
                self.laps.append(Lap(graph or scale_name(scales), self._since, now))
                self._since = now
            return result

        setattr(owner, method, observed)


def open_network(checkpoint: Path, compiled: bool, where: Where) -> TorchDrawer:
    """Our model in PyTorch.

    Args:
        checkpoint: with its VQVAE.
        compiled: through torch.compile, block by block: the same code serves all blocks.
        where: it runs.

    Raises:
        CheckpointError: the checkpoint cannot be used.
    """
    torch.set_num_threads(where.threads)
    network = load_model(checkpoint).to(where.device)
    var, vqvae = network.var, network.vqvae
    if compiled:
        allow_a_variant_for_each_scale()
        for block in var.blocks:
            block.infer = torch.compile(block.infer)  # type: ignore[method-assign]
        vqvae.decode = torch.compile(vqvae.decode)  # type: ignore[method-assign]
    clock = _ScaleClock(where)
    clock.laps_end_with(var, "condition", "condition")
    clock.laps_end_with(vqvae.quantize, "enlarge")
    clock.laps_end_with(vqvae, "decode", "decoder")

    def draw(class_ids: list[int], first: int) -> Tensor:
        numbers = range(first, first + len(class_ids))
        return generate(network, class_ids, network.config.sampling, 0, numbers).pictures_B3HW

    return TorchDrawer(draw, network.config.num_classes, clock, where)


def allow_a_variant_for_each_scale() -> None:
    """Of every function that torch.compile compiles in this process."""
    torch._dynamo.config.recompile_limit = _COMPILED_VARIANTS
    torch._dynamo.config.accumulated_recompile_limit = _COMPILED_VARIANTS


# ---- official VAR


def open_official(folder: Path, model: ModelConfig, compiled: bool, where: Where) -> TorchDrawer:
    """Official VAR with random weights.

    Args:
        folder: a checkout of https://github.com/FoundationVision/VAR.
        model: whose dense shape it is given; its VQVAE must have official VAR's levels.
        compiled: its blocks and its decoder through torch.compile.
        where: it runs.

    Raises:
        ActVARError: it cannot be made.
    """
    torch.set_num_threads(where.threads)
    vae, var = _official_parts(folder, model, where.device)
    if compiled:
        _compile_official()
    clock = _ScaleClock(where)
    clock.laps_end_with(vae.quantize, "get_next_autoregressive_input")
    clock.laps_end_with(vae, "fhat_to_img", "decoder")
    sampling = model.sampling

    def draw(class_ids: list[int], first: int) -> Tensor:
        labels_B = torch.tensor(class_ids, device=where.device)
        cuts = {"cfg": sampling.cfg, "top_k": sampling.top_k, "top_p": sampling.top_p}
        return var.autoregressive_infer_cfg(len(class_ids), labels_B, g_seed=first, **cuts)

    return TorchDrawer(draw, model.num_classes, clock, where)


def _compile_official() -> None:
    """Put torch.compile around VAR's blocks and decoder, whose modules have been imported."""
    allow_a_variant_for_each_scale()
    # It does nothing but in training, and each block's own rate would make each block compile anew.
    sys.modules["models.helpers"].DropPath.forward = lambda module, x: x
    for module, name in (("models.basic_var", "AdaLNSelfAttn"), ("models.basic_vae", "Decoder")):
        owner = getattr(sys.modules[module], name)
        owner.forward = torch.compile(owner.forward, dynamic=False)


def _official_parts(folder: Path, model: ModelConfig, device: Device) -> tuple[Any, Any]:
    sys.path.insert(0, str(folder))
    try:
        importlib.import_module("huggingface_hub")
    except ModuleNotFoundError:
        sys.modules["huggingface_hub"] = _hub_stand_in()
    try:
        vae, var = importlib.import_module("models").build_vae_var(
            device=device,
            patch_nums=model.schedule.patch_nums,
            V=model.vqvae.vocab_size,
            Cvae=model.vqvae.z_channels,
            ch=model.vqvae.ch,
            num_classes=model.num_classes,
            depth=model.depth,
            shared_aln=model.shared_adaln,
        )
    except (ImportError, AttributeError, TypeError) as error:
        raise ActVARError(
            f"The code in {folder} is not as VAR's was in 2024: {error}. Name another checkout."
        ) from None
    _randomise(vae)  # building it leaves memory as it was found
    return vae.eval(), var.eval()


def _hub_stand_in() -> ModuleType:
    """VAR names a class of Hugging Face's hub as a base of one that is not used here; it need not be installed."""
    hub = ModuleType("huggingface_hub")
    hub.PyTorchModelHubMixin = type("PyTorchModelHubMixin", (), {})  # type: ignore[attr-defined]
    return hub


def _randomise(module: nn.Module) -> None:
    """Values of the size that a trained model's have, so that nothing overflows or dwindles to denormal numbers."""
    generator = torch.Generator(next(module.parameters()).device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1 / math.sqrt(parameter[0].numel()), generator=generator)
            else:
                parameter.fill_(float(name.endswith("weight")))
