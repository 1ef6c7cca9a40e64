"""A model in PyTorch as a source of pictures: the oracle on the CPU, or recorded steps on the first NVIDIA GPU.

The only module of the runtime that loads PyTorch: behind the same seam as the graphs.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch

from actvar.checkpoint.files import Checkpoint
from actvar.checkpoint.model import load_checkpoint
from actvar.config import ModelConfig, Sampling
from actvar.drawers import Drawer, EagerModel, ToDraw
from actvar.errors import ActVARError, EngineError
from actvar.models.actvar import ActVAR
from actvar.plugins.torch.choice import operators_for
from actvar.recorded.model import RecordedModel
from actvar.recorded.recorders import CudaGraphs
from actvar.recorded.weights import Precision
from actvar.runtime.machine import first_gpu
from actvar.runtime.pictures import OnScaleEnd, Order, Picture, ScaleEnd, Turn, require_orders


@dataclass(frozen=True)
class TorchSource:
    """Draws with PyTorch, as many pictures at a time as the drawer takes; see `PictureSource`."""

    drawer: Drawer
    _turn: Turn = field(default_factory=Turn, init=False, repr=False, compare=False)

    @property
    def model(self) -> ModelConfig:
        """What draws."""
        return self.drawer.config

    def draw(
        self,
        orders: Iterable[Order],
        sampling: Sampling,
        seed: int = 0,
        with_partials: bool = False,
        on_scale_end: OnScaleEnd | None = None,
    ) -> Iterator[Picture]:
        """See `PictureSource`.

        Raises:
            UsageError: an order or the seed is not for this model.
            ActVARError: the model gave values that are not numbers, or there is too little memory.
        """
        schedule, waiting = self.model.schedule, iter(orders)
        while batch := tuple(islice(waiting, self.drawer.largest)):
            require_orders(self.model, batch, seed)
            wanted = [ToDraw(order.class_id, order.seed_in(seed), order.number, order.given) for order in batch]

            def tell(si: int, pixels_BHW3: np.ndarray, batch: tuple[Order, ...] = batch) -> None:
                assert on_scale_end
                on_scale_end(ScaleEnd(si + 1, len(schedule), batch, pixels_BHW3))

            with self._turn:
                try:
                    drawn = self.drawer.draw(wanted, sampling, with_partials, tell if on_scale_end else None)
                except torch.OutOfMemoryError:
                    raise EngineError("The GPU has too little memory for this batch size. Choose a smaller.") from None
            for i, order in enumerate(batch):
                token_ids = tuple(np.split(drawn.token_ids_BS[i], schedule.starts[1:]))
                yield Picture(order, drawn.pixels_BHW3[i], token_ids, tuple(each[i] for each in drawn.partials))

    def encode(self, pixels_HW3: np.ndarray) -> tuple[np.ndarray, ...]:
        """See `PictureSource`; on the CPU, wherever is drawn."""
        with self._turn:
            return tuple(np.split(self.drawer.encode(pixels_HW3), self.model.schedule.starts[1:]))


def load(checkpoint: Checkpoint, threads: int = 0) -> ActVAR:
    """The network of a checkpoint, on the CPU.

    Args:
        checkpoint: the model.
        threads: for PyTorch in this whole process; 0 leaves its own choice.

    Raises:
        CheckpointError: the files cannot be used.
    """
    if threads:
        torch.set_num_threads(threads)
    return load_checkpoint(checkpoint)


def eager_source(network: ActVAR) -> TorchSource:
    """The network as it is."""
    return TorchSource(EagerModel(network))


def recorded_source(network: ActVAR, precision: Precision, batch_size: int) -> TorchSource:
    """The network on the first GPU, in batches of up to so many pictures; our kernels where a library has them for it.

    Raises:
        ActVARError: PyTorch cannot use a GPU.
        EngineError: its memory is too small for the weights.
    """
    gpu = first_gpu() if torch.cuda.is_available() else None
    if gpu is None:
        why = "sees no NVIDIA GPU" if torch.version.cuda else "is built for the CPU alone"
        raise ActVARError(f"This PyTorch {torch.__version__} {why}. Draw on the CPU, or install one for CUDA.")
    operators, _ = operators_for(network.config, gpu.capability)
    try:
        return TorchSource(RecordedModel(network, precision, "cuda", operators, CudaGraphs(), batch_size))
    except torch.OutOfMemoryError:
        raise EngineError("The GPU's memory does not hold the weights and this batch. Choose a smaller one.") from None
