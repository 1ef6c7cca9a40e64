"""An independent reading of official VAR: slow, plain, in numpy and float64.

Written from the formulas of the VAR paper and from what official VAR's code does, one picture and one row at a time,
with loops where a library would have a kernel. Shares nothing with `actvar` but the names of the parameters. Test code
only.

Letters in shapes: L tokens of a scale, T tokens seen, C width, h heads, d = 64, V codes, E code width, p side of a
token map, H side of a larger map, N channels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

State = Mapping[str, np.ndarray]
HEAD = 64


def part(state: State, prefix: str) -> dict[str, np.ndarray]:
    """The parameters below a prefix, under their names there."""
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def linear(state: State, name: str, x: np.ndarray) -> np.ndarray:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# ---- the transformer


def layer_norm(x_C: np.ndarray) -> np.ndarray:
    """(x - mean) / sqrt(variance + 1e-6) of one token, no weights."""
    centred = x_C - x_C.mean()
    return centred / math.sqrt((centred**2).mean() + 1e-6)


def norm_and_modulate(x_LC: np.ndarray, scale_C: np.ndarray, shift_C: np.ndarray) -> np.ndarray:
    return np.stack([layer_norm(x_C) * (1 + scale_C) + shift_C for x_C in x_LC])


def gelu(x: np.ndarray) -> np.ndarray:
    """The tanh form."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@dataclass
class Cache:
    """Unit keys and values of one block and one row, token by token: each [h, d]."""

    keys: list[np.ndarray] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)


def attention(state: State, x_LC: np.ndarray, cache: Cache) -> np.ndarray:
    """Attention of a scale's tokens to all that is cached and to each other; they enter the cache."""
    width = x_LC.shape[1]
    heads = width // HEAD
    weight = state["mat_qkv.weight"]
    queries = []
    for x_C in x_LC:
        q = weight[:width] @ x_C + state["q_bias"]
        k = weight[width : 2 * width] @ x_C  # keys have no bias
        v = weight[2 * width :] @ x_C + state["v_bias"]
        queries.append(q.reshape(heads, HEAD))
        key_hd = k.reshape(heads, HEAD)
        cache.keys.append(key_hd / np.linalg.norm(key_hd, axis=1, keepdims=True))
        cache.values.append(v.reshape(heads, HEAD))
    keys_Thd, values_Thd = np.stack(cache.keys), np.stack(cache.values)
    out_LC = np.empty_like(x_LC)
    for i, query_hd in enumerate(queries):
        for head in range(heads):
            q = query_hd[head] / np.linalg.norm(query_hd[head])
            temperature = math.exp(min(state["scale_mul_1H11"].reshape(-1)[head], math.log(100)))
            weights_T = softmax(keys_Thd[:, head] @ q * temperature)
            out_LC[i, head * HEAD : (head + 1) * HEAD] = weights_T @ values_Thd[:, head]
    return linear(state, "proj", out_LC)


def modulation(state: State, block: int, class_C: np.ndarray) -> np.ndarray:
    """gamma1, gamma2, scale1, scale2, shift1, shift2 of a block: [6, C]."""
    width = len(class_C)
    if "shared_ada_lin.1.weight" in state:
        shared = linear(state, "shared_ada_lin.1", silu(class_C)).reshape(6, width)
        return shared + state[f"blocks.{block}.ada_gss"].reshape(6, width)
    return linear(state, f"blocks.{block}.ada_lin.1", silu(class_C)).reshape(6, width)


def block(state: State, number: int, x_LC: np.ndarray, class_C: np.ndarray, cache: Cache) -> np.ndarray:
    """One block over the tokens of one scale."""
    own = part(state, f"blocks.{number}.")
    gamma1, gamma2, scale1, scale2, shift1, shift2 = modulation(state, number, class_C)
    x_LC = x_LC + gamma1 * attention(part(own, "attn."), norm_and_modulate(x_LC, scale1, shift1), cache)
    hidden = gelu(linear(own, "ffn.fc1", norm_and_modulate(x_LC, scale2, shift2)))
    return x_LC + gamma2 * linear(own, "ffn.fc2", hidden)


