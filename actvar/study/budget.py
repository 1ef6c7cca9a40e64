"""How much work goes into each cell. Plain Python."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """The same for all cells of a study; stage 2's learning rate and the warm-up are those of ActVAR-mini.

    Stage 1's is higher, as its steps are few. Tried with 40 to 60 steps on the first row's seed 0: at 3e-3 and 1e-2 the
    choices agree with their labels equally well.

    Attributes:
        stage1_steps: updates of routers and selectors.
        stage2_steps: updates of all the rest.
        batch: pictures a step.
        train_pictures: how many of the training stream are encoded; steps draw from these.
        held_out_pictures: how many of the held-out stream the teacher-forced figures are means over.
        drawn_pictures: how many each model draws to be judged, of all classes in turn.
        reference_pictures: real ones that the Fréchet distance is to.
        stage1_rate: peak learning rate of stage 1.
        stage2_rate: of stage 2.
        warmup: steps until the peak.
    """

    stage1_steps: int
    stage2_steps: int
    batch: int
    train_pictures: int
    held_out_pictures: int
    drawn_pictures: int
    reference_pictures: int = 10_000
    stage1_rate: float = 1e-2
    stage2_rate: float = 5e-4
    warmup: int = 10


BUDGETS: dict[str, Budget] = {
    "cpu": Budget(40, 80, 8, 4000, 100, 500),
    "gpu": Budget(1000, 4000, 64, 24_000, 1000, 5000),
}
