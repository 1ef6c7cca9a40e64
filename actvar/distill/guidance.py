"""Guidance distilled away: what a guided teacher tells a student that will draw without guidance.

A guided model runs every picture twice, as its class and as no class, and draws from (1+t)·cond − t·uncond. The student
learns that distribution as its own conditional one, so it draws alike by half of the rows (guidance distillation, Meng
et al. 2023).

Letters in shapes: B pictures, T tokens of all scales, E code width, V codes.
"""

from dataclasses import replace

import torch
from torch import Tensor

from actvar.distill.labels import TeacherPass, teacher_pass
from actvar.models.var import VAR
from actvar.sampling import guide
from actvar.scales import ScaleSchedule


def token_strengths(schedule: ScaleSchedule, strength: float) -> Tensor:
    """t of every token, strength·si/(S−1) of its scale si (from 0): T, fp32."""
    shares = [schedule.cfg_ramp(si) for si in range(len(schedule))]
    return strength * torch.tensor(shares).repeat_interleave(torch.tensor(schedule.tokens))


def guidance_loss(student_logits_BTV: Tensor, guided_logits_BTV: Tensor) -> Tensor:
    """KL(g || p) of the guided distributions g and the student's p, mean over tokens.

    Not in the order of L_f (Eq. 21), KL(p || g): as VAR itself is trained, whatever the teacher would draw must stay
    likely. In a trial either order ended ahead by its own measure (docs/training.md).
    """
    log_p, log_g = student_logits_BTV.float().log_softmax(-1), guided_logits_BTV.log_softmax(-1)
    return (log_g.exp() * (log_g - log_p)).sum(-1).mean()


def guided_pass(teacher: VAR, class_ids_B: Tensor, tokens_in_BTE: Tensor, strength: float) -> TeacherPass:
    """The frozen teacher with both rows of every picture: its guided logits, (1+t)·cond − t·uncond by scale.

    Traces are those of the conditional rows.
    """
    no_class_B = torch.full_like(class_ids_B, teacher.config.num_classes)
    both = teacher_pass(teacher, torch.cat((class_ids_B, no_class_B)), tokens_in_BTE.repeat(2, 1, 1))
    count, logits_RTV = len(class_ids_B), both.logits_BTV.float()
    strengths_T = token_strengths(teacher.config.schedule, strength)[: logits_RTV.shape[1]].to(logits_RTV.device)
    traces = [
        replace(trace, input_RTC=trace.input_RTC[:count], output_RTC=trace.output_RTC[:count],
                ffn_input_RTC=trace.ffn_input_RTC[:count])
        for trace in both.traces
    ]  # fmt: skip
    return TeacherPass(teacher, class_ids_B, guide(logits_RTV, strengths_T[:, None]), traces)
