"""From VAR to ActVAR: the two stages of distillation (ActVAR, supplement, Sec. 6)."""