def head(state: State, x_LC: np.ndarray, class_C: np.ndarray) -> np.ndarray:
    """Logits, [L, V]."""
    scale, shift = linear(state, "head_nm.ada_lin.1", silu(class_C)).reshape(2, -1)
    return linear(state, "head", norm_and_modulate(x_LC, scale, shift))


class Row:
    """One row of a picture (conditional or not) on its way through the scales."""

    def __init__(self, state: State, patch_nums: Sequence[int], class_id: int):
        self.state, self.patch_nums = state, patch_nums
        self.class_C = state["class_emb.weight"][class_id]
        self.depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
        self.caches = [Cache() for _ in range(self.depth)]

    def logits(self, si: int, tokens_in_LE: np.ndarray | None) -> np.ndarray:
        """Logits of scale si, [L, V]; scales must come in order."""
        start = sum(p * p for p in self.patch_nums[:si])
        count = self.patch_nums[si] ** 2
        places_LC = self.state["pos_1LC"][0, start : start + count] + self.state["lvl_embed.weight"][si]
        if tokens_in_LE is None:
            x_LC = self.class_C + self.state["pos_start"][0] + places_LC
        else:
            x_LC = linear(self.state, "word_embed", tokens_in_LE) + places_LC
        for number in range(self.depth):
            x_LC = block(self.state, number, x_LC, self.class_C, self.caches[number])
        return head(self.state, x_LC, self.class_C)


# ---- the quantizer


def cubic_weight(distance: float) -> float:
    """The cubic convolution kernel (Keys 1981) with a = -0.75."""
    a, x = -0.75, abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    if x < 2:
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return 0.0


def bicubic(map_Epp: np.ndarray, side: int) -> np.ndarray:
    """Enlarge: pixel centres at half steps (align_corners = False), neighbours outside clamped to the border."""
    p = map_Epp.shape[1]
    out = np.zeros((map_Epp.shape[0], side, side))
    for y in range(side):
        for x in range(side):
            source_y, source_x = (y + 0.5) * p / side - 0.5, (x + 0.5) * p / side - 0.5
            for j in range(math.floor(source_y) - 1, math.floor(source_y) + 3):
                for i in range(math.floor(source_x) - 1, math.floor(source_x) + 3):
                    weight = cubic_weight(source_y - j) * cubic_weight(source_x - i)
                    out[:, y, x] += weight * map_Epp[:, min(max(j, 0), p - 1), min(max(i, 0), p - 1)]
    return out


def area(map_EHH: np.ndarray, p: int) -> np.ndarray:
    """Shrink: each value is the mean of the pixels that its cell touches."""
    side = map_EHH.shape[1]
    edges = [(math.floor(i * side / p), math.ceil((i + 1) * side / p)) for i in range(p)]
    out = np.empty((map_EHH.shape[0], p, p))
    for y, (top, bottom) in enumerate(edges):
        for x, (left, right) in enumerate(edges):
            out[:, y, x] = map_EHH[:, top:bottom, left:right].mean(axis=(1, 2))
    return out


def phi_index(si: int, scales: int, phis: int = 4) -> int:
    """The tick nearest to si / (scales - 1), in float64 as official VAR's training chose it."""
    part = 3 if phis == 4 else 2
    ticks = np.linspace(1 / part / phis, 1 - 1 / part / phis, phis)
    return int(np.argmin(np.abs(ticks - si / (scales - 1))))


def contribution(state: State, patch_nums: Sequence[int], si: int, ids_L: Sequence[int]) -> np.ndarray:
    """What the tokens of scale si add to f_hat, [E, H, H]."""
    return enlarged(state, patch_nums, si, state["quantize.embedding.weight"][list(ids_L)])


