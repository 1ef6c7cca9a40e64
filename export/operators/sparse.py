"""The project's own ONNX operators in one place: what they mean, and bodies in standard ONNX.

A graph uses them as nodes of the domain "actvar". ONNX Runtime, which does not know them, runs the body; TensorRT
puts a plugin of the same name in the node's place, or is given the static body where it has none (`lowering.py`). The
names are unique by themselves because TensorRT's parser looks plugins up without the domain, and every node carries
`plugin_namespace` and `plugin_version`: without them TensorRT 10.15 and later quietly runs the body.

Everywhere, of equal scores the one with the lower index counts as higher, and NaN as highest; in the static bodies as
far as the engine's own TopK has it so (docs/gpu.md).

Letters in shapes: R rows, L tokens, K kept tokens, C width, N experts, A active experts, de hidden neurons of an
expert, M tokens of all rows, H = N * de.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper, parser

from actvar.bundle.contract import EXPERTS_OPERATOR

DOMAIN, DOMAIN_VERSION = "actvar", 1
PLUGIN_NAMESPACE, PLUGIN_VERSION = "actvar", "1"
PLUGIN = {"plugin_namespace": PLUGIN_NAMESPACE, "plugin_version": PLUGIN_VERSION}


@dataclass(frozen=True)
class Operator:
    """One operator.

    Args:
        name: of operator and plugin.
        inputs, outputs: names, each with dtype, shape and meaning.
        attributes: each with its meaning; integers, but for those of `floats`.
        body: the same computation in standard operators, as text in ONNX's own syntax.
        static_body: the same where all sizes but R are known before it runs: no loop, no size that depends on data.
            Its text reads `@name` where an attribute's number stands.
    """

    name: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    attributes: dict[str, str]
    body: str
    static_body: str
    floats: tuple[str, ...] = ()

    def node(
        self, inputs: Sequence[str], output: str, name: str, *more: str, **attributes: int | float
    ) -> onnx.NodeProto:
        """A node of a graph; `more` are the outputs after the first."""
        outputs = (output, *more)
        counts = len(inputs) == len(self.inputs) and len(outputs) == len(self.outputs)
        if not counts or set(attributes) != set(self.attributes):
            raise TypeError(f"{self.name} takes {list(self.inputs)} and the attributes {list(self.attributes)}")
        values: dict[str, Any] = {**attributes, **PLUGIN}
        return helper.make_node(self.name, inputs, outputs, name=name, domain=DOMAIN, **values)

    def function(self) -> onnx.FunctionProto:
        """The body, to be added to every model that uses the operator."""
        return self._parsed(self.body)

    def static_function(self, attributes: Mapping[str, int | float]) -> onnx.FunctionProto:
        """The static body for these values of the attributes, to be put in a node's place.

        Raises:
            KeyError, ValueError: an attribute is missing, or no number of its kind.
        """
        body = self.static_body
        for name in self.attributes:
            body = body.replace(f"@{name}", f"{attributes[name]:{'.9e' if name in self.floats else 'd'}}")
        return self._parsed(body)

    def _parsed(self, body: str) -> onnx.FunctionProto:
        attributes = ", ".join((*self.attributes, *PLUGIN))
        signature = f"{self.name} <{attributes}> ({', '.join(self.inputs)}) => ({', '.join(self.outputs)})"
        return parser.parse_function(f'<opset_import: ["" : 20], domain: "{DOMAIN}"> {signature} {{ {body} }}')


# ---- bodies


def _best_first(scores: str, count: str, places: str, axis: int) -> str:
    """The node that gives the places of the `count` highest scores, highest first: what "the K best" means in a body.

    `layers.best_first` says what it rests on.
    """
    return f"best, {places} = TopK <axis = {axis}> ({scores}, {count})"


# The second TopK sorts the kept indices: smallest first.
_BEST_ASCENDING = f"""
    {_best_first("scores", "keep_1", "by_score", axis=1)}
    indices, places = TopK <axis = 1, largest = 0> (by_score, keep_1)
"""

_SELECT = f"""
    one_dimension = Constant <value_ints = [1]> ()
    keep_scalar = Constant <value_int: int = @keep> ()
    keep_1 = Reshape (keep_scalar, one_dimension)
    {_BEST_ASCENDING}
