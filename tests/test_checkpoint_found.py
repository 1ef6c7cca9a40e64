"""Checkpoints as they are found: in the wrappings of training scripts, and without what would tell their token maps."""

import random
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import official_layout as official
import pytest
import torch
from safetensors.torch import save_file
from small_checkpoints import SPARSE, official_files, own_file, refused, same, tiny_var, tiny_vqvae
from torch import Tensor

from actvar.checkpoint.files import Checkpoint
from actvar.checkpoint.model import load_checkpoint, load_model, load_vqvae
from actvar.errors import CheckpointError, UsageError
from actvar.scales import ScaleSchedule

State = dict[str, Any]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return official_files(tmp_path)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> State:
    """The model of the plain files."""
    return load_model(*official_files(tmp_path_factory.mktemp("plain"))).state_dict()


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def prefixed(state: State, *prefixes: str) -> State:
    """The state with these before its names, one for each name in turn."""
    return {prefixes[i % len(prefixes)] + name: value for i, (name, value) in enumerate(state.items())}


def shelled(state: State) -> State:
    """The names that come of compiling and wrapping single blocks."""
    return {name.replace(".attn.", "._orig_mod.attn.module."): value for name, value in state.items()}


# ---- wrappings

WRAPPINGS: dict[str, Callable[[State], State]] = {
    "DistributedDataParallel": lambda state: prefixed(state, "module."),
    "torch.compile": lambda state: prefixed(state, "_orig_mod."),
    "both": lambda state: prefixed(state, "module._orig_mod."),
    "both, the other way": lambda state: prefixed(state, "_orig_mod.module."),
    "mixed": lambda state: prefixed(state, "module.", "", "_orig_mod.", "module._orig_mod."),
    "FSDP": lambda state: prefixed(state, "_fsdp_wrapped_module."),
    "each block": shelled,
    "model": lambda state: {"model": state, "optimizer": {"state": {0: {"step": 3}}}, "epoch": 9},
    "state_dict": lambda state: {"state_dict": state, "epoch": 9},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": 1.5},
    "module, of DeepSpeed": lambda state: {"module": state, "global_steps": 9},
    "model, wrapped": lambda state: {"model": prefixed(state, "module.", "_orig_mod.")},
    "ema alone": lambda state: {"ema": state},
    "model_ema, wrapped": lambda state: {"state_dict": {}, "model_ema": {"module": prefixed(state, "module.")}},
    "names with a prefix": lambda state: prefixed(state, "model.") | {"epoch": 3},
    "twice wrapped": lambda state: {"state_dict": {"model": state}},
}


@pytest.mark.parametrize("form", WRAPPINGS)
def test_a_state_is_found_in_the_wrappings_of_training_scripts(files, tmp_path, expected, form):
    """VAR's, the VQVAE's, and both; without `lvl_1L`, as a parameter's file would have it, too."""
    wrap = WRAPPINGS[form]
    var, vqvae = saved(tmp_path / "v.pth", wrap(tiny_var())), saved(tmp_path / "q.pth", wrap(tiny_vqvae()))
    assert same(load_model(var, vqvae).state_dict(), expected)
    assert same(load_vqvae(vqvae).vqvae.state_dict(), load_vqvae(files[1]).vqvae.state_dict())


def trainer(state: State, vqvae: State) -> State:
    config = {"patch_nums": official.STANDARD, "prog_it": 0}
    return {"epoch": 9, "args": {"depth": 1}, "trainer": {"config": config, "var_wo_ddp": state, "vae_local": vqvae}}


