"""The kernels as PyTorch operators: schema, fake tensors, refusals, and numbers.

Without a GPU the operators get a CPU implementation for the length of a test: the same binding over the library that
runs the kernels on the host (tests/cuda_on_host).

Letters in shapes: R rows, L tokens, K kept tokens, C width, N experts, de hidden neurons of an expert.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from kernel_library import host_library
from operator_references import REFERENCES
from plugin_build import kernel_library_path
from small_models import small_config, vivid_model
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from actvar.config import DYNAMIC, FIXED, Activation, Sampling
from actvar.drawers import EagerModel, ToDraw
from actvar.errors import ActVARError, EngineError
from actvar.export.operators.fused import ALL_OPERATORS
from actvar.plugins.kernel_calls import open_kernels
from actvar.plugins.library import PLUGIN_VARIABLE
from actvar.plugins.torch import operators as torch_operators
from actvar.plugins.torch.operators import Launcher
from actvar.plugins.torch.sparse import LibraryOperators
from actvar.recorded.model import RecordedModel
from actvar.recorded.recorders import CudaGraphs, run_again

NAMES = {
    "token_select": "ActVarTokenSelect",
    "token_gather": "ActVarTokenGather",
    "token_scatter": "ActVarTokenScatter",
    "routed_ffn": "ActVarRoutedFFN",
    "token_gather_norm": "ActVarTokenGatherNorm",
    "token_scatter_gated": "ActVarTokenScatterGated",
}
ONNX_TYPES = {torch.float32: 1, torch.float16: 10, torch.bfloat16: 16}
R, L, K, C, N, DE = 2, 9, 5, 16, 4, 8


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch) -> Iterator[str]:
    """Where the operators run; the CPU's implementation is taken back with the library object that holds it."""
    if request.param == "cuda":
        monkeypatch.setenv(PLUGIN_VARIABLE, str(kernel_library_path()))
        torch_operators._on_cuda.cache_clear()
        yield "cuda"
        return
    launcher = Launcher(open_kernels(Path(host_library()._name)), lambda tensor: nullcontext(0))
    implementations = torch.library.Library("actvar", "IMPL", "CPU")
    for name in NAMES:
        implementations.impl(name, getattr(launcher, name))
    yield "cpu"
    del implementations