"""

_GATHER = """
    last_axis = Constant <value_ints = [-1]> ()
    indices_rk1 = Unsqueeze (indices, last_axis)
    kept = GatherND <batch_dims = 1> (x, indices_rk1)
"""

# ScatterND moves whole tokens; it has no batch dimensions, so each index becomes the pair (row, token).
_SCATTER = """
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    last_axis = Constant <value_ints = [-1]> ()
    inner_axes = Constant <value_ints = [1, 2]> ()
    row_count_1 = Shape <start = 0, end = 1> (x)
    row_count = Squeeze (row_count_1)
    row_numbers = Range (zero, row_count, one)
    row_numbers_r11 = Unsqueeze (row_numbers, inner_axes)
    indices_rk1 = Unsqueeze (indices, last_axis)
    indices_shape = Shape (indices_rk1)
    rows_rk1 = Expand (row_numbers_r11, indices_shape)
    pairs_rk2 = Concat <axis = -1> (rows_rk1, indices_rk1)
    y = ScatterND (x, pairs_rk2, updated)
"""

# Scan walks over the experts and reads each one's weights in place: ONNX Runtime hands the loop a view of one slice,
# where Slice and Split would copy it. An expert takes the tokens that chose it and adds to them in fp32.
# At 12 of 16 experts: 0.74 of the dense FFN's time for 384 tokens of width 1024 (Split weights: 0.80), 0.31 at 4 of 16.
_ROUTED_FFN = f"""
    one_dimension = Constant <value_ints = [1]> ()
    all_tokens = Constant <value_ints = [-1]> ()
    active_scalar = Constant <value_int: int = @active> ()
    active_1 = Reshape (active_scalar, one_dimension)
    x_shape = Shape (x)
    width = Shape <start = -1> (x)
    x_mc_shape = Concat <axis = 0> (all_tokens, width)
    x_mc = Reshape (x, x_mc_shape)
    expert_count = Shape <start = -1> (scores)
    scores_mn_shape = Concat <axis = 0> (all_tokens, expert_count)
    scores_mn = Reshape (scores, scores_mn_shape)

    {_best_first("scores_mn", "active_1", "chosen_ma", axis=1)}
    no = Constant <value = float {{0}}> ()
    yes = Constant <value = float {{1}}> ()
    mask_shape = Shape (scores_mn)
    nowhere_mn = Expand (no, mask_shape)
    chosen_shape = Shape (chosen_ma)
    yes_ma = Expand (yes, chosen_shape)
    mask_mn = ScatterElements <axis = 1> (nowhere_mn, chosen_ma, yes_ma)
    mask_nm = Transpose <perm = [1, 0]> (mask_mn)

    b2_fp32 = Cast <to = 1> (b2)
    x_mc_shape_known = Shape (x_mc)
    start_mc = Expand (b2_fp32, x_mc_shape_known)
    sum_mc = Scan <num_scan_inputs = 4, body = expert (before_mc, mask_m, w1_ec, b1_e, w2_ec) => (after_mc) {{
        tokens_1t = NonZero (mask_m)
        tokens_t1 = Transpose <perm = [1, 0]> (tokens_1t)
        tokens_t = Reshape (tokens_1t, all_tokens)
        x_tc = Gather <axis = 0> (x_mc, tokens_t)
        hidden_te = Gemm <transB = 1> (x_tc, w1_ec, b1_e)
        gelu_te = Gelu <approximate = "tanh"> (hidden_te)
        out_tc = MatMul (gelu_te, w2_ec)
        out_tc_fp32 = Cast <to = 1> (out_tc)
        after_mc = ScatterND <reduction = "add"> (before_mc, tokens_t1, out_tc_fp32)
    }}> (start_mc, mask_nm, w1, b1, w2)
    sum_like_x = CastLike (sum_mc, x)
    y = Reshape (sum_like_x, x_shape)
"""

# ---- static bodies

_STATIC_SELECT = f"""
    keep_1 = Constant <value_ints = [@keep]> ()
    {_BEST_ASCENDING}
