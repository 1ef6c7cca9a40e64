"""The two stages: first learn what to leave out, then adapt to leaving it out (ActVAR, supplement, Secs. 6.1, 6.2).

Both see stored tokens, a frozen dense teacher, run once per step, and a student that starts from the teacher's weights.
Stage 1 trains routers and selectors and nothing else; stage 2 trains all the rest of the transformer, and can rid it of
guidance.

Letters in shapes: B pictures, T tokens of all scales, E code width, V codes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from actvar.config import STATIC, ModelConfig
from actvar.data.tokens import TokenStore
from actvar.distill.expert_order import fix_orders, orders_by_index, orders_from_data
from actvar.distill.guidance import guidance_loss, guided_pass
from actvar.distill.label_choice import DATA, INDEX, LEARNED, PAPER, Labels
from actvar.distill.labels import TeacherPass, teacher_pass
from actvar.distill.losses import block_loss, output_loss
from actvar.distill.scorer_losses import scorer_losses
from actvar.models.block import BlockTrace
from actvar.models.quantizer import MultiScaleQuantizer
from actvar.models.var import VAR, fresh_scorers
from actvar.parameters import is_scorer
from actvar.training.fingerprint import store_fingerprint, weights_fingerprint
from actvar.training.loop import autocast, run
from actvar.training.own_data import names_of_store
from actvar.training.team import ALONE, Team
from actvar.training.token_batches import TokenBatches, TokenSettings
from actvar.training.update import Update


@dataclass(frozen=True)
class StageSettings(TokenSettings):
    """The run; alpha and beta weigh stage 1's distillation and balancing losses (Eq. 19), whose labels are `labels`.

    `expert_order` says where a static order of experts comes from: "learned" by stage 1, from "data" before it, or
    the "index" that they have.
    """

    alpha: float = 0.05
    beta: float = 0.01
    labels: Labels = PAPER
    expert_order: str = LEARNED


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


def learns_in_stage1(config: ModelConfig, name: str, expert_order: str = LEARNED) -> bool:
    """Whether a parameter is a router's or a selector's that has something to choose at some scale, and may."""
    scales, activation = range(len(config.schedule)), config.activation
    if activation is None or not is_scorer(name):
        return False
    if ".selector." in name:
        return any(config.kept_tokens(si) < config.schedule.tokens[si] for si in scales)
    return expert_order == LEARNED and any(config.active_experts(si) < activation.experts for si in scales)


def train_stage1(
    teacher: VAR,
    student: VAR,
    settings: StageSettings,
    store: TokenStore,
    quantizer: MultiScaleQuantizer,
    team: Team = ALONE,
) -> VAR:
    """Train routers and selectors; everything else is frozen (Eq. 19).

    Experts whose order is not learned are given it first, and only selectors are left to train, if even they.

    Args:
        teacher: the dense model.
        student: see `student_of`; it is trained in place.
        settings: the run.
        store: the teacher's tokens.
        quantizer: that they are of.
        team: the processes that train together. The main one is given the student, the others its shapes, where its
            weights are sharded.

    Returns: the student on the CPU in evaluation mode.

    Raises:
        CheckpointError, ActVARError, UsageError: see `actvar.training.loop.run`.
        ValueError: a fixed order is asked for, and every token has its own.
    """
    config, is_learned = student.config, settings.expert_order == LEARNED
    if not is_learned and (config.activation is None or config.activation.expert_choice != STATIC):
        raise ValueError("a fixed order of experts is for a static choice of experts")
    if settings.expert_order == DATA:
        device = team.device(settings.device)
        fix_orders(student, orders_from_data(teacher.to(device), student, store, quantizer.to(device)))
    if settings.expert_order == INDEX:
        fix_orders(student, orders_by_index(student))

    def losses(batch: Pass) -> dict[str, Tensor]:
        cls = batch.classification_loss
        parts = [
            scorer_losses(config, settings.labels, batch.teacher, block, trace, teaches_experts=is_learned)
            for block, trace in enumerate(batch.traces)
        ]
        dis, bl = torch.stack(parts).sum(0).unbind()
        return {"loss": cls + settings.alpha * dis + settings.beta * bl, "cls": cls, "dis": dis, "bl": bl}

    learns = partial(learns_in_stage1, config, expert_order=settings.expert_order)
    if not any(learns(name) for name, _ in student.named_parameters()):
        return _finished(student.cpu(), store)
    stage = _Stage("Stage 1", losses, learns, straight_through=True)
    return _train(stage, teacher, student, settings, store, quantizer, team)


def train_stage2(
    teacher: VAR,
    student: VAR,
    settings: StageSettings,
    store: TokenStore,
    quantizer: MultiScaleQuantizer,
    team: Team = ALONE,
) -> VAR:
    """Fine-tune experts, attention and the rest; routers and selectors are frozen (Eq. 22). See `train_stage1`."""

    def losses(batch: Pass) -> dict[str, Tensor]:
        cls = batch.classification_loss
        kl = output_loss(batch.logits_BTV, batch.teacher.logits_BTV)
        pairs = zip(batch.traces, batch.teacher.traces, strict=True)
        mse = torch.stack([block_loss(s.output_RTC, t.output_RTC) for s, t in pairs]).mean()
        return {"loss": cls + kl + mse, "cls": cls, "kl": kl, "mse": mse}

    stage = _Stage("Stage 2", losses, lambda name: not is_scorer(name), straight_through=False)
    return _train(stage, teacher, student, settings, store, quantizer, team)


def train_guidance_free(
    teacher: VAR,
    student: VAR,
    settings: StageSettings,
    store: TokenStore,
    quantizer: MultiScaleQuantizer,
    team: Team = ALONE,
    *,
    strength: float,
) -> VAR:
    """Stage 2 of a student that will draw without guidance: it learns the guided predictions of its teacher.

    The true tokens' cross-entropy and the blocks' outputs know of no guidance, and are left out. Every picture is shown
    with its class: the student needs no other row.

    Args:
        teacher, student, settings, store, quantizer, team: see `train_stage1`; the student may be dense, too.
        strength: of the guidance, at the last scale.
    """

    def losses(batch: Pass) -> dict[str, Tensor]:
        return {"loss": guidance_loss(batch.logits_BTV, batch.teacher.logits_BTV)}

    ask = partial(guided_pass, strength=strength)
    stage = _Stage("Stage 2, guidance distilled", losses, lambda name: not is_scorer(name), False, ask)
    settings = replace(settings, class_drop=0.0)
    trained = _train(stage, teacher, student, settings, store, quantizer, team, {"guidance": str(float(strength))})
    trained.config = replace(trained.config, guided_scales=0)
    return trained


@dataclass(frozen=True)
class _Stage:
    """What sets a stage apart: its losses, what it trains (by name), how gradients meet a choice, what is asked of the
    teacher.
    """

    title: str
    losses: Callable[[Pass], dict[str, Tensor]]
    trains: Callable[[str], bool]
    straight_through: bool
    ask: Callable[[VAR, Tensor, Tensor], TeacherPass] = teacher_pass


def _train(
    stage: _Stage,
    teacher: VAR,
    student: VAR,
    settings: StageSettings,
    store: TokenStore,
    quantizer: MultiScaleQuantizer,
    team: Team,
    further: Mapping[str, str] = MappingProxyType({}),
) -> VAR:
    """Train; `further` is what the run is of beside the models and the data."""
    inputs = {
        **further,
        "teacher": weights_fingerprint(teacher),
        "student": weights_fingerprint(student),
        "activation": str(student.config.activation),
        "data": store_fingerprint(store),
        "vqvae": weights_fingerprint(quantizer),
    }
    device = team.device(settings.device)
    teacher, quantizer = teacher.to(device).requires_grad_(False), quantizer.to(device)
    for name, parameter in student.to(device).named_parameters():
        parameter.requires_grad_(stage.trains(name))
    model = team.wrap(student)
    parameters = {name: parameter for name, parameter in student.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=settings.weight_decay
    )
    update = Update(model, parameters, {"optimizer": optimizer}, settings.accumulate, settings.average, team)
    batches = TokenBatches(store, settings, student.config.num_classes, device, team)

    def losses(token_ids_BT: Tensor, class_ids_B: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            tokens_in_BTE, _ = quantizer.teacher_forcing(token_ids_BT)
        with autocast(device, settings.precision):
            taught = stage.ask(teacher, class_ids_B, tokens_in_BTE)
            logits, traces = model(class_ids_B, tokens_in_BTE, straight_through=stage.straight_through)
            return stage.losses(Pass(token_ids_BT, taught, logits, traces))

    def step(number: int, learning_rate: float) -> dict[str, Tensor]:
        parts = batches.parts(number, settings.batch)
        return update.step(learning_rate, (partial(losses, *part) for part in parts))

    run(stage.title, step, {"student": student, **update.states}, settings, inputs, team)
    update.finish()
    return _finished(team.onto_cpu(student), store)


def _finished(student: VAR, store: TokenStore) -> VAR:
    """In evaluation mode, with names for its classes."""
    student.eval().requires_grad_(False)
    student.config = replace(student.config, class_names=names_of_store(student.config, store))
    return student
