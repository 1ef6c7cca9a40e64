"""Guidance at all scales, at the first few, or at none: the same pictures on every path, and half the rows after it.

Each form is drawn by PyTorch, by ONNX Runtime's graphs, and by TensorRT's code over a stand-in of the GPU.
"""

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import gpu_on_host
import pytest
import torch
from command_line import Command, in_process
from drawn_models import ORDERS, SAMPLING, Bundles, assert_same_pictures, bundles_of, draw
from gpu_on_host import CAPABILITY, HostCuda, HostTensorRT
from small_models import small_config, vivid_model

from actvar.bundle.contract import scale_name
from actvar.bundle.manifest import read_manifest
from actvar.bundle.plans import MODULES, RTX, PlanOptions, PlanTarget
from actvar.checkpoint.own import save_model
from actvar.config import Activation, ModelConfig
from actvar.errors import ArgumentError, CheckpointError, UsageError
from actvar.export.binder import bind
from actvar.export.front_door import Pipeline
from actvar.export.onnx_export import export_bundle, export_graphs
from actvar.export.parity.check import check_parity
from actvar.export.parity.recording import record
from actvar.export.parity.report import CHAIN
from actvar.export.parity.runners import TOKENS
from actvar.generation import Generation, generate
from actvar.models.actvar import ActVAR
from actvar.runtime.backends import cuda_memory
from actvar.runtime.backends.torch_source import eager_source
from actvar.runtime.machine import CACHE_VARIABLE
from actvar.runtime.sources import open_engines, open_graphs
from actvar.scales import ScaleSchedule

