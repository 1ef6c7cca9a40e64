"""The random numbers of a picture: one uniform number for every token, or noise for every code of it.

Row (seed, picture number, scale, token) decides a number, and for noise the code, too; so picture i of a seed is the
same at any batch size, in any order and on any backend. numpy only: the runtime has no torch.
"""

import numpy as np

from actvar.config import ModelConfig

_UNIFORMS, _NOISE = 1, 2
"""In the counter: apart from Glyphs-100's own draws, and from each other."""


def token_uniforms(seed: int, picture: int, si: int, tokens: int) -> np.ndarray:
    """Uniforms in [0, 1) for the tokens of one scale of one picture: [tokens] fp32.

    Source: Philox 4x64 (Salmon et al. 2011), keyed by seed and picture number, the scale in its counter's high words.

    Raises:
        ValueError: seed or picture is negative or needs more than 64 bits.
    """
    return np.random.Generator(_bits(seed, picture, si, _UNIFORMS)).random(tokens, dtype=np.float32)


def token_noise(seed: int, picture: int, si: int, tokens: int, codes: int) -> np.ndarray:
    """Gumbel noise for each code of each token of one scale of one picture: [tokens, codes] fp32, all of it finite.

    -log(-log(u)), where u is the middle of one of 2^32 equal parts of [0, 1]. The logarithms are of float64, rounded
    once: so all engines are given the same bits, and so are all machines, whose logarithms of fp32 differ.

    Errors are those of `token_uniforms`, whose numbers are others.
    """
    count = tokens * codes
    parts = _bits(seed, picture, si, _NOISE).random_raw((count + 1) // 2).astype("<u8", copy=False).view("<u4")[:count]
    noise = np.log((parts + 0.5) * 2.0**-32)
    np.log(np.negative(noise, out=noise), out=noise)
    return np.negative(noise, out=noise).astype(np.float32).reshape(tokens, codes)


def random_input(model: ModelConfig) -> str:
    """What a scale's graph calls its random numbers: "uniform" [B, L], or "noise" [B, L, V] where codes are mixed."""
    return "noise" if model.smooth else "uniform"


def token_randoms(model: ModelConfig, seed: int, picture: int, si: int) -> np.ndarray:
    """Those of one scale of one picture of a model: uniforms [L], or noise [L, V] where codes are mixed; fp32."""
    tokens = model.schedule.tokens[si]
    if model.smooth:
        return token_noise(seed, picture, si, tokens, model.vqvae.vocab_size)
    return token_uniforms(seed, picture, si, tokens)


def _bits(seed: int, picture: int, si: int, use: int) -> np.random.Philox:
    if not (0 <= seed < 2**64 and 0 <= picture < 2**64):
        raise ValueError(f"seed and picture number must lie in 0..2^64-1, got {seed} and {picture}")
    key = np.array([seed, picture], dtype=np.uint64)  # of a list with a number above 2^63 numpy would make floats
    return np.random.Philox(key=key, counter=[0, 0, use, si])