@pytest.mark.parametrize(
    "form", ["DistributedDataParallel", "torch.compile", "both, the other way", "mixed", "each block"]
)
def test_a_trainer_s_state_is_found_whatever_its_names_begin_with(tmp_path, expected, form):
    """Outside and inside `trainer.var_wo_ddp`."""
    wrap = WRAPPINGS[form]
    inside = saved(tmp_path / "inside.pth", trainer(wrap(tiny_var()), wrap(tiny_vqvae())))
    outside = trainer(tiny_var(), tiny_vqvae())["trainer"]
    both = {"module": {f"_orig_mod.{name}": value for name, value in outside.items()}}
    for path in (inside, saved(tmp_path / "outside.pth", {"trainer": both})):
        assert same(load_model(path).state_dict(), expected), path.name


def flattened(content: State, prefix: str = "") -> dict[str, Tensor]:
    """As safetensors must have it."""
    flat: dict[str, Tensor] = {}
    for name, value in content.items():
        flat |= flattened(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


@pytest.mark.parametrize("shell", ["", "module.", "_orig_mod.module."])
def test_flat_names_of_a_trainer_are_read_from_safetensors(tmp_path, expected, shell):
    """What a converter makes of a self-trained file; other tensors beside the two networks are nobody's business."""
    both = {"var_wo_ddp": prefixed(tiny_var(), shell), "vae_local": prefixed(tiny_vqvae(), shell)}
    flat = flattened({"trainer": both | {"var_opt": {"exp_avg": torch.ones(3)}}})
    save_file(flat, tmp_path / "flat.safetensors")
    assert same(load_model(tmp_path / "flat.safetensors").state_dict(), expected)


@pytest.mark.parametrize("name", ["ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema"])
def test_of_a_model_and_its_average_the_average_is_read(files, tmp_path, expected, name):
    """It is what pictures are drawn with; and a message says which of the two was read."""
    other = {key: torch.zeros_like(value) if "head" in key else value for key, value in tiny_var().items()}
    path = saved(tmp_path / "both.pth", {"model": other, name: prefixed(tiny_var(), "module.")})
    assert same(load_model(path, files[1]).state_dict(), expected)
    saved(path, {"model": other, name: tiny_var() | {"head.bias": torch.full((24,), torch.nan)}})
    text = refused(rf"{name}\.head\.bias: expected finite values", path, files[1])
    assert text.endswith(f"Its average in {name} was read, and not model beside it.")


def test_two_states_of_which_none_is_an_average_are_not_chosen_between(files, tmp_path):
    path = saved(tmp_path / "two.pth", {"model": tiny_var(), "state_dict": tiny_var()})
    refused("holds 2 of a VAR, model and state_dict, and does not tell which", path, files[1])
    path = saved(tmp_path / "two.pth", {"ema": tiny_var(), "model_ema": tiny_var()})
    refused("holds 2 of a VAR, ema and model_ema", path, files[1])


def test_a_name_that_is_there_twice_is_refused(files, tmp_path):
    path = saved(tmp_path / "twice.pth", tiny_var() | {"module.head.bias": torch.ones(24)})
    refused(r"head\.bias is there twice, with and without module", path, files[1])


def test_dictionaries_without_end_are_not_followed_for_ever(tmp_path):
    """Each holds the next twice: 2^60 ways to the last one."""
    content: State = {"blocks.0": torch.ones(1)}
    for _ in range(60):
        content = {"model": content, "state_dict": content}
    refused("holds", saved(tmp_path / "deep.pth", content))


# ---- token maps that a file does not tell


def test_the_token_maps_of_a_file_without_lvl_1L_are_an_argument(files, tmp_path):
    """Official VAR's own `--pn`; the file has the number of tokens, and nothing else to tell."""
    maps = (1, 2, 3, 5)
    shapes = official.var_shapes(1, maps, classes=3, V=24, E=4)
    path = saved(tmp_path / "custom.pth", official.filled(shapes))
    refused(
        r"pos_1LC: expected 680 or 2240 tokens .* found 39\. Give the patch_nums that it was trained with",
        path,
        files[1],
    )
    assert load_checkpoint(Checkpoint(path, files[1], schedule=ScaleSchedule(maps))).config.schedule.patch_nums == maps
    with pytest.raises(
        CheckpointError, match=r"pos_1LC: expected 30 tokens, as patch_nums \(1, 2, 5\) have, found 39\."
    ):
        load_checkpoint(Checkpoint(path, files[1], schedule=ScaleSchedule((1, 2, 5))))


def test_token_maps_of_as_many_tokens_as_a_known_model_s_can_be_given(files, tmp_path):
    """680 tokens are the standard ones if nobody says otherwise."""
    maps = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    other = (1, 2, 3, 5, 10, 13, 14, 16)  # 760, and so another file
    assert ScaleSchedule(other).total == 760
    path = saved(tmp_path / "bare.pth", official.filled(official.var_shapes(1, other, classes=3, V=24, E=4)))
    assert (
        load_checkpoint(Checkpoint(path, files[1], schedule=ScaleSchedule(other))).config.schedule.patch_nums == other
    )
    assert (
        load_checkpoint(Checkpoint(files[0], files[1], schedule=ScaleSchedule(maps))).config.schedule.patch_nums == maps
    )


def test_a_file_that_tells_its_token_maps_is_not_asked_for_others(files, tmp_path):
    """The same ones may be said again."""
    own = own_file(tmp_path)
    assert load_checkpoint(Checkpoint(own, schedule=SPARSE.schedule)).config == SPARSE
    for path, vqvae in ((own, None), files):
        with pytest.raises(UsageError, match="has its own patch_nums"):
            load_checkpoint(Checkpoint(path, vqvae, schedule=ScaleSchedule((1, 2))))
    assert load_vqvae(own, SPARSE.schedule).picture_size == SPARSE.picture_size


def test_the_token_maps_are_part_of_what_names_a_model(files):
    """Or a cache would give one schedule's bundle for another's."""
    plain, given = Checkpoint(*files), Checkpoint(*files, ScaleSchedule((1, 2)))
    assert plain.digest() != given.digest() != Checkpoint(*files, ScaleSchedule((1, 3))).digest()


def test_the_oldest_form_of_torch_save_s_own_is_read(files, tmp_path, expected):
    """Not a zip archive: pickles in a row; views of one storage are kept, as are parameters."""
    var = tiny_var()
    big = torch.cat([var["head.bias"], var["head.weight"].flatten()])
    var |= {"head.bias": big[:24], "head.weight": big[24:].view(24, 64)}
    var["pos_start"] = torch.nn.Parameter(var["pos_start"])
    path = tmp_path / "old.pth"
    torch.save({"model": var, "rates": [0.5, 1, None, True, (1, 2), {}]}, path, _use_new_zipfile_serialization=False)
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert same(load_model(path, files[1]).state_dict(), expected)


def test_what_training_scripts_save_beside_the_model_is_no_hindrance(files, tmp_path, expected):
    """Optimizers, schedules and settings, as far as `weights_only` lets them pass."""
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    rates = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 9])
    beside = {"optimizer": optimizer.state_dict(), "lr_scheduler": rates.state_dict(), "rng": torch.get_rng_state()}
    beside |= {"args": {"device": torch.device("cpu"), "dtype": torch.bfloat16, "size": torch.ones(2, 3).shape}}
    beside |= {
        "seen": {1, 2},
        "complex": torch.ones(2, dtype=torch.complex64),
    }
    beside |= {"linear": model.state_dict(), "seed": 1 << 62, random.choice("ab"): None}
    beside |= {"options": Namespace(lr=1e-4, blocks=[1, 2], device=torch.device("cpu"))}
    for old in (False, True):
        beside["fp8"] = torch.ones(3).to(
            torch.float16 if old else torch.float8_e4m3fn
        )  # the older form has no such type
        path = tmp_path / f"{old}.pth"
        torch.save({"model": tiny_var(), **beside}, path, _use_new_zipfile_serialization=not old)
        assert same(load_model(path, files[1]).state_dict(), expected)