ACTIVE = Activation(4, (2, 4), (0.5, 0.6), (0.75, 0.25))
MODELS = {
    f"{kind}, {words}": replace(small_config(activation=activation), guided_scales=guided)
    for kind, activation in (("VAR", None), ("ActVAR", ACTIVE))
    for words, guided in (("guided", None), ("guided to 1", 1), ("guided to 3", 3), ("guidance-free", 0))
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """Of the models above."""
    return bundles_of(MODELS, tmp_path_factory)


# ---- the configuration


@pytest.mark.parametrize("name", MODELS)
def test_a_configuration_is_read_back_and_says_nothing_of_an_ordinary_model(name: str):
    written = MODELS[name].to_dict()
    assert ("guided_scales" in written) == (MODELS[name].guided_scales is not None)
    assert ModelConfig.from_dict(json.loads(json.dumps(written))) == MODELS[name]


@pytest.mark.parametrize("guided", [-1, 4, 2.0, True, None, "2"])
def test_what_is_no_number_of_scales_is_refused(guided: object):
    """4 of 4 would be another word for an ordinary model, and null as well."""
    with pytest.raises(ValueError, match="guided_scales"):
        ModelConfig.from_dict(small_config().to_dict() | {"guided_scales": guided})


@pytest.mark.parametrize(
    ("guided", "until", "found"), [(None, 1, 1), (None, 3, 3), (None, 4, None), (2, 4, None), (2, None, 2)]
)
def test_guidance_ends_where_it_is_told_to(guided: int | None, until: int | None, found: int | None):
    assert replace(small_config(), guided_scales=guided).guided_until(until).guided_scales == found


@pytest.mark.parametrize(
    ("guided", "until", "reason"),
    [(None, 0, "trained to be guidance-free"), (None, 5, r"1\.\.3"), (None, -1, r"1\.\.3"), (0, 2, "is guidance-free")],
)
def test_guidance_that_cannot_end_there_is_refused(guided: int | None, until: int, reason: str):
    with pytest.raises(ValueError, match=reason):
        replace(small_config(), guided_scales=guided).guided_until(until)


# ---- PyTorch


@pytest.mark.parametrize("guided", [3, 2, 1, 0])
@pytest.mark.parametrize("activation", [None, ACTIVE], ids=["VAR", "ActVAR"])
def test_scales_after_the_last_guided_one_draw_as_if_guided_by_nothing(
    activation: Activation | None, guided: int, monkeypatch: pytest.MonkeyPatch
):
    """The unconditional rows that are left out would have counted nothing: (1 + t) and t at t = 0."""
    config = small_config(activation=activation)
    model = vivid_model(config)
    shorter = vivid_model(replace(config, guided_scales=guided))
    found = generate(shorter, [3, 0, 4], SAMPLING, 5)
    ramp = ScaleSchedule.cfg_ramp
    monkeypatch.setattr(ScaleSchedule, "cfg_ramp", lambda self, si: ramp(self, si) if si < guided else 0.0)
    expected = generate(model, [3, 0, 4], SAMPLING, 5)
    same_generation(found, expected)


def same_generation(found: Generation, expected: Generation) -> None:
    for ids, wanted in zip(found.token_ids, expected.token_ids, strict=True):
        assert torch.equal(ids, wanted)
    for logits, wanted in zip(found.guided_logits, expected.guided_logits, strict=True):
        torch.testing.assert_close(logits, wanted, rtol=0, atol=2e-5)


# ---- graphs


@pytest.mark.parametrize("cpu_graph", ["each", "scales", "scales_masked"])
@pytest.mark.parametrize("name", MODELS)
def test_graphs_draw_what_the_eager_model_draws_in_batches_of_any_size(bundles: Bundles, name: str, cpu_graph: str):
    """Picture by picture; the same bytes alone and in a batch."""
    model, folder, manifest = bundles(name)
    if cpu_graph == "scales_masked" and model.config.activation is None:
        assert cpu_graph not in manifest.scales
        return
    alone = draw(open_graphs(folder, 1, threads=1, scales=cpu_graph))
    assert_same_pictures(alone, draw(eager_source(model)))
    for batch_size in (2, 7):
        assert_same_pictures(draw(open_graphs(folder, batch_size, threads=1, scales=cpu_graph)), alone, off=0)


@pytest.mark.parametrize("cpu_graph", ["each", "scales"])
@pytest.mark.parametrize("name", MODELS)
def test_every_graph_is_at_par_with_pytorch(bundles: Bundles, name: str, cpu_graph: str):
    """Each graph alone and whole pictures, with a look into the blocks."""
    model, folder, _ = bundles(name)
    model = replace_sampling(model)
    report = check_parity(model, open_graphs(folder, 2, threads=1, scales=cpu_graph), 3)
    assert report.passed, report.verdict


def replace_sampling(model: ActVAR) -> ActVAR:
    """With cuts that its 48 codes allow."""
    model.config = replace(model.config, sampling=SAMPLING)
    return model


@pytest.mark.parametrize("precision", ["fp16", "fp16-weights", "int8"])
@pytest.mark.parametrize("guided", [2, 0])
def test_graphs_of_other_precisions_are_at_par_too(tmp_path: Path, guided: int, precision: str):
    """To the tolerances of the precision; int8 and fp16-weights draw with the graph of all scales.

    Of some 20 tokens in a scale one may flip, which is more than the share that may: numbers alone are held to theirs.
    """
    config = replace(small_config(activation=ACTIVE), guided_scales=guided, sampling=SAMPLING)
    model = vivid_model(config)
    export_bundle(model, tmp_path / "bundle", precision, "random weights", debug=True)
    found = check_parity(model, open_graphs(tmp_path / "bundle", 2, threads=1), 2).found
    numbers = {key: difference for key, difference in found.items() if key[0] != CHAIN and key[1] != TOKENS}
    assert len(numbers) > 20 and [key for key, difference in numbers.items() if not difference.passed] == []


@pytest.mark.parametrize("name", MODELS)
def test_a_scale_writes_the_keys_of_its_own_rows_alone(bundles: Bundles, name: str):
    """new_kv [D, 2, G, B, h, K, 64]; cfg is read where a scale is guided, and nowhere else."""
    model, _, manifest = bundles(name)
    guided = model.config.guided_scales
    recordings = dict(record(model, [3, 0], SAMPLING))
    for si in range(len(model.config.schedule)):
        graph = scale_name(si)
        groups = 2 if guided is None or si < guided else 1
        assert ("cfg" in {tensor.name for tensor in manifest.graphs[graph].inputs}) == (groups == 2)
        assert si == 3 or recordings[graph].outputs["new_kv"].shape[2] == groups
        shapes = {tensor.name: tensor.sized(2) for tensor in manifest.graphs[graph].outputs}
        assert {name: array.shape for name, array in recordings[graph].outputs.items()} == shapes


@pytest.mark.parametrize("name", MODELS)
def test_threads_that_share_a_source_get_their_own_pictures(bundles: Bundles, name: str):
    _, folder, _ = bundles(name)
    source, alone = open_graphs(folder, 2, threads=1), draw(open_graphs(folder, 1, threads=1))
    with ThreadPoolExecutor(4) as threads:
        drawn = list(threads.map(lambda number: draw(source, ORDERS[number : number + 3]), [0, 1, 2, 3, 4] * 2))
    for number, found in zip([0, 1, 2, 3, 4] * 2, drawn, strict=True):
        assert_same_pictures(found, alone[number : number + 3], off=0)


# ---- engines


@pytest.mark.parametrize("name", MODELS)
def test_engines_draw_the_pictures_of_the_graphs(
    bundles: Bundles, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """The window of the cache with groups, two lanes, and recordings, over the stand-in of a GPU."""
    model, _, _ = bundles(name)
    host = HostTensorRT(HostCuda(), rtx=True)
    monkeypatch.setattr(cuda_memory, "cudart", host.cuda)
    for engine, module in MODULES.items():
        monkeypatch.setitem(sys.modules, module, host if engine == RTX else None)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    folder, gpu = tmp_path / "bundle", f"{CAPABILITY[0]}.{CAPABILITY[1]}"
    export_bundle(model, folder, "fp32", "random weights")
    gpu_on_host.build_on_host(folder, PlanTarget(RTX, HostTensorRT.__version__, (gpu,)), PlanOptions((1, 2, 4)))
    many = ORDERS[:-1] * 3
    wanted = draw(open_graphs(folder, 2, threads=1, scales="each"), many)
    source = open_engines(folder, 2)
    assert_same_pictures(draw(source, many), wanted)
    assert host.cuda.launches > 0


# ---- the strength of guidance


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return in_process(monkeypatch, capsys)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """A checkpoint's file, by the name of a model."""

    def get(name: str) -> Path:
        path = tmp_path / f"{name.replace(', ', '-').replace(' ', '-')}.safetensors"
        save_model(vivid_model(replace(MODELS[name], sampling=SAMPLING)), path, torch.float32)
        return path

    return get


def test_a_strength_is_refused_for_a_model_that_needs_none(command: Command, checkpoint: Callable[..., Path]):
    """With the reason, before anything is exported; without one it draws."""
    path = checkpoint("ActVAR, guidance-free")
    for more in ((), ("--backend", "torch")):
        code, _, err = command("generate", "--class", 3, "--model", path, "--cfg", 1.5, *more)
        assert code == 2 and "--cfg is a strength of guidance, and this model is guidance-free" in err
    assert not list(Path("cache").glob("bundles/*/manifest.json"))
    code, _, err = command("generate", "--class", 3, "--model", path)
    assert code == 0, err
    with Pipeline.from_pretrained(path, progress_bar=False) as pipe:
        assert len(pipe([3, 1]).images) == 2
        with pytest.raises(ArgumentError, match="guidance_scale is a strength of guidance"):
            pipe([3], guidance_scale=0.0)


def test_a_card_does_not_ask_for_a_strength_that_is_refused(checkpoint: Callable[..., Path], command: Command):
    with Pipeline.from_pretrained(checkpoint("VAR, guidance-free"), progress_bar=False) as pipe:
        card = (pipe.save_pretrained("saved") / "README.md").read_text()
    assert "guidance_scale" not in card and "no guidance" in card


# ---- --guidance-until


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_a_checkpoint_is_drawn_with_guidance_until_a_scale(
    command: Command, checkpoint: Callable[..., Path], backend: str
):
    """As the model whose configuration says so; a bundle of its own in the cache."""
    path = checkpoint("ActVAR, guided")
    wanted = draw(eager_source(vivid_model(MODELS["ActVAR, guided to 3"])))
    for until, same in ((3, True), (None, False), (4, False), (3, True)):
        with Pipeline.from_pretrained(path, backend=backend, guidance_until=until, progress_bar=False) as pipe:
            assert pipe.model.guided_scales == (3 if until == 3 else None)
            found = draw(pipe.source)
        if same:
            assert_same_pictures(found, wanted)
        else:
            assert any((a.token_ids[3] != b.token_ids[3]).any() for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("name", "until", "reason"),
    [
        ("VAR, guided", 0, "trained to be guidance-free"),
        ("VAR, guided", 9, "must end at a scale of 1..3"),
        ("VAR, guidance-free", 2, "has no guidance that could end"),
    ],
)
def test_every_command_that_exports_refuses_what_cannot_be(
    command: Command, checkpoint: Callable[..., Path], name: str, until: int, reason: str
):
    path = checkpoint(name)
    for arguments in (
        ("generate", "--class", 1),
        ("generate", "--class", 1, "--backend", "torch"),
        ("export",),
        ("parity", "--count", 1),
    ):
        code, _, err = command(*arguments, "--model", path, "--guidance-until", until)
        assert code == 2 and reason in " ".join(err.split()), (arguments, err)
    with pytest.raises(ArgumentError, match=reason):
        Pipeline.from_pretrained(path, guidance_until=until, progress_bar=False)


def test_an_export_with_guidance_until_a_scale(command: Command, checkpoint: Callable[..., Path]):
    """Its folder says so, `inspect` says so, and the graphs are at par with the model in this form."""
    path = checkpoint("ActVAR, guided")
    code, out, err = command("export", "--model", path, "--guidance-until", 3)
    folder = Path("bundles/ActVAR-guided-guided-3-fp32")
    assert code == 0 and str(folder) in out, err
    assert read_manifest(folder).model.guided_scales == 3
    code, out, _ = command("inspect", folder)
    assert code == 0 and "scales 1-3 of 4" in out
    code, out, err = command("parity", "--model", path, "--bundle", folder, "--count", 2)
    assert code == 0, out + err
    code, out, err = command("parity", "--model", path, "--guidance-until", 2, "--count", 2)
    assert code == 0, out + err
    code, _, err = command("parity", "--model", path, "--bundle", folder, "--guidance-until", 2)
    assert code == 2 and "Leave it out" in err
    code, _, err = command("generate", "--class", 1, "--model", folder, "--guidance-until", 2)
    assert code == 2 and "whose graphs decide where guidance ends" in " ".join(err.split())
    code, _, err = command("build", "--model", folder, "--guidance-until", 2)
    assert code == 2 and "Leave them out" in err


def test_inspect_names_the_scales_that_are_guided(command: Command, bundles: Bundles):
    for name, words in (
        ("VAR, guided", "all 4 scales"),
        ("VAR, guided to 1", "scale 1 of 4"),
        ("VAR, guided to 3", "scales 1-3 of 4"),
        ("VAR, guidance-free", "none of 4 scales: guidance-free"),
    ):
        code, out, _ = command("inspect", bundles(name)[1])
        assert code == 0 and words in out
        assert ("cfg" in out) == (name != "VAR, guidance-free")


def test_a_checkpoint_is_bound_to_graphs_that_end_its_guidance(checkpoint: Callable[..., Path], tmp_path: Path):
    """Where guidance ends is the graphs' affair; whether there is any is the checkpoint's."""
    ordinary, free = checkpoint("ActVAR, guided"), checkpoint("ActVAR, guidance-free")
    export_graphs(MODELS["ActVAR, guided to 3"], tmp_path / "graphs", "fp32", "none yet")
    bound = bind(tmp_path / "graphs", ordinary, target=tmp_path / "bound")
    assert bound.model.guided_scales == 3
    wanted = draw(eager_source(vivid_model(MODELS["ActVAR, guided to 3"])))
    assert_same_pictures(draw(open_graphs(tmp_path / "bound", 2, threads=1)), wanted)
    with pytest.raises(CheckpointError, match=r"is guidance-free, and the graphs of .* are guided"):
        bind(tmp_path / "graphs", free, target=tmp_path / "other")
    export_graphs(MODELS["ActVAR, guidance-free"], tmp_path / "free", "fp32", "none yet")
    with pytest.raises(CheckpointError, match=r"is guided, and the graphs of .* are not"):
        bind(tmp_path / "free", ordinary, target=tmp_path / "other")
    assert bind(tmp_path / "free", free, target=tmp_path / "bound-free").model.guided_scales == 0


def test_a_size_may_end_its_guidance_too(command: Command):
    """flops counts it; a number that is none is refused in the option's words."""
    code, out, _ = command("flops", "--preset", "mini", "--guidance-until", 7)
    assert code == 0 and "with guidance up to scale 7" in " ".join(out.split())
    code, _, err = command("flops", "--preset", "mini", "--guidance-until", 0)
    assert code == 2 and err.startswith("Error: --guidance-until: ")
    assert issubclass(ArgumentError, UsageError)
