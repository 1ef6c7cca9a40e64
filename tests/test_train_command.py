"""`actvar-trt train stage1` and `stage2` as a person uses them: from a VAR to a picture, and what may go wrong."""

import resource
import shlex
from pathlib import Path

import pytest
import torch
from command_line import Command, in_process
from official_layout import filled, hits, var_buffers, var_shapes, vqvae_shapes
from small_models import small_config, vivid_model
from small_training import logged, write_teacher, write_tokens

from actvar.checkpoint.model import load_model, load_vqvae
from actvar.checkpoint.own import save_model
from actvar.classes import choose_classes
from actvar.config import Activation
from actvar.data.store_plan import StorePlan, claim_folder
from actvar.data.token_files import ChunkRecord, write_chunk
from actvar.data.tokens import vqvae_hash

STAGE1 = ("stage1", "--teacher", "teacher.safetensors", "--tokens-dir", "tokens", "--out", "stage1", "--batch-size", 8,
          "--experts", 4, "--active-scales", "2,3", "--steps", 4)  # fmt: skip
STAGE2 = ("stage2", "--student", "stage1", "--teacher", "teacher.safetensors", "--tokens-dir", "tokens",
          "--out", "stage2", "--batch-size", 8, "--steps", 4)  # fmt: skip


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """In a folder with a teacher of five classes and 24 pictures' tokens of it."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    write_tokens(Path("tokens"), write_teacher(Path("teacher.safetensors")))
    return in_process(monkeypatch, capsys, "train")


def test_two_stages_lead_from_a_var_to_a_picture(train: Command, monkeypatch: pytest.MonkeyPatch, capsys):
    """Stage 1 leaves the teacher's weights as they were, stage 2 the choices; and what they leave draws."""
    assert train(*STAGE1, "--token-rates", "0.75,0.5", "--expert-rates", 0.5)[0] == 0
    first, teacher = load_model(Path("stage1/actvar.safetensors")), load_model(Path("teacher.safetensors"))
    assert first.config.activation == Activation(4, (2, 3), (0.75, 0.5), (0.5, 0.5))
    for name, value in teacher.state_dict().items():
        assert torch.equal(first.state_dict()[name], value), name
    code, out, _ = train(*STAGE2)
    assert code == 0 and "Wrote stage2/actvar.safetensors. Next: actvar-trt export --model stage2/actvar" in out
    second = load_model(Path("stage2/actvar.safetensors"))
    for name, value in first.state_dict().items():
        chooses = ".router." in name or ".selector." in name
        assert torch.equal(second.state_dict()[name], value) == (chooses or name.startswith("vqvae.")), name
    draw = in_process(monkeypatch, capsys, "generate", "--model", "stage2/actvar.safetensors")
    assert draw("--class", 1, "--backend", "torch", "--out", "drawn")[0] == 0 and list(Path("drawn").glob("*.png"))


def test_what_is_to_be_done_next_can_be_pasted(train: Command, monkeypatch: pytest.MonkeyPatch, capsys):
    """With every option that it needs, and quoted: as it stands, but for the length, it trains and exports."""
    Path("teacher.safetensors").rename("the teacher.safetensors")
    of_teacher = ("--teacher", "the teacher.safetensors", "--patch-nums", "1_2_3")
    out = train(*STAGE1, *of_teacher, "--out", "my runs/stage1", "--seed", 3)[1]
    following = shlex.split(out.partition("Next: ")[2])
    assert following[:3] == ["actvar-trt", "train", "stage2"] and "my runs/stage2" in following
    assert following[following.index("--batch-size") + 1] == "8" and following[following.index("--seed") + 1] == "3"
    code, out, err = train(*following[2:], "--steps", 1)
    assert code == 0, err
    following = shlex.split(out.partition("Next: ")[2])
    code, out, err = in_process(monkeypatch, capsys)(*following[1:])
    assert code == 0 and out.startswith("bundles/actvar-fp32: "), err


def test_the_length_is_the_papers_in_epochs_of_the_store(train: Command):
    """2 epochs of 24 pictures by 8 are 6 steps; and 10 are 30."""
    assert train(*STAGE1[:-2])[0] == train(*STAGE2[:-2])[0] == 0
    assert (logged(Path("stage1"))[-1]["step"], logged(Path("stage2"))[-1]["step"]) == (5, 29)
    assert train(*STAGE1[:-2], "--out", "half", "--epochs", 0.5)[0] == 0
    assert logged(Path("half"))[-1]["step"] == 1


@pytest.mark.parametrize(("choice", "value"), [("token_choice", "fixed"), ("expert_choice", "static")])
def test_a_baseline_is_an_option(train: Command, choice: str, value: str):
    assert train(*STAGE1, f"--{choice.replace('_', '-')}", value)[0] == 0
    assert getattr(load_model(Path("stage1/actvar.safetensors")).config.activation, choice) == value


