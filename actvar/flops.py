"""Operations of one picture, counted from the configuration alone.

A multiply and its add are two operations. Counted are matrix products and convolutions; norms, activations, softmaxes,
sampling and the quantizer's small maps (under a thousandth of the whole for every preset) are not. Guidance doubles the
transformer's rows: each picture has a conditional and an unconditional one. Plain Python.

Letters: D depth, C width, L tokens of a scale, K kept tokens, P cached tokens, N experts, V codes, E code width,
S side of a map.
"""

from dataclasses import dataclass

from actvar.config import ModelConfig

ROWS = 2
"""Rows of the transformer for each picture."""


@dataclass(frozen=True)
class ScaleWork:
    """Operations of one scale for one picture.

    `linear` is what tokens cost by themselves (embedding, q, k, v, projection, FFN), `attention` the products of
    queries with keys and of weights with values, `choosing` the selector and the router, `head` the logits.
    """

    linear: int
    attention: int
    choosing: int
    head: int

    @property
    def total(self) -> int:
        """All together."""
        return self.linear + self.attention + self.choosing + self.head


def scale_work(model: ModelConfig, si: int) -> ScaleWork:
    """What scale index si costs, with the model's active tokens and experts.

    A block runs on K of L tokens. Of its 12 C^2 weights the attention has 4 C^2, and the FFN's 8 C^2 are used in
    proportion to the active experts. The selector sees L tokens and the router K; a scale that keeps all has neither.
    """
    width, tokens, kept, past = model.width, model.schedule.tokens[si], model.kept_tokens(si), model.cached_tokens[si]
    experts = model.activation.experts if model.activation else 1
    active = model.active_experts(si)
    ffn = 8 * width * width * active // experts  # N divides 4C, so this is a whole number
    linear = model.depth * kept * (4 * width * width + ffn)
    if si:
        linear += tokens * model.vqvae.z_channels * width
    choosing = 0
    if kept < tokens:
        choosing += model.depth * tokens * width
    if active < experts:
        choosing += model.depth * kept * width * experts
    return ScaleWork(
        2 * ROWS * linear,
        2 * ROWS * model.depth * 2 * kept * (past + kept) * width,
        2 * ROWS * choosing,
        2 * ROWS * tokens * width * model.vqvae.vocab_size,
    )


def condition_work(model: ModelConfig) -> int:
    """The AdaLN layers, once per picture: six vectors for each block (or one set for all), and two for the head."""
    layers = 1 if model.shared_adaln else model.depth
    return 2 * ROWS * model.width * model.width * (6 * layers + 2)


def decoder_work(model: ModelConfig) -> int:
    """f_hat to a picture: the VQVAE's decoder. Guidance ends before it: one row.

    Counted as the model defines it; an exported decoder runs 4/9 of each convolution of an upsampled map.
    """
    vqvae, side = model.vqvae, model.schedule.side
    widths = [vqvae.ch * mult for mult in vqvae.ch_mult]
    lowest = widths[-1]

    def conv(inputs: int, outputs: int, kernel: int) -> int:
        return inputs * outputs * kernel * kernel * side * side

    def residual(inputs: int, outputs: int) -> int:
        shortcut = conv(inputs, outputs, 1) if inputs != outputs else 0
        return conv(inputs, outputs, 3) + conv(outputs, outputs, 3) + shortcut

    def attention(channels: int) -> int:
        return conv(channels, 4 * channels, 1) + 2 * channels * side**4

    work = conv(vqvae.z_channels, vqvae.z_channels, 3) + conv(vqvae.z_channels, lowest, 3)
    work += 2 * residual(lowest, lowest) + attention(lowest)
    before = lowest
    for level, channels in reversed(list(enumerate(widths))):
        for _ in range(vqvae.num_res_blocks + 1):
            work += residual(before, channels)
            before = channels
            if level == len(widths) - 1:
                work += attention(channels)
        if level:
            side *= 2
            work += conv(channels, channels, 3)
    return 2 * (work + conv(before, 3, 3))


def transformer_work(model: ModelConfig) -> int:
    """All scales and the condition."""
    return condition_work(model) + sum(scale_work(model, si).total for si in range(len(model.schedule)))
