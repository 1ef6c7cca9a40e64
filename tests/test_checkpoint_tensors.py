"""Tensors that are no weights as they stand: each is refused by its name, and none is touched before."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_checkpoints import official_files, own_file, refused, same, tiny_var
from torch import Tensor

from actvar.checkpoint.files import Checkpoint
from actvar.checkpoint.model import load_model, open_checkpoint
from actvar.checkpoint.weights import Weights
from actvar.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:.*(quantized tensor|nested tensors|Sparse CSR)")


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return official_files(tmp_path)


class Tagged(Tensor):
    """A tensor of a class of somebody's own."""


def quantised() -> Tensor:
    return torch.quantize_per_tensor(torch.ones(24), 0.1, 0, torch.quint8)


def quantised_by_channel() -> Tensor:
    return torch.quantize_per_channel(torch.ones(24, 2), torch.ones(24), torch.zeros(24), 0, torch.qint8)


def attributed() -> Tensor:
    tensor = torch.ones(24)
    tensor.scale = 2.0  # type: ignore[attr-defined]
    return tensor


def attributed_parameter() -> Tensor:
    parameter = torch.nn.Parameter(torch.ones(24))
    parameter.scale = 2.0  # type: ignore[attr-defined]
    return parameter


ODD: dict[str, tuple[Any, str]] = {
    "sparse": (lambda: torch.ones(24).to_sparse(), "float32 sparse_coo"),
    "sparse by rows": (lambda: torch.eye(24).to_sparse_csr(), "float32 sparse_csr"),
    "quantised": (quantised, "a quantised tensor"),
    "quantised by channel": (quantised_by_channel, "a quantised tensor"),
    "meta": (lambda: torch.ones(24, device="meta"), "a meta tensor, which has no values"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(2)]), "a nested tensor"),
    "with attributes": (attributed, "a tensor of a sub-class or with attributes"),
    "a parameter with attributes": (attributed_parameter, "a tensor with attributes"),
    "complex": (lambda: torch.ones(24, dtype=torch.complex64), "complex64"),
    "conjugate": (lambda: torch.ones(24, dtype=torch.complex64).conj(), "complex64"),
    "negative": (lambda: torch.ones(24, dtype=torch.complex64).conj().imag, "float32, its values with the other sign,"),
    "packed": (lambda: torch.ones(24, dtype=torch.uint8).view(torch.float8_e8m0fnu), "float8_e8m0fnu"),
    "zero strides": (lambda: torch.ones(1).expand(24), "float32 of the shape [24]"),
    "empty": (lambda: torch.ones(0, 24), "float32 of the shape [0, 24]"),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", ["head.bias", "lvl_1L", "pos_1LC", "attn_bias_for_masking"])
def test_an_odd_tensor_is_refused_by_its_name(files, kind, name):
    """Among the weights, the buffers that are compared, and those whose shape tells the model."""
    make, found = ODD[kind]
    torch.save(tiny_var() | {name: make()}, files[0])
    text = refused(f"{name}: expected a dense tensor with all its values", *files)
    assert f"found {found}" in text


@pytest.mark.parametrize("kind", ["sparse", "quantised", "meta"])
def test_an_odd_tensor_deep_in_a_file_is_named_by_the_way_to_it(files, kind):
    """Also where nothing would have looked at it: rebuilding it is what may fail, or take the memory."""
    make, _ = ODD[kind]
    torch.save({"model": tiny_var(), "optimizer": {"state": {0: {"exp_avg": [None, make()]}}}}, files[0])
    refused(r"optimizer\.state\.0\.exp_avg\.1: expected a dense tensor", *files)


def test_a_tensor_of_a_sub_class_is_refused(files):
    torch.save(tiny_var() | {"head.bias": torch.ones(24).as_subclass(Tagged)}, files[0])
    refused(r"is refused: beside tensors it asks for test_checkpoint_tensors\.Tagged, which could run code", *files)
    with pytest.raises(CheckpointError, match="found a tensor of the sub-class Tagged"):
        Weights.of(files[0], "", {"head.bias": torch.ones(24).as_subclass(Tagged)})


def test_what_requires_gradients_is_read_without_them(files, tmp_path):
    """`torch.save(dict(model.named_parameters()))`, as people do."""
    expected = load_model(*files).state_dict()
    state = {
        name: torch.nn.Parameter(value) if value.is_floating_point() else value for name, value in tiny_var().items()
    }
    state["head.bias"] = state["head.bias"].detach().requires_grad_()
    torch.save(state, files[0])
    stored = open_checkpoint(Checkpoint(*files))
    assert np.array_equal(stored.read("var.head.bias"), expected["var.head.bias"].numpy())
    assert same(load_model(*files).state_dict(), expected)