@pytest.mark.parametrize("order", ["data", "index"])
def test_an_order_of_static_experts_may_be_fixed(train: Command, order: str):
    """Scores of whole numbers, which stage 2 leaves alone; of experts that are routed it is refused."""
    assert train(*STAGE1, "--expert-choice", "static", "--expert-order", order)[0] == 0 and train(*STAGE2)[0] == 0
    router = load_model(Path("stage2/actvar.safetensors")).var.blocks[0].ffn.router
    assert sorted(router.bias.tolist()) == [-3, -2, -1, 0]
    code, _, err = train(*STAGE1, "--out", "other", "--expert-order", order)
    assert code == 2 and f"--expert-order {order} is for static experts. Give --expert-choice static, too." in err


def test_official_files_are_teachers(train: Command):
    """Under the names that VAR's authors gave: a VAR, and its VQVAE in a file of its own."""
    patch_nums, small = (1, 2, 3), {"V": 48, "E": 6}
    var = {**filled(var_shapes(1, patch_nums, classes=7, **small)), **var_buffers(1, patch_nums)}
    torch.save(var, "var_d1.pth")
    torch.save({**filled(vqvae_shapes(ch=32, mult=(1, 1), blocks=1, **small)), **hits(48)}, "vae.pth")
    vqvae = load_model(Path("var_d1.pth"), Path("vae.pth")).vqvae
    plan = StorePlan(vqvae_hash(vqvae), patch_nums, {}, False, "fp32", 8, 8)
    claim_folder(Path("official"), plan)
    write_chunk(
        Path("official"), plan, plan.chunks[0],
        torch.arange(8 * 14).view(8, 14).remainder(48).numpy().astype("uint16"), ChunkRecord([6] * 8, []),
    )  # fmt: skip
    given = ("--teacher", "var_d1.pth", "--vqvae", "vae.pth", "--tokens-dir", "official")
    assert train(*STAGE1, *given)[0] == 0 and train(*STAGE2, *given)[0] == 0
    made = load_model(Path("stage2/actvar.safetensors"))
    assert made.config.num_classes == 7 and vqvae_hash(made.vqvae) == vqvae_hash(load_vqvae(Path("vae.pth")).vqvae)


@pytest.mark.parametrize(
    "given",
    [("--label-form", "sharp"), ("--expert-label", "together"), ("--token-label", "logits"), ("--alpha", "2")],
    ids=lambda given: given[0],
)
def test_stage_1_learns_what_it_is_asked_to(train: Command, given: tuple[str, str]):
    """Another label or weight is another loss of the first step, for the same pictures and routers."""
    assert train(*STAGE1)[0] == 0 and train(*STAGE1, "--out", "other", *given)[0] == 0
    first, other = (logged(Path(folder))[0] for folder in ("stage1", "other"))
    assert first["cls"] == other["cls"] and first["loss"] != other["loss"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--token-rates", "0,0.5"), 2, "token_rates must lie in (0, 1], got (0.0, 0.5)"),
        (("--expert-rates", "1.5"), 2, "expert_rates must lie in (0, 1], got (1.5, 1.5)"),
        (("--token-rates", "0.5,0.5,0.5"), 2, "token_rates needs one rate for each of the scales (2, 3)"),
        (("--token-rates", "1", "--expert-rates", "1"), 2, "nothing is left out, so stage 1 has nothing to learn"),
        (("--active-scales", "3,4"), 2, "active scales must lie in 1..3"),
        (("--experts", "7"), 2, "experts must divide the FFN's hidden width 256"),
        (("--token-choice", "random"), 2, "--token-choice"),
        (("--epochs", "1"), 2, "--epochs and --steps exclude each other"),
        (("--batch-size", "25"), 1, "tokens holds 24 pictures, fewer than a batch of 25. Encode more"),
        (("--accumulate", "3"), 2, "batch of 8 pictures cannot be cut into 3 equal parts"),
        (("--average", "1"), 2, "--average"),
        (("--device", "tpu"), 2, "--device must be cpu, cuda"),
        (("--precision", "fp16"), 2, "--precision"),
        (("--parallel", "fsdp"), 2, "--parallel fsdp is for several processes, and this one is alone. Start"),
        (("--teacher", "missing.pth"), 1, "missing.pth does not exist"),
        (("--tokens-dir", "nowhere"), 1, "nowhere is no token store"),
    ],
)
def test_what_cannot_be_trained_is_said_before_it_begins(train: Command, arguments: tuple, code: int, message: str):
    ended, out, err = train(*STAGE1, *arguments)
    assert (ended, out) == (code, "") and message in err and len(err.splitlines()) == 1
    assert not Path("stage1").exists()


def other_patch_nums() -> None:
    """Another model, whose VQVAE has the same weights."""
    save_model(vivid_model(small_config((1, 2, 4), depth=1)), Path("other.safetensors"), torch.float32)