def enlarged(state: State, patch_nums: Sequence[int], si: int, codes_LE: np.ndarray) -> np.ndarray:
    """What these vectors of scale si add to f_hat, [E, H, H]."""
    p, side = patch_nums[si], patch_nums[-1]
    map_Epp = codes_LE.T.reshape(-1, p, p)
    up = bicubic(map_Epp, side) if si + 1 < len(patch_nums) else map_Epp
    phis = sum("qresi_ls" in name and name.endswith("weight") for name in state)
    return 0.5 * up + 0.5 * conv(state, f"quantize.quant_resi.qresi_ls.{phi_index(si, len(patch_nums), phis)}", up)


def tokens_in(f_hat_EHH: np.ndarray, p: int) -> np.ndarray:
    """f_hat as a scale reads it, [L, E]."""
    return area(f_hat_EHH, p).reshape(len(f_hat_EHH), -1).T


def quantise(
    state: State, patch_nums: Sequence[int], f_EHH: np.ndarray, znorm: bool = False
) -> tuple[list[int], float]:
    """Residual quantisation (VAR, Algorithm 1): the token ids of all scales, and the margin of the narrowest choice.

    With znorm the nearest code is that between whose direction and the value's the angle is smallest.
    """
    codes_VE = state["quantize.embedding.weight"]
    rest, ids, margin = f_EHH.copy(), [], math.inf
    for si, p in enumerate(patch_nums):
        chosen = []
        for value_E in tokens_in(rest, p):
            distances_V = ((codes_VE - value_E) ** 2).sum(1)
            if znorm:
                lengths_V = np.sqrt((codes_VE**2).sum(1)) * np.sqrt((value_E**2).sum())
                distances_V = -(codes_VE @ value_E) / lengths_V
            nearest, second = np.argsort(distances_V)[:2]
            margin = min(margin, distances_V[second] - distances_V[nearest])
            chosen.append(int(nearest))
        rest = rest - contribution(state, patch_nums, si, chosen)
        ids += chosen
    return ids, margin


# ---- the convolutional networks


def conv(state: State, name: str, x_NHH: np.ndarray, stride: int = 1, pad: tuple[int, int] = (1, 1)) -> np.ndarray:
    """A convolution, `pad` zeros before and after each row and column."""
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    outputs, _, size, _ = weight.shape
    if size == 1:
        pad = (0, 0)
    padded = np.pad(x_NHH, ((0, 0), pad, pad))
    side = (padded.shape[1] - size) // stride + 1
    out = np.zeros((outputs, side, side))
    for dy in range(size):
        for dx in range(size):
            seen = padded[:, dy : dy + stride * side : stride, dx : dx + stride * side : stride]
            out += np.einsum("oi,iyx->oyx", weight[:, :, dy, dx], seen)
    return out + bias[:, None, None]


def group_norm(state: State, name: str, x_NHH: np.ndarray, groups: int) -> np.ndarray:
    out = np.empty_like(x_NHH)
    size = len(x_NHH) // groups
    for group in range(groups):
        inside = slice(group * size, (group + 1) * size)
        values = x_NHH[inside]
        out[inside] = (values - values.mean()) / math.sqrt(values.var() + 1e-6)
    return out * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]


def resnet_block(state: State, x_NHH: np.ndarray, groups: int) -> np.ndarray:
    h = conv(state, "conv1", silu(group_norm(state, "norm1", x_NHH, groups)))
    h = conv(state, "conv2", silu(group_norm(state, "norm2", h, groups)))
    return h + (conv(state, "nin_shortcut", x_NHH) if "nin_shortcut.weight" in state else x_NHH)


def map_attention(state: State, x_NHH: np.ndarray, groups: int) -> np.ndarray:
    """One-head attention over the places of a map, scaled by 1 / sqrt(channels)."""
    channels, side, _ = x_NHH.shape
    q, k, v = conv(state, "qkv", group_norm(state, "norm", x_NHH, groups)).reshape(3, channels, side * side)
    out = np.empty((channels, side * side))
    for place in range(side * side):
        out[:, place] = v @ softmax(k.T @ q[:, place] / math.sqrt(channels))
    return x_NHH + conv(state, "proj_out", out.reshape(x_NHH.shape))


