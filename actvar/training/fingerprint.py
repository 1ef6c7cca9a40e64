"""Short names for what a run is made of, so that its state is not continued with something else.

They look at a sample of the values, the same for the same content, so that they take no time on billions of them. They
tell one training's weights and one data set's tokens from another's; they are no defence against forgery.

Letters in shapes: N rows, T tokens.
"""

import hashlib

import numpy as np
import torch
from torch import nn

from actvar.data.tokens import TokenStore

_VALUES = 64  # of each tensor
_ROWS = 64  # of a store
_DIGITS = 16


def weights_fingerprint(module: nn.Module) -> str:
    """Of a module's weights: names, shapes and some values of every tensor."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        values = tensor.detach().flatten()
        places = torch.as_tensor(_spread(len(values), _VALUES), device=values.device)
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(values[places].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:_DIGITS]


def store_fingerprint(store: TokenStore) -> str:
    """Of a data set's tokens: all classes, and the tokens of some rows."""
    digest = hashlib.sha256(f"{len(store)} {store.token_ids.shape}\n".encode())
    digest.update(np.ascontiguousarray(store.class_ids).tobytes())
    digest.update(np.ascontiguousarray(store.token_ids[_spread(len(store), _ROWS)]).tobytes())
    return digest.hexdigest()[:_DIGITS]


def _spread(length: int, wanted: int) -> np.ndarray:
    """Places from the first to the last, evenly spread."""
    return np.unique(np.linspace(0, length - 1, min(length, wanted)).round().astype(np.int64))
