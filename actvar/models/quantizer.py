"""The multi-scale residual quantizer: a feature map to ten token maps, and back (VAR, Algorithms 1 and 2).

Knows the codebook and the convolutions that follow an upsampling. The encoder and decoder around it are in
`vqvae.py`.

Letters in shapes: B pictures, E code width, H side of f_hat, p side of one token map, L = p*p, P tokens of the scales
before, V codes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actvar.scales import ScaleSchedule


class Phi(nn.Conv2d):
    """phi(x) = x/2 + conv(x)/2: what repairs a token map after it was enlarged (VAR, Sec. 3.2)."""

    def __init__(self, width: int):
        super().__init__(width, width, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, E, H, H] to the same."""
        return 0.5 * x + 0.5 * super().forward(x)


class _SharedPhis(nn.Module):
    """The phis under the name that official checkpoints use where scales share some."""

    def __init__(self, width: int, count: int):
        super().__init__()
        self.qresi_ls = nn.ModuleList(Phi(width) for _ in range(count))


class MultiScaleQuantizer(nn.Module):
    """Sum of enlarged code maps, one per scale: f_hat = sum_s phi_s(up(codes_s)).

    Args:
        vocab_size: V.
        width: E.
        schedule: sides of the token maps.
        phi_count: convolutions that the scales share.
        znorm: whether the code of the nearest direction is taken, and not the nearest code.
    """

    def __init__(self, vocab_size: int, width: int, schedule: ScaleSchedule, phi_count: int = 4, znorm: bool = False):
        super().__init__()
        self.schedule, self.znorm = schedule, znorm
        self.phi_indices = schedule.phi_indices(phi_count)
        self.embedding = nn.Embedding(vocab_size, width)
        self.quant_resi = _SharedPhis(width, phi_count)

    @property
    def width(self) -> int:
        """E."""
        return self.embedding.embedding_dim

    def contribution(self, token_ids_BL: Tensor, si: int) -> Tensor:
        """What the tokens of scale si add to f_hat: [B, L] int64 -> [B, E, H, H]."""
        return self.enlarge(self.embedding(token_ids_BL), si)

    def enlarge(self, codes_BLE: Tensor, si: int) -> Tensor:
        """phi(up(codes)) of scale si: [B, L, E] -> [B, E, H, H]. The last scale has its full size already."""
        side, p = self.schedule.side, self.schedule.patch_nums[si]
        codes_BEpp = codes_BLE.mT.unflatten(2, (p, p))
        if p != side:
            codes_BEpp = F.interpolate(codes_BEpp, size=(side, side), mode="bicubic")
        return self.quant_resi.qresi_ls[self.phi_indices[si]](codes_BEpp)

    def tokens_in(self, f_hat_BEHH: Tensor, si: int) -> Tensor:
        """What the transformer reads at scale si >= 1: f_hat averaged to that scale's map, [B, L, E]."""
        p = self.schedule.patch_nums[si]
        return F.interpolate(f_hat_BEHH, size=(p, p), mode="area").flatten(2).mT

    def nearest(self, codes_BLE: Tensor) -> Tensor:
        """Index of the nearest code in squared distance, or with znorm in angle: [B, L, E] -> [B, L] int64."""
        weight_VE = self.embedding.weight
        if self.znorm:
            return (F.normalize(codes_BLE, dim=-1) @ F.normalize(weight_VE, dim=-1).T).argmax(-1)
        # |x|^2 is the same for all codes and is left out.
        distance_BLV = weight_VE.square().sum(1) - 2 * codes_BLE @ weight_VE.T
        return distance_BLV.argmin(-1)

    @torch.no_grad()
    def encode(self, f_BEHH: Tensor, taken_BT: Tensor | None = None) -> Tensor:
        """Greedy residual quantisation of an encoder's map: [B, E, H, H] -> token ids of all scales, [B, total].

        `taken_BT` are those whose contributions are taken off the map before the next scale is looked at, [B, total];
        the nearest ones, if left out.
        """
        rest_BEHH = f_BEHH.float().clone()
        ids = []
        for si, (start, tokens) in enumerate(zip(self.schedule.starts, self.schedule.tokens, strict=True)):
            ids_BL = self.nearest(self.tokens_in(rest_BEHH, si))
            taken_BL = ids_BL if taken_BT is None else taken_BT[:, start : start + tokens]
            rest_BEHH -= self.contribution(taken_BL, si)
            ids.append(ids_BL)
        return torch.cat(ids, dim=1)

    def decode(self, token_ids_BT: Tensor) -> Tensor:
        """f_hat of tokens of the first scales: [B, T] -> [B, E, H, H]; T may end at any scale's end."""
        return self.teacher_forcing(token_ids_BT)[1]

    def teacher_forcing(self, token_ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The transformer's inputs for known tokens.

        Returns: the inputs of every scale but the first, and of none after those that T reaches, [B, T-1, E]; and
        f_hat after the last of them, [B, E, H, H].
        """
        batch, count = token_ids_BT.shape
        side = self.schedule.side
        f_hat_BEHH = self.embedding.weight.new_zeros(batch, self.width, side, side)
        inputs = []
        for si, (start, tokens) in enumerate(zip(self.schedule.starts, self.schedule.tokens, strict=True)):
            if start >= count:
                break
            if si:
                inputs.append(self.tokens_in(f_hat_BEHH, si))
            f_hat_BEHH = f_hat_BEHH + self.contribution(token_ids_BT[:, start : start + tokens], si)
        inputs_BTE = torch.cat(inputs, dim=1) if inputs else f_hat_BEHH.new_zeros(batch, 0, self.width)
        return inputs_BTE, f_hat_BEHH

    def forward(self, f_BEHH: Tensor, beta: float = 0.25) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise for training, with the straight-through estimator.

        Returns: f_hat whose gradient goes to f as if it were f; the mean over scales of
        beta * |sg(f_hat_s) - f|^2 + |f_hat_s - sg(f)|^2 (VAR, Eq. 5); the token ids, [B, total].
        """
        f_BEHH = f_BEHH.float()
        target = f_BEHH.detach()
        rest, f_hat = target.clone(), torch.zeros_like(target)
        loss, ids = f_BEHH.new_zeros(()), []
        for si in range(len(self.schedule)):
            with torch.no_grad():
                ids_BL = self.nearest(self.tokens_in(rest, si))
            added = self.contribution(ids_BL, si)
            f_hat = f_hat + added
            rest = rest - added.detach()
            loss = loss + beta * F.mse_loss(f_BEHH, f_hat.detach()) + F.mse_loss(f_hat, target)
            ids.append(ids_BL)
        return f_BEHH + (f_hat - f_BEHH).detach(), loss / len(self.schedule), torch.cat(ids, dim=1)