def level(state: State, x_NHH: np.ndarray, groups: int) -> np.ndarray:
    """The blocks of one resolution, each followed by attention where the level has any."""
    for i in range(len({name.split(".")[1] for name in state if name.startswith("block.")})):
        x_NHH = resnet_block(part(state, f"block.{i}."), x_NHH, groups)
        if f"attn.{i}.norm.weight" in state:
            x_NHH = map_attention(part(state, f"attn.{i}."), x_NHH, groups)
    return x_NHH


def middle(state: State, x_NHH: np.ndarray, groups: int) -> np.ndarray:
    x_NHH = resnet_block(part(state, "block_1."), x_NHH, groups)
    x_NHH = map_attention(part(state, "attn_1."), x_NHH, groups)
    return resnet_block(part(state, "block_2."), x_NHH, groups)


def encode(state: State, picture_3HH: np.ndarray, groups: int) -> np.ndarray:
    """A picture in [-1, 1] to the map that is quantised."""
    own = part(state, "encoder.")
    levels = len({name.split(".")[1] for name in own if name.startswith("down.")})
    h = conv(own, "conv_in", picture_3HH)
    for i in range(levels):
        h = level(part(own, f"down.{i}."), h, groups)
        if i + 1 < levels:
            h = conv(own, f"down.{i}.downsample.conv", h, stride=2, pad=(0, 1))
    h = middle(part(own, "mid."), h, groups)
    return conv(state, "quant_conv", conv(own, "conv_out", silu(group_norm(own, "norm_out", h, groups))))


def decode(state: State, f_hat_EHH: np.ndarray, groups: int) -> np.ndarray:
    """f_hat to a picture in [-1, 1]."""
    own = part(state, "decoder.")
    levels = len({name.split(".")[1] for name in own if name.startswith("up.")})
    h = middle(part(own, "mid."), conv(own, "conv_in", conv(state, "post_quant_conv", f_hat_EHH)), groups)
    for i in reversed(range(levels)):
        h = level(part(own, f"up.{i}."), h, groups)
        if i:
            h = conv(own, f"up.{i}.upsample.conv", h.repeat(2, axis=1).repeat(2, axis=2))
    return np.clip(conv(own, "conv_out", silu(group_norm(own, "norm_out", h, groups))), -1, 1)


# ---- sampling


