"""What trainings on stored tokens share: their settings, and which pictures a step sees, in which process.

Letters in shapes: B pictures, T tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from actvar.data.tokens import TokenStore
from actvar.errors import UsageError, counted
from actvar.training.loop import RunSettings, step_generator
from actvar.training.team import ALONE, Team


@dataclass(frozen=True)
class TokenSettings(RunSettings):
    """The run, and how its weights are updated.

    `accumulate` is the number of equal parts that a process takes its share of a batch in, one after the other, where
    memory is short; gradients and losses stay those of the batch. `average` is the decay of a moving average of the
    weights, which the training then leaves; 0 for none. `class_drop` is the share of pictures shown without their
    class, for guidance.
    """

    accumulate: int = 1
    average: float = 0.0
    class_drop: float = 0.1
    weight_decay: float = 0.05


@dataclass(frozen=True)
class TokenBatches:
    """A step's pictures.

    Attributes:
        store: of all pictures.
        settings: the run's.
        no_class: the class of pictures that are shown without theirs.
        device: where they are wanted.
        team: the processes that share each batch.

    Raises:
        UsageError: a batch cannot be cut into equal parts.
    """

    store: TokenStore
    settings: TokenSettings
    no_class: int
    device: str
    team: Team = ALONE

    def __post_init__(self) -> None:
        """Refuse a batch that cannot be shared before anything is done."""
        self._shares(self.settings.batch)

    def parts(self, step: int, pictures: int, *beside: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Token ids BT and class ids B of this process's parts of a step's batch, drawn with replacement.

        Every process draws the whole batch's places, so what the step sees does not depend on how many there are.
        `beside` is of the whole batch, too: along its first dimension it is cut as the batch is, and follows.
        """
        shares = self._shares(pictures)
        generator = step_generator(self.settings, step)
        places_B = torch.randint(len(self.store), (pictures,), generator=generator)
        dropped_B = torch.rand(pictures, generator=generator) < self.settings.class_drop
        cut = zip(*(whole.chunk(shares) for whole in (places_B, dropped_B, *beside)), strict=True)
        for chosen_B, without_B, *others in islice(cut, self.team.rank, None, self.team.size):
            token_ids_BT, class_ids_B = self.store.batch(chosen_B)
            class_ids_B = class_ids_B.masked_fill(without_B, self.no_class)
            yield tuple(tensor.to(self.device) for tensor in (token_ids_BT, class_ids_B, *others))

    def _shares(self, pictures: int) -> int:
        """How many equal parts a batch of so many pictures is cut into, in all processes together."""
        shares = self.team.size * self.settings.accumulate
        if pictures % shares:
            raise UsageError(
                f"A batch of {counted(pictures, 'picture')} cannot be cut into {shares} equal parts (processes: "
                f"{self.team.size}, --accumulate {self.settings.accumulate}). Take a --batch-size that can."
            )
        return shares
