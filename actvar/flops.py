"""Operations of one picture, counted from the configuration alone.

A multiply and its add are two operations. Counted are matrix products and convolutions; norms, activations, softmaxes,
sampling and the quantizer's small maps (under a thousandth of the whole for every preset) are not. Guidance doubles the
transformer's rows: at a guided scale each picture has a conditional and an unconditional one. Plain Python.

Letters: D depth, C width, L tokens of a scale, K kept tokens, P cached tokens, N experts, V codes, E code width,
S side of a map.
"""

from dataclasses import astuple, dataclass

from actvar.config import DYNAMIC, ModelConfig, SmallDecoderConfig

ROWS = 2
"""Rows of the transformer for each picture at a guided scale; elsewhere there is 1 (`ModelConfig.row_groups`)."""


@dataclass(frozen=True)
class ScaleWork:
    """Operations of one scale for one picture, by part.

    `projections` are q, k, v and what follows attention; `attention` the products of queries with keys and of weights
    with values; `head` the logits.
    """

    embedding: int
    projections: int
    attention: int
    ffn: int
    selector: int
    router: int
    head: int

    @property
    def linear(self) -> int:
        """What tokens cost by themselves, up to the head."""
        return self.embedding + self.projections + self.ffn

    @property
    def choosing(self) -> int:
        """What it costs to leave something out."""
        return self.selector + self.router

    @property
    def total(self) -> int:
        """All together."""
        return sum(astuple(self))


def scale_work(model: ModelConfig, si: int, rows: int | None = None) -> ScaleWork:
    """What scale index si costs, with the model's active tokens and experts; and with its own rows, if none are named.

    A block runs on K of L tokens. Of its 12 C^2 weights the attention has 4 C^2, and the FFN's 8 C^2 are used in
    proportion to the active experts. The selector sees L tokens and the router K; a scale that keeps all has neither.
    Of a baseline, a fixed choice of tokens has one selector in all, and a static choice of experts no router.
    """
    width, tokens, kept, past = model.width, model.schedule.tokens[si], model.kept_tokens(si), model.cached_tokens[si]
    experts, selectors, routers = 1, model.depth, model.depth
    if activation := model.activation:
        experts = activation.experts
        selectors = model.depth if activation.token_choice == DYNAMIC else 1
        routers = model.depth if activation.expert_choice == DYNAMIC else 0
    active, rows = model.active_experts(si), rows or model.row_groups(si)
    one, blocks = 2 * rows, 2 * rows * model.depth
    return ScaleWork(
        embedding=one * tokens * model.vqvae.z_channels * width if si else 0,
        projections=blocks * kept * 4 * width * width,
        attention=blocks * 2 * kept * (past + kept) * width,
        ffn=blocks * kept * (8 * width * width * active // experts),  # N divides 4C, so this is a whole number
        selector=one * selectors * tokens * width if kept < tokens else 0,
        router=one * routers * kept * width * experts if active < experts else 0,
        head=one * tokens * width * model.vqvae.vocab_size,
    )


def condition_work(model: ModelConfig, rows: int | None = None) -> int:
    """The AdaLN layers, once per picture: six vectors for each block (or one set for all), and two for the head."""
    layers = 1 if model.shared_adaln else model.depth
    return 2 * (rows or model.row_groups(0)) * model.width * model.width * (6 * layers + 2)


def decoder_work(model: ModelConfig) -> int:
    """f_hat to a picture: the VQVAE's decoder, or the small one of a model that has it. Guidance ends before: one row.

    Counted as the model defines it; an exported decoder runs 4/9 of each convolution of an upsampled map.
    """
    if model.small_decoder:
        return _small_decoder_work(model.small_decoder, model)
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

    work = conv(vqvae.z_channels, vqvae.z_channels, vqvae.code_kernel) + conv(vqvae.z_channels, lowest, 3)
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


def _small_decoder_work(small: SmallDecoderConfig, model: ModelConfig) -> int:
    """All its convolutions are 3 x 3: three in a block, one behind each doubling of the side, one at either end."""
    width, side, doublings = small.width, model.schedule.side, len(model.vqvae.ch_mult) - 1
    work = model.vqvae.z_channels * width * side**2
    for _ in range(doublings):
        work += 3 * small.depth * width * width * side**2
        side *= 2
        work += width * width * side**2
    work += (3 * width * width + 3 * width) * side**2
    return 2 * 9 * work


def transformer_work(model: ModelConfig, rows: int | None = None) -> int:
    """All scales and the condition."""
    return condition_work(model, rows) + sum(scale_work(model, si, rows).total for si in range(len(model.schedule)))