def test_tensors_that_share_their_values_do_not_make_a_model_of_a_small_file(files):
    """One storage, named for every matrix: 8 blocks from the values of one."""
    state = tiny_var(depth=2)
    shared = torch.zeros(1_000_000)
    views = {
        name: shared[: value.numel()].view(value.shape) for name, value in state.items() if value.is_floating_point()
    }
    torch.save(state | views, files[0])
    assert files[0].stat().st_size < sum(value.nbytes for value in views.values())
    refused("expected tensors that each have values of their own, found some that share them", *files)


def test_overlapping_views_are_no_more_than_their_storage(files):
    """Strides that step less than a row: all within the storage, and more values than it has."""
    torch.save(tiny_var() | {"head.weight": torch.ones(24 + 64).as_strided((24, 64), (1, 1))}, files[0])
    refused(r"head\.weight: expected a dense tensor with all its values", *files)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e8m0fnu, torch.uint32, torch.int64, torch.bool])
def test_safetensors_of_other_types_are_refused_too(tmp_path, dtype):
    own = own_file(tmp_path)
    stored = {f"var.{name}": torch.ones(3) for name in ("head.bias",)}
    save_file(stored | {"var.head.weight": torch.zeros(48, 128).to(dtype)}, own, {"format": "pt"})
    refused("holds no VAR", own)
    state = tiny_var() | {"head.weight": torch.zeros(24, 64).to(dtype)}
    save_file(state, tmp_path / "var.safetensors")
    refused(
        r"head\.weight: expected (a dense tensor|floating point)",
        tmp_path / "var.safetensors",
        official_files(tmp_path)[1],
    )


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_of_every_type_are_those_that_pytorch_reads(tmp_path, dtype, suffix):
    """numpy lacks bfloat16 and float8, and reads them all the same."""
    state = tiny_var()
    wanted = state["head.weight"].to(dtype)
    path = tmp_path / f"var.{suffix}"
    (torch.save if suffix == "pth" else save_file)(state | {"head.weight": wanted}, path)
    stored = open_checkpoint(Checkpoint(path, official_files(tmp_path)[1]))
    np.testing.assert_array_equal(stored.read("var.head.weight"), wanted.float().numpy())


def test_a_mask_is_not_made_before_a_file_has_one(files):
    """Its size is the square of the number of tokens: 10 GB for what a file of some MB says."""
    tokens = 50_000
    shapes = {"pos_1LC": torch.zeros(1, tokens, 64), "lvl_1L": torch.zeros(1, tokens, dtype=torch.int64)}
    state = {name: value for name, value in tiny_var().items() if name != "attn_bias_for_masking"} | shapes
    state["lvl_1L"][0, 1:] = 1
    torch.save(state, files[0])
    refused("pos_1LC|lvl_1L|lvl_embed", *files)


def test_a_long_list_of_scales_is_not_counted(files):
    """As many numbers as the file has bytes, where some hundred are meant."""
    torch.save(tiny_var() | {"lvl_1L": torch.zeros(1, 10_000_000, dtype=torch.uint8)}, files[0])
    refused("lvl_1L: expected the scale of each token, .* found others", *files)


def test_a_file_of_ten_thousand_blocks_is_refused_before_they_are_built(files):
    """Names are cheap, and a module for each is not."""
    state = {name: value for name, value in tiny_var().items() if not name.startswith("blocks.")}
    state |= {f"blocks.{i}.x": torch.ones(1) for i in range(10_000)}
    state["word_embed.weight"] = torch.zeros(640_000, 4)
    torch.save(state, files[0])
    refused("depth must be at least 1 and at most 128, got 10000", *files)


def test_memory_that_is_refused_is_told_as_such(files, monkeypatch):
    """Nothing is wrong with the file, and fetching it again would not help."""

    def no_memory(*arguments: object, **options: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(torch, "load", no_memory)
    refused(r"cannot be read: there is not enough memory for it\. Free some", *files)


def test_hooks_and_odd_flags_are_refused(files):
    """Arguments of PyTorch's own functions that torch.save never writes."""

    class Rebuilt:
        def __init__(self, *arguments: Any):
            self.arguments = arguments

        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            return torch._utils._rebuild_tensor_v2, self.arguments

    storage = torch.ones(24)._typed_storage()
    for arguments in (
        (storage, 0, (24,), (1,), False, OrderedDict(hook=1)),
        (storage, 0, (24,), (1,), 1, OrderedDict()),
        (storage, 0, (24,), (1,), False, OrderedDict(), {"colour": True}),
        (storage, 0, (24,), (1, 1), False, OrderedDict()),
        (storage, 0, (-24,), (1,), False, OrderedDict()),
        (storage, 0, [24], [1], False, OrderedDict()),
        (storage, 1, (24,), (1,), False, OrderedDict()),
        (storage, 0, (1 << 40,), (1,), False, OrderedDict()),
        (storage, 0, (1 << 64,), (0,), False, OrderedDict()),
        ("storage", 0, (24,), (1,), False, OrderedDict()),
        (storage,),
    ):
        for old in (False, True):
            torch.save({"head.bias": Rebuilt(*arguments)}, files[0], _use_new_zipfile_serialization=not old)
            refused("is refused: its pickle", *files)
