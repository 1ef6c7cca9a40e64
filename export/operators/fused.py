"""Operators that the lowering makes of others, where an engine has a plugin for them; the exporter writes none.

They are described as those of `sparse.py` are, body included: so ONNX Runtime can run a fused graph, and show that it
computes what the graph did before.

Letters in shapes: R rows, L tokens, K kept tokens, C width.
"""

from actvar.export.operators.sparse import OPERATORS, STATIC_SCATTER, Operator

_GATHER_NORM = """
    last_axis = Constant <value_ints = [-1]> ()
    one = Constant <value = float {1}> ()
    indices_rk1 = Unsqueeze (indices, last_axis)
    kept = GatherND <batch_dims = 1> (x, indices_rk1)
    width = Shape <start = -1> (x)
    ones_c = Expand (one, width)
    unit = LayerNormalization <axis = -1, epsilon: float = @epsilon> (kept, ones_c)
    one_plus_scale = Add (scale, one)
    scaled = Mul (unit, one_plus_scale)
    shifted = Add (scaled, shift)
    normed = Cast <to: int = @to> (shifted)
"""

_SCATTER_GATED = f"""
    change_fp32 = Cast <to = 1> (change)
    gated = Mul (change_fp32, gamma)
    updated = Add (kept, gated)
    {STATIC_SCATTER}
"""

FUSED = {
    operator.name: operator
    for operator in (
        Operator(
            "ActVarTokenGatherNorm",
            inputs={
                "x": "[R, L, C] fp32",
                "indices": "[R, K] int64, in 0..L-1",
                "scale": "[R, 1, C] fp32",
                "shift": "[R, 1, C] fp32",
            },
            outputs={
                "kept": "[R, K, C] fp32: the tokens at these places",
                "normed": "[R, K, C], of the type `to`: LayerNorm(kept) * (1 + scale) + shift, computed in fp32",
            },
            attributes={
                "to": "ONNX's number of a type, as Cast has it: 1 fp32, 10 fp16, 16 bf16",
                "epsilon": "under the root of LayerNorm",
            },
            floats=("epsilon",),
            body=_GATHER_NORM,
            static_body=_GATHER_NORM,
        ),
        Operator(
            "ActVarTokenScatterGated",
            inputs={
                "x": "[R, L, C] fp32",
                "indices": "[R, K] int64, in 0..L-1, different within a row",
                "kept": "[R, K, C] fp32",
                "gamma": "[R, 1, C] fp32",
                "change": "[R, K, C] fp32, fp16 or bf16",
            },
            outputs={"y": "[R, L, C] fp32: x with kept + gamma * change, computed in fp32, in these places"},
            attributes={},
            body=_SCATTER_GATED,
            static_body=_SCATTER_GATED,
        ),
    )
}

ALL_OPERATORS = {**OPERATORS, **FUSED}
"""Whatever a plugin may be for."""
