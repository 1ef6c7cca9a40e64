"""The K best of some scores: one rule, and every language's definition of it held against the rule itself.

Higher scores first; of equal ones the lower place; -0 equals +0; NaN, of either sign, is above all and equal to NaN.

Letters in shapes: M tokens of N scores each, K chosen.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from kernel_library import kernels_on
from operator_bodies import run_body, run_static_body
from operator_references import REFERENCES

from actvar.export.graphs.builder import GraphBuilder
from actvar.export.graphs.experts import chosen_experts
from actvar.export.graphs.layers import best_places
from actvar.models.selection import token_select, top_mask

M, N = 24, 32  # N: the most experts that the kernels know
LEVELS = {
    "all equal": [1.5],
    "many ties": [-2.0, 0.5, 7.0],
    "zeros of both signs": [-0.0, 0.0],
    "zeros and their neighbours": [-1e-45, -0.0, 0.0, 1e-45],
    "next to each other": [1.0, np.nextafter(np.float32(1), np.float32(2))],
    "infinite": [-np.inf, -1.0, 0.0, np.inf],
    "NaN of both signs": [-np.nan, -1.0, 2.0, np.nan],
    "NaN beside infinity": [-np.inf, np.nan, np.inf, -np.nan, 0.0],
    "NaN alone": [np.nan],
}


def scores_of(kind: str) -> np.ndarray:
    """MN: these levels in random places."""
    rng = np.random.default_rng(0)
    if kind == "distinct":
        return rng.permutation(M * N).astype(np.float32).reshape(M, N)
    return rng.choice(np.array(LEVELS[kind], np.float32), (M, N))


def best(row: np.ndarray, keep: int) -> list[int]:
    """The rule as it reads; the places ascend."""

    def rank(i: int) -> tuple[bool, float, int]:
        is_number = not np.isnan(row[i])
        return is_number, -row[i] if is_number else 0.0, i

    return sorted(sorted(range(len(row)), key=rank)[:keep])


# ---- who chooses: from scores MN and K to places MK, ascending, or to a mask MN


def written(write: Callable[[GraphBuilder, str], str], scores_MN: np.ndarray) -> np.ndarray:
    """What a graph gives of which the graphs' writer wrote a part."""
    b = GraphBuilder("test", {}, "float32")
    b.input("scores", "float32", ("M", N))
    b.op("Cast", write(b, "scores"), to=onnx.TensorProto.INT64, output="y")
    b.output("y", "int64", ("M", "K"))
    session = onnxruntime.InferenceSession(b.build().SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y"], {"scores": scores_MN})[0]


def route(scores_MN: np.ndarray, keep: int) -> np.ndarray:
    """The kernel gives a bit for each expert."""
    return kernels_on("host").route(scores_MN, keep)[:, None] >> np.arange(N, dtype=np.uint32) & 1


def used_by(ffn: Callable[..., np.ndarray], scores_MN: np.ndarray, keep: int) -> np.ndarray:
    """Which experts a routed FFN adds up: each adds 1 at a place of its own."""
    x, w1, b1 = np.zeros((1, M, N), np.float32), np.zeros((N, 8, N), np.float32), np.zeros((N, 8), np.float32)
    w2, b2 = np.zeros((N, 8, N), np.float32), np.zeros(N, np.float32)
    b1[:, 0] = 10  # and so is GELU of it
    w2[range(N), 0, range(N)] = 0.1
    return ffn([x, scores_MN[None], w1, b1, w2, b2], experts=N, active=keep)[0] > 0.5


def ffn_kernel(inputs: list[np.ndarray], experts: int, active: int) -> np.ndarray:
    """As the operator has it, with rows."""
    x, scores, *weights = inputs
    return kernels_on("host").routed_ffn(x[0], scores[0], *weights, active=active)[None]


def written_places(scores_MN: np.ndarray, keep: int) -> np.ndarray:
    """As the graph of all scales has them."""
    return written(lambda b, scores: best_places(b, scores, b.ints(keep), 1, ("best", "ascending")), scores_MN)


PLACES = {
    "numpy": REFERENCES["ActVarTokenSelect"],
    "torch": lambda scores, keep: token_select(torch.from_numpy(scores), keep).numpy(),
    "ONNX graph": written_places,
    "ONNX body": lambda scores, keep: run_body("ActVarTokenSelect", [scores], keep=keep),
    "ONNX static body": lambda scores, keep: run_static_body("ActVarTokenSelect", [scores], keep=keep),
    "CUDA": lambda scores, keep: kernels_on("host").select(scores, keep)[0],
}
MASKS = {
    "numpy, FFN": partial(used_by, lambda inputs, **sizes: REFERENCES["ActVarRoutedFFN"](*inputs, **sizes)),
    "torch": lambda scores, keep: top_mask(torch.from_numpy(scores), keep).numpy(),
    "ONNX graph": lambda scores, keep: written(lambda b, given: chosen_experts(b, given, b.ints(keep)), scores),
    "ONNX body, FFN": partial(used_by, partial(run_body, "ActVarRoutedFFN")),
    "ONNX static body, FFN": partial(used_by, partial(run_static_body, "ActVarRoutedFFN")),
    "CUDA": route,
    "CUDA, FFN": partial(used_by, ffn_kernel),
}


@pytest.mark.parametrize("kind", ["distinct", *LEVELS])
@pytest.mark.parametrize("keep", [1, 5, 31, 32])
@pytest.mark.parametrize("who", PLACES)
def test_places_are_those_of_the_best(who, keep, kind):
    """A kernel that breaks ties otherwise would keep other tokens than the model that was trained."""
    scores = scores_of(kind)
    assert PLACES[who](scores, keep).tolist() == [best(row, keep) for row in scores]


@pytest.mark.parametrize("kind", ["distinct", *LEVELS])
@pytest.mark.parametrize("keep", [1, 5, 31, 32])
@pytest.mark.parametrize("who", MASKS)
def test_masks_are_those_of_the_best(who, keep, kind):
    """The router's rule is the selector's."""
    scores = scores_of(kind)
    assert [row.nonzero()[0].tolist() for row in MASKS[who](scores, keep)] == [best(row, keep) for row in scores]
