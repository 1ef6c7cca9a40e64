"""The recipe of the mini models: Glyphs-100 to VQVAE, VAR-mini and ActVAR-mini, all in one folder.

Knows numbers of steps and which part needs which; every part resumes where it was stopped, and a finished part is
loaded instead of trained.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from actvar.checkpoint.own import save_model
from actvar.config import MINI, Activation
from actvar.data.encoding import EncodeSettings, build_token_store
from actvar.data.glyphs import TRAIN_SEED, GlyphPictures, glyph_batch
from actvar.data.tokens import TokenStore
from actvar.distill.stages import StageSettings, student_of, train_stage1, train_stage2
from actvar.models.actvar import ActVAR
from actvar.models.var import VAR
from actvar.models.vqvae import VQVAE
from actvar.training.loop import has_bfloat16
from actvar.training.var import VARSettings, train_var
from actvar.training.vqvae import VQVAESettings, train_vqvae


@dataclass(frozen=True)
class MiniRecipe:
    """How long each part is trained; `folder` receives all of them, `device` does the work."""

    folder: Path
    device: str = "cpu"
    seed: int = 0
    vqvae_steps: int = 1400
    pictures: int = 24_000
    var_steps: int = 1600
    stage1_steps: int = 100
    stage2_steps: int = 200

    def vqvae(self) -> VQVAE:
        """The VQVAE, from pictures."""
        settings = VQVAESettings(
            folder=self.folder / "vqvae",
            steps=self.vqvae_steps,
            batch=16,
            learning_rate=1.2e-3,
            warmup=50,
            seed=self.seed,
            device=self.device,
        )
        return train_vqvae(MINI, settings, lambda numbers: glyph_batch(np.asarray(numbers), TRAIN_SEED)[0])

    def tokens(self, vqvae: VQVAE) -> TokenStore:
        """The training pictures as tokens of this VQVAE."""
        settings = EncodeSettings(precision="bf16" if has_bfloat16(self.device) else "fp32", device=self.device)
        return build_token_store(self.folder / "tokens", vqvae, GlyphPictures(self.pictures), settings)

    def var(self, vqvae: VQVAE, store: TokenStore) -> VAR:
        """The dense VAR; two steps of three see the first seven scales (155 of 680 tokens) of more pictures."""
        settings = VARSettings(
            folder=self.folder / "var",
            steps=self.var_steps,
            batch=32,
            learning_rate=2e-3,
            cycle=((7, 32), (7, 32), (10, 12)),
            seed=self.seed,
            device=self.device,
        )
        return train_var(MINI, settings, store, vqvae.quantize)

    def actvar(self, vqvae: VQVAE, store: TokenStore, teacher: VAR, activation: Activation) -> VAR:
        """ActVAR from the dense VAR: stage 1, then stage 2."""
        student = student_of(teacher, replace(MINI, activation=activation), self.seed)
        common = StageSettings(
            folder=self.folder / "stage1",
            steps=self.stage1_steps,
            batch=16,
            learning_rate=1e-3,
            warmup=10,
            seed=self.seed,
            device=self.device,
        )
        student = train_stage1(teacher, student, common, store, vqvae.quantize)
        second = replace(common, folder=self.folder / "stage2", steps=self.stage2_steps, learning_rate=5e-4)
        return train_stage2(teacher, student, second, store, vqvae.quantize)

    def save(self, var: VAR, vqvae: VQVAE, name: str, with_vqvae: bool = True) -> Path:
        """Write transformer and VQVAE as an fp16 checkpoint; returns its path."""
        with torch.device("meta"):
            model = ActVAR(var.config)
        model.var, model.vqvae = var, vqvae
        path = self.folder / name
        save_model(model, path, with_vqvae=with_vqvae)
        return path

    def run(self, activation: Activation) -> tuple[Path, Path]:
        """Everything; returns the checkpoints of VAR-mini and ActVAR-mini, which holds the VQVAE of both."""
        vqvae = self.vqvae()
        store = self.tokens(vqvae)
        var = self.var(vqvae, store)
        dense = self.save(var, vqvae, "var_mini.safetensors", with_vqvae=False)
        actvar = self.actvar(vqvae, store, var, activation)
        return dense, self.save(actvar, vqvae, "actvar_mini.safetensors")
