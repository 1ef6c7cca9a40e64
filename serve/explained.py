"""What an ActVAR chose for a picture that was served: which tokens each block updated, by how many experts.

PyTorch draws the picture once more, from the checkpoint, and is looked at while it does. It is loaded when somebody
asks for the first time.

Letters in shapes: H height and W width of a picture.
"""

import threading
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from actvar.checkpoint.files import Checkpoint
from actvar.config import ModelConfig
from actvar.errors import ActVARError, needs
from actvar.explain.figures import block_panels
from actvar.serve.generations import Generation

if TYPE_CHECKING:
    from actvar.models.actvar import ActVAR


class Explainer:
    """Looks into one model, for one picture at a time.

    Args:
        model: what is served.
        checkpoint: that it came from, if it is there.
    """

    def __init__(self, model: ModelConfig, checkpoint: Checkpoint | None) -> None:
        active = [si for si in range(len(model.schedule)) if model.is_active(si)]
        self._si = active[-1] if active else None
        self._checkpoint, self._lock = checkpoint, threading.Lock()
        self._network: ActVAR | None = None

    @property
    def scale(self) -> int | None:
        """Number of the scale that is looked into: the last that leaves something out; None for a VAR."""
        return None if self._si is None else self._si + 1

    def panels(self, drawn: Generation, pixels_HW3: np.ndarray) -> list[tuple[Image.Image, str]]:
        """For each block the first picture of a request, with what the block skipped faded, and a line of words.

        Raises:
            ActVARError: it cannot be told, and why.
        """
        if self._si is None:
            raise ActVARError("This model updates every token with all its weights. There is nothing to show.")
        if self._checkpoint is None:
            raise ActVARError("A bundle of graphs is served here. Serve its checkpoint, to see what its blocks chose.")
        with self._lock:
            with needs("train", "to show what the blocks chose"):
                from actvar.explain.record import record_choices
                from actvar.runtime.backends import torch_source
            if self._network is None:
                self._network = torch_source.load(self._checkpoint)
            where = drawn.class_id, drawn.sampling, self._si, drawn.seed, drawn.number
            _, choices = record_choices(self._network, *where)
        return block_panels(pixels_HW3, choices)