def distribution(logits_V: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """Probabilities after top-k, then top-p by its ascending definition: drop while the mass so far is <= 1 - top_p."""
    threshold = sorted(logits_V)[-top_k] if top_k < len(logits_V) else -math.inf
    logits_V = np.where(logits_V >= threshold, logits_V, -math.inf)
    probability_V = softmax(logits_V)
    mass = 0.0
    for code in np.argsort(logits_V, kind="stable")[:-1]:
        mass += probability_V[code]
        if mass <= 1 - top_p:
            logits_V[code] = -math.inf
    return softmax(logits_V)


def draw(probability_V: np.ndarray, uniform: float) -> tuple[int, float]:
    """Walk down the codes, likeliest first, until their mass exceeds the uniform number.

    Returns: the code, and how near the number came to any boundary between two codes.
    """
    mass, found, margin = 0.0, None, math.inf
    for code in sorted(range(len(probability_V)), key=lambda code: (-probability_V[code], code)):
        if probability_V[code] == 0:
            break
        mass += probability_V[code]
        margin = min(margin, abs(uniform - mass))
        if found is None and uniform < mass:
            found = code
    assert found is not None
    return found, margin


def mixture(logits_V: np.ndarray, noise_V: np.ndarray, ratio: float, top_k: int, top_p: float) -> np.ndarray:
    """How much of each code there is where codes are mixed: a Gumbel softmax of what top-k and top-p keep."""
    temperature = max(0.27 * (1 - ratio * 0.95), 0.005)
    kept_V = distribution(logits_V, top_k, top_p) > 0
    return softmax(np.where(kept_V, ((1 + ratio) * logits_V + noise_V) / temperature, -math.inf))


def is_kept(mask_SS: np.ndarray, side: int, y: int, x: int) -> bool:
    """Whether a token of a scale's map stays: what the mask is at its centre, between its four neighbours, is over 1/2.

    The mask has 1 where the picture stays. A map of up to 3 tokens stays as a whole.
    """
    if side * side <= 3:
        return True
    step, value = len(mask_SS) / side, 0.0
    row, column = (max((place + 0.5) * step - 0.5, 0) for place in (y, x))
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            share = max(1 - abs(row - i), 0) * max(1 - abs(column - j), 0)
            value += share * mask_SS[min(i, len(mask_SS) - 1), min(j, len(mask_SS) - 1)]
    return value > 0.5


@dataclass
class Drawn:
    """A picture in [0, 1], its tokens, f_hat and guided logits by scale, and the narrowest margin of all draws."""

    picture_3HH: np.ndarray
    ids: list[list[int]]
    f_hats: list[np.ndarray]
    logits: list[np.ndarray]
    margin: float


def generate(
    state: State,
    patch_nums: Sequence[int],
    class_id: int,
    uniforms: Sequence[np.ndarray],
    cfg: float,
    top_k: int,
    top_p: float,
    groups: int,
    own_ids: Sequence[Sequence[int]] = (),
    mask_SS: np.ndarray | None = None,
    smooth: bool = False,
) -> Drawn:
    """Draw one picture. `state` has `var.*` and `vqvae.*`; `uniforms` one array for each scale.

    With a mask, edit one: where it keeps, the codes of every scale are the picture's own.

    A smooth one mixes codes by noise, of which `uniforms` then has a row for each token; its ids are the heaviest.
    """
    var, vqvae = part(state, "var."), part(state, "vqvae.")
    no_class = len(var["class_emb.weight"]) - 1
    rows = [Row(var, patch_nums, class_id), Row(var, patch_nums, no_class)]
    f_hat = np.zeros((vqvae["quantize.embedding.weight"].shape[1], patch_nums[-1], patch_nums[-1]))
    ids, f_hats, all_logits, margin = [], [], [], math.inf
    for si, p in enumerate(patch_nums):
        inputs = tokens_in(f_hat, p) if si else None
        conditional, unconditional = (row.logits(si, inputs) for row in rows)
        t = cfg * si / (len(patch_nums) - 1)
        logits_LV = (1 + t) * conditional - t * unconditional
        if smooth:
            ratio, pairs = si / (len(patch_nums) - 1), zip(logits_LV, uniforms[si], strict=True)
            weights_LV = [mixture(z, noise_V.astype(float), ratio, top_k, top_p) for z, noise_V in pairs]
            codes_LE = np.array(weights_LV) @ vqvae["quantize.embedding.weight"]
            ids.append([int(np.argmax(weights_V)) for weights_V in weights_LV])
        else:
            drawn = [draw(distribution(z, top_k, top_p), u) for z, u in zip(logits_LV, uniforms[si], strict=True)]
            ids.append([code for code, _ in drawn])
            margin = min(margin, min(m for _, m in drawn))
            codes_LE = vqvae["quantize.embedding.weight"][ids[-1]]
        if mask_SS is not None:
            for place in range(p * p):
                if is_kept(mask_SS, p, place // p, place % p):
                    ids[si][place] = own_ids[si][place]
                    codes_LE[place] = vqvae["quantize.embedding.weight"][own_ids[si][place]]
        f_hat = f_hat + enlarged(vqvae, patch_nums, si, codes_LE)
        f_hats.append(f_hat)
        all_logits.append(logits_LV)
    return Drawn((decode(vqvae, f_hat, groups) + 1) / 2, ids, f_hats, all_logits, margin)