"""

# As `_SCATTER`, without Range: a row's number is how many rows stand before it. ScatterElements would need no row
# numbers, but an int64 index for each of a token's C values, which is more to read than the tokens are.
STATIC_SCATTER = """
    first_axis = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    last_axis = Constant <value_ints = [-1]> ()
    indices_shape = Shape (indices)
    ones_rk = Expand (one, indices_shape)
    row_numbers_rk = CumSum <exclusive = 1> (ones_rk, first_axis)
    row_numbers_rk1 = Unsqueeze (row_numbers_rk, last_axis)
    indices_rk1 = Unsqueeze (indices, last_axis)
    pairs_rk2 = Concat <axis = -1> (row_numbers_rk1, indices_rk1)
    y = ScatterND (x, pairs_rk2, updated)
"""

# The dense FFN, its hidden neurons times 1 where the token chose their expert and times 0 elsewhere: it saves no work,
# but an engine runs it as two plain GEMMs. The second adds the experts up, in what the engine adds a GEMM up in.
_STATIC_ROUTED_FFN = f"""
    active = Constant <value_ints = [@active]> ()
    expert_count = Constant <value_int = @experts> ()
    no_yes = Constant <value = float[2] {{0, 1}}> ()
    chosen_axis = Constant <value_ints = [2]> ()
    last_axis = Constant <value_ints = [-1]> ()
    experts_apart = Constant <value_ints = [0, @experts, -1]> ()

    {_best_first("scores", "active", "chosen_rka", axis=2)}
    each_choice_rkan = OneHot (chosen_rka, expert_count, no_yes)
    mask_rkn = ReduceSum <keepdims = 0> (each_choice_rkan, chosen_axis)
    mask_rkn_like_x = CastLike (mask_rkn, x)
    mask_mn = Flatten <axis = 2> (mask_rkn_like_x)
    mask_mn1 = Unsqueeze (mask_mn, last_axis)

    x_mc = Flatten <axis = 2> (x)
    w1_hc = Flatten <axis = 2> (w1)
    b1_1h = Flatten <axis = 0> (b1)
    hidden_mh = Gemm <transB = 1> (x_mc, w1_hc, b1_1h)
    gelu_mh = Gelu <approximate = "tanh"> (hidden_mh)
    gelu_mne = Reshape (gelu_mh, experts_apart)
    masked_mne = Mul (gelu_mne, mask_mn1)
    masked_mh = Flatten <axis = 1> (masked_mne)
    w2_hc = Flatten <axis = 2> (w2)
    y_mc = Gemm (masked_mh, w2_hc, b2)
    x_shape = Shape (x)
    y = Reshape (y_mc, x_shape)
"""


OPERATORS = {
    operator.name: operator
    for operator in (
        Operator(
            "ActVarTokenSelect",
            inputs={"scores": "[R, L] fp32"},
            outputs={"indices": "[R, K] int64: places of each row's highest scores, ascending"},
            attributes={"keep": "K, at most L"},
            body=_SELECT,
            static_body=_STATIC_SELECT,
        ),
        Operator(
            "ActVarTokenGather",
            inputs={"x": "[R, L, C] fp32 or fp16", "indices": "[R, K] int64, in 0..L-1"},
            outputs={"kept": "[R, K, C], of x's type: the tokens at these places"},
            attributes={},
            body=_GATHER,
            static_body=_GATHER,
        ),
        Operator(
            "ActVarTokenScatter",
            inputs={
                "x": "[R, L, C] fp32 or fp16",
                "indices": "[R, K] int64, in 0..L-1, different within a row",
                "updated": "[R, K, C], of x's type",
            },
            outputs={"y": "[R, L, C], of x's type: x with these tokens in their places"},
            attributes={},
            body=_SCATTER,
            static_body=STATIC_SCATTER,
        ),
        Operator(
            EXPERTS_OPERATOR,
            inputs={
                "x": "[R, K, C] fp32 or fp16",
                "scores": "[R, K, N] fp32: the router's",
                "w1": "[N, de, C], of x's type: each expert's rows of fc1, [out, in]",
                "b1": "[N, de], of x's type",
                "w2": "[N, de, C], of x's type: each expert's columns of fc2, [in, out]",
                "b2": "[C], of x's type: shared, added once",
            },
            outputs={"y": "[R, K, C], of x's type: the sum of each token's best experts, added up in fp32"},
            attributes={"experts": "N", "active": "A, at most N: experts of each token"},
            body=_ROUTED_FFN,
            static_body=_STATIC_ROUTED_FFN,
        ),
    )
}