def random(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(device)


def arguments(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple:
    """What an operator may be called with."""
    x = random(R, L, C, device=device, dtype=dtype)
    indices = torch.tensor([[0, 2, 3, 7, 8], [1, 2, 4, 5, 6]], device=device)
    shapes = (N, DE, C), (N, DE), (N, DE, C), (C,)
    weights = [random(*shape, device=device, dtype=dtype, seed=1 + i) / 4 for i, shape in enumerate(shapes)]
    return {
        "token_select": (random(R, L, device=device), K),
        "token_gather": (x, indices),
        "token_scatter": (x, indices, random(R, K, C, device=device, dtype=dtype, seed=9)),
        "routed_ffn": (x[:, :K], random(R, K, N, device=device, seed=8), *weights, N, 3),
        "token_gather_norm": (
            x.float(),
            indices,
            *(random(R, 1, C, device=device, seed=seed) for seed in (5, 6)),
            dtype,
            1e-6,
        ),
        "token_scatter_gated": (
            x.float(),
            indices,
            random(R, K, C, device=device, seed=5),
            random(R, 1, C, device=device, seed=6),
            random(R, K, C, device=device, dtype=dtype, seed=7),
        ),
    }[name]


def operator(name: str):
    """As a user calls it."""
    return getattr(torch.ops.actvar, name)


def in_fp32(value: object) -> object:
    """A tensor as an array, of fp32 where it is a float; a type as ONNX's number; anything else as it is."""
    if isinstance(value, Tensor):
        return (value.float() if value.is_floating_point() else value).cpu().numpy()
    return ONNX_TYPES[torch.float32] if isinstance(value, torch.dtype) else value


def reference(name: str, given: tuple) -> tuple[np.ndarray, ...]:
    """What the ONNX operator's reference makes of the same arguments, in fp32."""
    return several(REFERENCES[NAMES[name]](*map(in_fp32, given)))


def several(results: object) -> tuple:
    """One result as one of several."""
    return results if isinstance(results, tuple) else (results,)


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_those_of_the_onnx_operator(name):
    """A node of a graph and an eager call are the same operator: its inputs, then its attributes, by the same names."""
    meant = ALL_OPERATORS[NAMES[name]]
    schema = operator(name).default._schema
    assert [argument.name for argument in schema.arguments] == [*meant.inputs, *meant.attributes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_operators_compute_what_their_references_do(device, name, dtype):
    """Through torch.ops, by the kernels themselves."""
    given = arguments(name, device, dtype)
    results, expected = several(operator(name)(*given)), reference(name, given)
    copies = name in ("token_select", "token_gather", "token_scatter")
    tolerance = 0 if copies else {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for result, wanted in zip(results, expected, strict=True):
        assert result.shape == wanted.shape
        np.testing.assert_allclose(result.float().cpu().numpy(), wanted.astype(np.float32), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_operators_keep_to_the_rules_of_torch_library(device, name):
    """Nothing is changed or aliased that the schema does not say, and fake tensors give the same shapes and dtypes."""
    torch.library.opcheck(operator(name), arguments(name, device))


@pytest.mark.parametrize("name", NAMES)
def test_fake_tensors_have_the_references_shapes(name):
    """torch.export sees these; they are fake tensors of CUDA, which need none."""
    expected = reference(name, arguments(name))
    with FakeTensorMode() as mode:
        given = [
            torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device="cuda") if isinstance(v, Tensor) else v
            for v in arguments(name)
        ]
        results = several(operator(name)(*given))
    for result, wanted in zip(results, expected, strict=True):
        assert mode is result.fake_mode and result.device.type == "cuda"
        assert tuple(result.shape) == wanted.shape
        assert result.dtype == (torch.int64 if name == "token_select" else torch.float32)


def test_the_fused_gather_gives_the_type_that_was_asked_for(device):
    """And the kept tokens in fp32, whatever that is."""
    kept, normed = operator("token_gather_norm")(*arguments("token_gather_norm", device, torch.bfloat16))
    assert (kept.dtype, normed.dtype) == (torch.float32, torch.bfloat16)


def test_operators_can_be_exported(device):
    """By torch.export, with R dynamic, as the graphs have it."""

    class Block(torch.nn.Module):
        def forward(self, x, scores):
            indices = operator("token_select")(scores, K)
            return operator("token_scatter")(x, indices, operator("token_gather")(x, indices) * 2)

    x, scores = random(3, L, C, device=device), random(3, L, device=device, seed=1)
    rows = torch.export.Dim("R", min=2, max=64)
    exported = torch.export.export(Block(), (x, scores), dynamic_shapes=({0: rows}, {0: rows})).module()
    more = random(5, L, C, device=device), random(5, L, device=device, seed=2)
    expected = more[0].clone()
    for row, kept in enumerate(operator("token_select")(more[1], K).tolist()):
        expected[row, kept] *= 2
    torch.testing.assert_close(exported(*more), expected, rtol=0, atol=0)


def test_views_are_read_as_they_are(device):
    """Not contiguous, and at an address that the routed FFN cannot read: copied, not misread and not refused."""
    x, scores, w1, *rest = arguments("routed_ffn", device, torch.float16)
    flat = torch.zeros(x.numel() + 1, dtype=x.dtype, device=device)
    flat[1:] = x.reshape(-1)
    odd = flat[1:].view(x.shape)
    turned = w1.transpose(0, 1).contiguous().transpose(0, 1)
    assert odd.data_ptr() % 16 and not turned.is_contiguous()
    straight = operator("routed_ffn")(x.contiguous(), scores, w1, *rest)
    torch.testing.assert_close(operator("routed_ffn")(odd, scores, turned, *rest), straight, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "place", "wrong", "said"),
    [
        ("token_select", 0, torch.zeros(R, L, dtype=torch.float16), "scores must be [R, L] of fp32"),
        ("token_select", 0, torch.zeros(R, 1025), "at most 1024 in a row"),
        ("token_select", 1, L + 1, "keep must be 1 to L, and is 10"),
        ("token_select", 1, 0, "keep must be 1 to L, and is 0"),
        ("token_gather", 0, torch.zeros(R, L, C, dtype=torch.float64), "x must be [R, L, C] of fp32, fp16 or bf16"),
        ("token_gather", 1, torch.zeros(R, K, dtype=torch.int32), "indices must be [R, K] of int64"),
        ("token_gather", 1, torch.zeros(R + 1, K, dtype=torch.int64), "with x's R"),
        ("token_scatter", 1, torch.zeros(R, L + 1, dtype=torch.int64), "at most x's 9 in a row"),
        ("token_scatter", 2, torch.zeros(R, K, C + 1), "updated must be [2, 5, 16]"),
        ("token_gather_norm", 0, torch.zeros(R, L, C, dtype=torch.float16), "x must be of fp32"),
        ("token_gather_norm", 2, torch.zeros(R, C), "scale must be [2, 1, 16]"),
        ("token_gather_norm", 4, torch.float64, "to must be fp32, fp16 or bf16"),
        ("token_scatter_gated", 3, torch.zeros(R, K, C), "gamma must be [2, 1, 16]"),
        ("token_scatter_gated", 4, torch.zeros(R, K, C, dtype=torch.int32), "change must be shaped as kept"),
        ("routed_ffn", 1, torch.zeros(R, K, N + 1), "scores must be [2, 5, 4] of fp32"),
        ("routed_ffn", 2, torch.zeros(N, DE, C, dtype=torch.float16), "w1 must be [4, 8, 16] of x's torch.float32"),
        ("routed_ffn", 2, torch.zeros(N, 12, C), "multiples of 8"),
        ("routed_ffn", 4, torch.zeros(N, DE + 8, C), "w2 must be [4, 8, 16]"),
        ("routed_ffn", 6, N + 1, "scores must be [2, 5, 5]"),
        ("routed_ffn", 7, N + 1, "active 5 of experts 4"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_launched(device, name, place, wrong, said):
    """The kernels would read and write out of bounds."""
    given = list(arguments(name, device))
    given[place] = wrong.to(device) if isinstance(wrong, Tensor) else wrong
    with pytest.raises(ValueError, match=re.escape(said)):
        operator(name)(*given)


def test_tensors_of_the_cpu_are_refused():
    """In a process of its own, where nobody has given the operators a CPU implementation."""
    code = (
        "import torch\nfrom actvar.plugins.torch import operators as torch_operators\n"
        "try:\n    torch.ops.actvar.token_select(torch.zeros(2, 3), 1)\n"
        "except NotImplementedError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'actvar::token_select'" in done.stdout and "'CPU' backend" in done.stdout


def test_kernels_that_are_not_built_are_said(monkeypatch):
    """An empty variable says to do without."""
    monkeypatch.setenv(PLUGIN_VARIABLE, "")
    with pytest.raises(ActVARError, match="kernels are not built here"):
        open_kernels()


def test_a_library_of_something_else_is_refused(tmp_path):
    """No library at all, and one without our functions."""
    (tmp_path / "libactvar_kernels.so").write_text("text")
    for path in (tmp_path / "libactvar_kernels.so", Path(sys.modules["_ctypes"].__file__)):
        with pytest.raises(EngineError, match="cannot be used"):
            open_kernels(path)


def test_an_error_of_cuda_is_said_in_words():
    """Not as a number alone, and with the kernel's name."""
    kernels = open_kernels(Path(host_library()._name))
    with pytest.raises(EngineError, match="actvarTokenSelect failed with CUDA error 1: invalid value"):
        kernels.launch("actvarTokenSelect", None, 1, 1, 2, None, None, None)


# ---- in a drawing


def test_a_drawing_by_the_kernels_is_the_eager_models(device: str):
    """Token by token, every operator in its place: tokens of each block's choice or the first one's, routed experts."""
    for token_choice in (DYNAMIC, FIXED):
        activation = Activation(16, (2, 3), (0.75, 0.5), (0.5, 0.25), token_choice)
        model = vivid_model(small_config((1, 2, 3), activation))
        used: list[str] = []
        with _Noting(used):
            drawer = RecordedModel(
                model, "fp32", device, LibraryOperators("8.9"), CudaGraphs() if device == "cuda" else run_again, 2
            )
            wanted = [ToDraw(3, 7, 0), ToDraw(1, 7, 1)]
            drawn = drawer.draw(wanted, Sampling(2.0, 20, 0.9))
        for ids_S, picture in zip(drawn.token_ids_BS, wanted, strict=True):
            alone = EagerModel(model).draw([picture], Sampling(2.0, 20, 0.9))
            np.testing.assert_array_equal(ids_S, alone.token_ids_BS[0])
        of_blocks, once = {"token_gather_norm", "token_scatter_gated"}, {"token_gather", "token_scatter"}
        assert set(used) == {"token_select", "routed_ffn", *(of_blocks if token_choice == DYNAMIC else once)}


class _Noting(TorchDispatchMode):
    """Notes which of our operators are called."""

    def __init__(self, used: list[str]):
        super().__init__()
        self._used = used

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "actvar":
            self._used.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))
