"""The two stages: first learn what to leave out, then adapt to leaving it out (ActVAR, supplement, Secs. 6.1, 6.2).

Both see stored tokens, a frozen dense teacher, run once per step, and a student that starts from the teacher's weights.
Stage 1 trains routers and selectors and nothing else; stage 2 trains all the rest of the transformer.

Letters in shapes: B pictures, T tokens of all scales, E code width, V codes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actvar.config import ModelConfig
from actvar.data.tokens import TokenStore
from actvar.distill.label_choice import PAPER, Labels
from actvar.distill.labels import TeacherPass, teacher_pass
from actvar.distill.losses import block_loss, output_loss
from actvar.distill.scorer_losses import scorer_losses
from actvar.models.block import BlockTrace
from actvar.models.quantizer import MultiScaleQuantizer
from actvar.models.var import VAR, fresh_scorers, is_scorer
from actvar.training.loop import RunSettings, autocast, run, step_generator


@dataclass(frozen=True)
class StageSettings(RunSettings):
    """The run; alpha and beta weigh stage 1's distillation and balancing losses (Eq. 19), whose labels are `labels`."""

    alpha: float = 0.05
    beta: float = 0.01
    class_drop: float = 0.1
    weight_decay: float = 0.05
    labels: Labels = PAPER


@dataclass(frozen=True)
class Pass:
    """One batch through teacher and student."""

    token_ids_BT: Tensor
    teacher: TeacherPass
    logits_BTV: Tensor
    traces: list[BlockTrace]

    @property
    def classification_loss(self) -> Tensor:
        """L_cls: the cross-entropy that VAR is trained with."""
        return F.cross_entropy(self.logits_BTV.flatten(0, 1), self.token_ids_BT.flatten())


def student_of(teacher: VAR, config: ModelConfig, seed: int = 0) -> VAR:
    """An ActVAR with the teacher's weights and small random routers and selectors.

    Raises:
        ValueError: config has no activation, or differs from the teacher's otherwise.
    """
    if config.activation is None or config.dense() != teacher.config.dense():
        raise ValueError("the student's configuration must be the teacher's with an activation")
    student = VAR(config)
    student.load_state_dict({**teacher.state_dict(), **fresh_scorers(student, seed)})
    return student


def train_stage1(
    teacher: VAR, student: VAR, settings: StageSettings, store: TokenStore, quantizer: MultiScaleQuantizer
) -> VAR:
    """Train routers and selectors; everything else is frozen (Eq. 19)."""

    def losses(batch: Pass) -> dict[str, Tensor]:
        cls = batch.classification_loss
        parts = [
            scorer_losses(student.config, settings.labels, batch.teacher, block, trace)
            for block, trace in enumerate(batch.traces)
        ]
        dis, bl = torch.stack(parts).sum(0).unbind()
        return {"loss": cls + settings.alpha * dis + settings.beta * bl, "cls": cls, "dis": dis, "bl": bl}

    return _train("Stage 1", teacher, student, settings, store, quantizer, losses, is_scorer, straight_through=True)


def train_stage2(
    teacher: VAR, student: VAR, settings: StageSettings, store: TokenStore, quantizer: MultiScaleQuantizer
) -> VAR:
    """Fine-tune experts, attention and the rest; routers and selectors are frozen (Eq. 22)."""

    def losses(batch: Pass) -> dict[str, Tensor]:
        cls = batch.classification_loss
        kl = output_loss(batch.logits_BTV, batch.teacher.logits_BTV)
        pairs = zip(batch.traces, batch.teacher.traces, strict=True)
        mse = torch.stack([block_loss(s.output_RTC, t.output_RTC) for s, t in pairs]).mean()
        return {"loss": cls + kl + mse, "cls": cls, "kl": kl, "mse": mse}

    def trainable(name: str) -> bool:
        return not is_scorer(name)

    return _train("Stage 2", teacher, student, settings, store, quantizer, losses, trainable, straight_through=False)


def _train(
    title: str,
    teacher: VAR,
    student: VAR,
    settings: StageSettings,
    store: TokenStore,
    quantizer: MultiScaleQuantizer,
    losses: Callable[[Pass], dict[str, Tensor]],
    trainable: Callable[[str], bool],
    straight_through: bool,
) -> VAR:
    teacher, student = teacher.to(settings.device).requires_grad_(False), student.to(settings.device)
    quantizer = quantizer.to(settings.device)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(trainable(name))
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=settings.weight_decay
    )

    def step(number: int, learning_rate: float) -> dict[str, Tensor]:
        optimizer.param_groups[0]["lr"] = learning_rate
        generator = step_generator(settings, number)
        token_ids_BT, class_ids_B = store.batch(torch.randint(len(store), (settings.batch,), generator=generator))
        dropped_B = torch.rand(settings.batch, generator=generator) < settings.class_drop
        class_ids_B = class_ids_B.masked_fill(dropped_B, student.config.num_classes).to(settings.device)
        token_ids_BT = token_ids_BT.to(settings.device)
        with torch.no_grad():
            tokens_in_BTE, _ = quantizer.teacher_forcing(token_ids_BT)
        with autocast(settings.device):
            taught = teacher_pass(teacher, class_ids_B, tokens_in_BTE)
            logits, traces = student(class_ids_B, tokens_in_BTE, straight_through=straight_through)
            values = losses(Pass(token_ids_BT, taught, logits, traces))
        optimizer.zero_grad(set_to_none=True)
        values["loss"].backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return values

    run(title, step, {"student": student, "optimizer": optimizer}, settings)
    return student.cpu().eval().requires_grad_(False)
