"""The random numbers of a picture: one uniform number for every token, decided by its place alone.

Row (seed, picture number, scale, token) decides the number, so picture i of a seed is the same at any batch size, in
any order and on any backend. numpy only: the runtime has no torch.
"""

import numpy as np


def token_uniforms(seed: int, picture: int, si: int, tokens: int) -> np.ndarray:
    """Uniforms in [0, 1) for the tokens of one scale of one picture: [tokens] fp32.

    Source: Philox 4x64 (Salmon et al. 2011), keyed by seed and picture number, the scale in its counter's high words.

    Raises:
        ValueError: seed or picture is negative or needs more than 64 bits.
    """
    if not (0 <= seed < 2**64 and 0 <= picture < 2**64):
        raise ValueError(f"seed and picture number must lie in 0..2^64-1, got {seed} and {picture}")
    key = np.array([seed, picture], dtype=np.uint64)  # of a list with a number above 2^63 numpy would make floats
    bits = np.random.Philox(key=key, counter=[0, 0, 1, si])  # 1: apart from Glyphs-100's own draws
    return np.random.Generator(bits).random(tokens, dtype=np.float32)