def test_tokens_of_another_vqvae_or_other_scales_are_refused(train: Command):
    write_teacher(Path("other.safetensors"), seed=1)
    code, _, err = train(*STAGE1, "--teacher", "other.safetensors")
    assert code == 1 and "tokens holds tokens of another VQVAE" in err
    other_patch_nums()
    code, _, err = train(*STAGE1, "--teacher", "other.safetensors")
    assert code == 1 and "tokens of other scales: expected patch_nums (1, 2, 4), found (1, 2, 3)" in err


@pytest.mark.parametrize(
    ("said", "pictures", "message"),
    [
        ({"classes": 4}, 4, "holds pictures of 4 classes, and the teacher knows 5"),
        ({"classes": 6}, 24, "holds pictures of 6 classes, and the teacher knows 5"),
        ({"class_names": ("a", "b", "c")}, 3, "holds pictures of 3 classes, and the teacher knows 5"),
        ({"class_names": ("a", "b", "c")}, 24, "says that it is of 3 classes, and holds pictures of class 4"),
    ],
)
def test_tokens_of_other_classes_are_refused(train: Command, said: dict, pictures: int, message: str):
    """Of fewer, too: a class would be taught the pictures of another."""
    write_tokens(Path("others"), load_model(Path("teacher.safetensors")), pictures, **said)
    code, _, err = train(*STAGE1, "--tokens-dir", "others")
    assert code == 1 and f"others {message}" in err
    assert not Path("stage1").exists()


def test_the_names_of_class_folders_become_the_models(train: Command, monkeypatch: pytest.MonkeyPatch, capsys):
    """From the store through both stages, so that `--class` knows them; a teacher without names is still theirs."""
    names = ("n01440764", "N2", "a_b", "great white", "7")
    write_tokens(Path("named"), load_model(Path("teacher.safetensors")), class_names=names)
    for stage in (STAGE1, STAGE2):
        assert train(*stage, "--tokens-dir", "named")[0] == 0
    assert load_model(Path("stage1/actvar.safetensors")).config.class_names == names
    trained = load_model(Path("stage2/actvar.safetensors")).config
    assert trained.class_names == names
    assert choose_classes(trained, ["n01440764", "N2", "a_b", "great white", "3"]) == [0, 1, 2, 3]


def test_students_that_are_not_the_teachers_are_refused(train: Command):
    """Of another shape, dense, of a stage 1 that has not ended; and an ActVAR is no teacher."""
    activation = Activation(4, (2, 3))
    deep = vivid_model(small_config((1, 2, 3), activation, depth=2))
    save_model(deep, Path("deep.safetensors"), torch.float32)
    code, _, err = train(*STAGE2, "--student", "deep.safetensors")
    assert code == 1 and "was not made of --teacher teacher.safetensors (depth 1 -> 2)" in err
    code, _, err = train(*STAGE2, "--student", "teacher.safetensors")
    assert code == 1 and "--student teacher.safetensors is a dense VAR. Make an ActVAR of it first" in err
    Path("stage1").mkdir()
    code, _, err = train(*STAGE2)
    assert code == 1 and "stage1 holds no actvar.safetensors: stage 1 has not ended there" in err
    code, _, err = train(*STAGE1, "--teacher", "deep.safetensors")
    assert code == 1 and "--teacher deep.safetensors is an ActVAR" in err
    assert not Path("stage2").exists() and not list(Path("stage1").iterdir())


def test_a_folder_of_another_run_is_refused_and_left_alone(train: Command):
    assert train(*STAGE1)[0] == 0
    before = {path: path.read_bytes() for path in Path("stage1").iterdir()}
    code, _, err = train(*STAGE1, "--lr", 0.5)
    assert code == 1 and "stage1 holds another run (learning_rate 0.0002 -> 0.5). Choose another folder" in err
    code, _, err = train(*STAGE2, "--out", "stage1")
    assert code == 1 and "training Stage 1 -> Stage 2" in err
    assert before == {path: path.read_bytes() for path in Path("stage1").iterdir()}
    assert train(*STAGE1)[0] == 0  # it has ended, and says so again


def test_a_full_disk_is_said_and_the_run_goes_on_later(train: Command):
    """The state fits, the checkpoint at the end does not."""
    assert train(*STAGE1)[0] == 0
    size = Path("stage1/actvar.safetensors").stat().st_size
    Path("stage1/actvar.safetensors").unlink()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, limit[1]))
    try:
        code, _, err = train(*STAGE1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert code == 1 and "actvar.safetensors cannot be written: File too large" in err
    assert sorted(path.name for path in Path("stage1").iterdir()) == ["log.jsonl", "state.pt"]
    assert train(*STAGE1)[0] == 0 and Path("stage1/actvar.safetensors").stat().st_size == size


def test_a_training_of_one_process_refuses_to_be_started_as_several(train: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = train("vqvae", "--out", "mini", "--steps", 1)
    assert code == 2 and "VQVAE is trained by one process. Start it without torchrun and accelerate" in err
    assert not Path("mini").exists()
