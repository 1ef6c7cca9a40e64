"""`actvar-trt bench`: turns are fair, ratios are taken within a round, and each contestant keeps to its own process.

How fast anything is, is not tested: that is what the command is for.
"""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from xml.dom import minidom

import numpy as np
import pytest
import torch
from command_line import Command, in_process
from PIL import Image
from small_models import small_config, vivid_model

from actvar.benchmarks.pictures.contestants import peers_of
from actvar.benchmarks.pictures.graph_times import GraphDrawer, Lap, TimedEngine
from actvar.benchmarks.pictures.measure import (
    Contestant,
    Drawn,
    Kind,
    Measured,
    Opening,
    Plan,
    Spread,
    baseline,
    beyond_products,
    graph_operations,
    measure,
    ratios,
    savings,
    share_of_ceiling,
)
from actvar.benchmarks.pictures.peers import Where, open_network
from actvar.benchmarks.pictures.plot import plot
from actvar.benchmarks.pictures.process import Setting, started
from actvar.benchmarks.pictures.report import BenchReport
from actvar.bundle.contract import graph_names
from actvar.checkpoint.own import save_model
from actvar.config import STATIC, Activation, ModelConfig, SmallDecoderConfig
from actvar.errors import ActVARError
from actvar.export.onnx_export import export_bundle
from actvar.flops import scale_work
from actvar.plotting import rendered
from actvar.runtime.machine import Machine
from actvar.runtime.pictures import Order
from actvar.runtime.sources import open_graphs

DENSE = small_config()
ACTIVE = small_config(activation=Activation(16, (3, 4), (0.75, 0.5), (0.5, 0.25)))


def contestant(name: str, kind: Kind = "graphs", model: ModelConfig = DENSE, path: Path = Path()) -> Contestant:
    return Contestant(name, kind, model, "fp32", path, "onnxruntime" if kind == "graphs" else "torch")


class Clock:
    """Workers whose draws take what a script says, and a list of whose turn it was."""

    def __init__(self, seconds: dict[str, list[float]]):
        self._left = {name: list(times) for name, times in seconds.items()}
        self.turns: list[tuple[str, int, bool]] = []
        self.processes: list[str] = []

    @contextmanager
    def start(self, contestant: Contestant) -> Iterator["Scripted"]:
        self.processes.append(contestant.name)
        yield Scripted(self, contestant)
        self.processes.append(f"end of {contestant.name}")

    def take(self, name: str, pictures: int, looked_into: bool) -> float:
        self.turns.append((name, pictures, looked_into))
        return self._left[name].pop(0)


class Scripted:
    """Of each draw, a tenth is outside, and half of the rest is the decoder's."""

    opening = Opening(0.25, 0.5)

    def __init__(self, clock: Clock, of: Contestant):
        self._clock, self._of = clock, of

    def draw(self, pictures: int, looked_into: bool) -> Drawn:
        seconds = self._clock.take(self._of.name, pictures, looked_into)
        share = 0.45 * seconds
        laps = Lap("scale_01", 1, 1 + share), Lap("decoder", 1 + share, 1 + 2 * share)
        return Drawn(1, 1 + seconds, 1000 * pictures, laps if looked_into else ())

    def multiply(self) -> float:
        return 1e6 if self._of.name == "a" else 2e6


TIMES = {"a": [9, 9, 9, 2, 4, 20, 40], "b": [9, 9, 9, 1, 1, 10, 10]}
"""Fresh, two warm-ups, and in either round a draw for the time and one looked into."""


def scripted(contestants: list[Contestant], times: dict[str, list[float]] = TIMES, rounds: int = 2):
    clock = Clock(times)
    measured = measure(contestants, Plan((1,), rounds, 1), clock.start, lambda _: 0.75)
    return clock, measured


def test_every_round_begins_with_another_one():
    """Whoever always went second would always find the caches that the first one left."""
    clock, _ = scripted([contestant("a"), contestant("b")])
    fresh, warm, rounds = clock.turns[:2], clock.turns[2:6], clock.turns[6:]
    assert [turn[0] for turn in fresh] == ["a", "b"]
    assert [turn[0] for turn in warm] == ["a", "a", "b", "b"]
    assert [(name, looked) for name, _, looked in rounds] == [
        *(("a", False), ("b", False), ("a", True), ("b", True)),
        *(("b", False), ("a", False), ("b", True), ("a", True)),
    ]
    assert clock.processes[:4] == ["a", "end of a", "b", "end of b"]  # a fresh one is alone
    assert clock.processes[4:6] == ["a", "b"]  # the others stay to the end


def test_a_ratio_is_of_one_round():
    """The machine's mood in a round is in both times and cancels; warm-ups and fresh processes do not count."""
    times = {"a": [9, 9, 9, 2, 7, 20, 7], "b": [9, 9, 9, 1, 7, 5, 7]}
    _, (a, b) = scripted([contestant("a"), contestant("b")], times)
    assert (a.seconds[1], b.seconds[1]) == ([2, 20], [1, 5])
    spread = ratios(a, b, 1)
    assert spread.values == (2.0, 4.0)
    assert (spread.lower, spread.median, spread.upper) == (2.5, 3.0, 3.5)


def test_a_spread_is_median_and_quartiles():
    spread = Spread.of([5, 1, 4, 2, 3])
    assert (spread.lower, spread.median, spread.upper, spread.values) == (2, 3, 4, (5, 1, 4, 2, 3))


def test_time_saved_is_held_against_operations_saved():
    """Of the transformer, as the decoder saves nothing: counted here by hand for one block's share."""
    dense, active = contestant("dense"), contestant("active", model=ACTIVE)
    times = {"dense": [9, 9, 9, 9, 10, 9, 10], "active": [9, 9, 9, 9, 8, 9, 6]}
    _, measured = scripted([dense, active], times)
    (saving,) = savings(measured)
    assert saving.time.values == pytest.approx((0.2, 0.4))
    assert 0 < saving.operations < 1
    assert saving.realised.values == pytest.approx((0.2 / saving.operations, 0.4 / saving.operations))


def test_what_could_be_saved_is_counted_graph_by_graph():
    """A scale that leaves nothing out takes what it takes: here nine tenths of the time, and the active one a tenth."""
    saved = scale_work(ACTIVE, 2).total / scale_work(DENSE, 2).total
    whole, part = Lap("scale_01", 0, 0.9), Lap("scale_03", 0.9, 1.0)
    drawn = Drawn(0, 2, 1000, (whole, part, Lap("decoder", 1, 2)))
    twins = contestant("dense"), contestant("active", model=ACTIVE)
    (saving,) = savings([replace(Measured.nothing_yet(twin, (1,)), looked_into={1: [drawn]}) for twin in twins])
    assert saving.at_dense_rate.values == pytest.approx((0.1 * (1 - saved),))
    assert saving.attainable.median == pytest.approx(0.1 * (1 - saved) / saving.operations)


def test_no_saving_without_a_dense_twin():
    """Another precision, another shape or another backend would be compared with something else."""
    active = contestant("active", model=ACTIVE)
    others = [
        replace(contestant("half"), precision="fp16"),
        contestant("deeper", model=small_config(depth=3)),
        contestant("eager", "eager"),
    ]
    for other in others:
        times = {name: [1.0] * 7 for name in ("active", other.name)}
        assert savings(scripted([active, other], times)[1]) == []


def test_a_guidance_free_model_is_held_against_the_guided_one():
    """What it saves is the other row, too; a dense twin that is as free as it is would be nearer."""
    free = replace(ACTIVE, guided_scales=0, small_decoder=SmallDecoderConfig(8, 1))
    guided, active = contestant("dense"), contestant("active", model=free)
    nearer = contestant("dense and free", model=free.dense())
    times = {name: [1.0] * 7 for name in ("dense", "active", "dense and free")}
    for others, twin in (([guided], "dense"), ([guided, nearer], "dense and free")):
        _, measured = scripted([*others, active], times)
        (saving,) = (saving for saving in savings(measured) if saving.active is active)
        assert saving.dense.name == twin and saving.operations > 0
        assert baseline(measured[-1], measured).contestant.model.activation is None


def test_what_operations_would_not_take_is_told_by_part():
    """At the speed of the best product of all rounds, by hand: here all of it is one scale's and the decoder's."""
    _, (measured,) = scripted([contestant("a")])
    assert measured.products == [1e6, 1e6] and measured.ceiling == 1e6
    work, seconds = graph_operations(DENSE), (4 + 40) / 2
    rest = beyond_products(measured, 1)
    assert rest["small scales"] == pytest.approx(0.45 * seconds - work["scale_01"] / 1e6)
    assert rest["decoder"] == pytest.approx(0.45 * seconds - work["decoder"] / 1e6)
    assert rest["outside"] == pytest.approx(0.1 * seconds) and rest["condition"] == 0
    assert share_of_ceiling(measured, 1) == pytest.approx(sum(work.values()) / 1e6 / 11)


def test_official_var_is_the_baseline_where_it_takes_part():
    """Then PyTorch, then the dense graphs; and only ever one of the same dense model."""
    graphs, active = contestant("dense"), contestant("active", model=ACTIVE)
    eager, official = contestant("eager", "eager"), contestant("official", "official")
    deeper = contestant("deeper", model=small_config(depth=3))
    for group, wanted in (
        ([deeper, active, graphs, eager, official], "official"),
        ([deeper, active, graphs, eager], "eager"),
        ([deeper, active, graphs], "dense"),
        ([deeper, active], "active"),
    ):
        times = {one.name: [1.0] * 7 for one in group}
        _, measured = scripted(group, times)
        of = next(figures for figures in measured if figures.contestant is active)
        assert baseline(of, measured).contestant.name == wanted
        assert baseline(measured[0], measured) is measured[0]


def test_progress_ends_near_one():
    """The bar counts the draws that there will be: a wrong sum would stop short, or go on beyond the end."""
    told: list[float] = []
    times = {name: [1.0] * 100 for name in "ab"}
    clock = Clock(times)
    plan = Plan((1, 4), 3, 2)
    measure([contestant("a"), contestant("b")], plan, clock.start, lambda _: 0.75, told.append)
    assert len(told) == len(clock.turns) == plan.draws(2)
    assert told == sorted(told) and told[0] == 0 and told[-1] == 1 - 1 / plan.draws(2)
    assert clock.turns.count(("a", 4, False)) == 2 + 3


def test_a_report_holds_every_measurement():
    """For a program: what a table leaves out; for a person: names that are no markup, and a drawing that is XML."""
    _, measured = scripted(
        [contestant("a", model=ACTIVE), contestant("b [<&>]", "official")], {"a": TIMES["a"], "b [<&>]": TIMES["b"]}
    )
    machine = Machine("a processor", 2, 2**34, "Linux", None, 0.1, {"python": "3"})
    report = BenchReport("actvar-trt bench", machine, "cpu", 2, Plan((1,), 2, 1), tuple(measured))
    content = json.loads(report.to_json())
    first, second = content["contestants"]
    assert second["name"] == "b [<&>]" and first["baseline"] == "b [<&>]"
    batch = first["batches"]["1"]
    assert batch["seconds"]["values"] == [2, 20] and batch["ratio"]["values"] == [2, 2]
    assert batch["graphs"]["decoder"]["values"] == pytest.approx([0.45 * 4, 0.45 * 40])
    assert batch["outside"]["values"] == pytest.approx([0.4, 4])
    assert batch["peak_bytes"] == 1000
    assert first["product_operations_per_second"] == [1e6, 1e6] and second["batches"]["1"]["share_of_product"] > 0
    assert list(batch["seconds_beyond_products"]) == [
        "condition",
        "small scales",
        "large scales",
        "decoder",
        "outside",
    ]
    assert first["cold_start"]["first_scale"]["median"] == pytest.approx(1 + 0.45 * 9)
    assert first["cold_start"]["command"]["values"] == [0.75] and second["cold_start"]["command"] is None
    assert first["operations"]["scale_04"] < second["operations"]["scale_04"]
    assert (content["threads"], content["machine"]["cpu"]) == (2, "a processor")
    drawing = minidom.parseString(rendered(lambda: plot(report), "svg")[0])
    names = [node.firstChild.data for node in drawing.getElementsByTagName("text")]
    assert "b [<&>], fp32" in names and any("a processor" in name for name in names)
    assert len(report.tables()) == 4


# ---- the real thing, small


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small VAR and its ActVAR, each in a bundle, and the VAR's checkpoint."""
    folder = tmp_path_factory.mktemp("bench")
    for name, config in (("dense", DENSE), ("active", ACTIVE)):
        export_bundle(vivid_model(config), folder / name, "fp32", "a test")
    save_model(vivid_model(DENSE), folder / "dense.safetensors", torch.float32)
    return folder


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(1, "cpu", 2, tmp_path)


def test_a_look_at_the_clock_changes_no_picture(bundles: Path):
    """And every graph of the chain is seen once, one after another."""
    source = open_graphs(bundles / "active", 2, 1)
    engine = TimedEngine(source.engine)
    orders = [Order(3, 0), Order(1, 5)]
    plain = source.draw(orders, ACTIVE.sampling, 7)
    for seen, unseen in zip(replace(source, engine=engine).draw(orders, ACTIVE.sampling, 7), plain, strict=True):
        assert (seen.pixels_HW3 == unseen.pixels_HW3).all()
    assert [lap.graph for lap in engine.laps] == list(graph_names(ACTIVE))
    moments = [moment for lap in engine.laps for moment in (lap.began, lap.ended)]
    assert moments == sorted(moments)


def test_a_draw_that_nobody_looks_into_takes_the_engine_as_it_is(bundles: Path):
    """On a GPU a watched chain is not the replayed one."""
    source = open_graphs(bundles / "dense", 2, 1)
    drawer = GraphDrawer(source)
    assert drawer.draw(0, 2, looked_into=False) == []
    assert len(drawer.draw(2, 1, looked_into=True)) == len(graph_names(DENSE))


def test_a_worker_tells_when_and_how_much(bundles: Path, setting: Setting):
    """Times are seconds since the process started, in order; the peak only grows."""
    with started(contestant("dense", path=bundles / "dense"), setting) as worker:
        first, second = worker.draw(1, True), worker.draw(2, False)
        opening = worker.opening
    assert 0 < opening.imported < opening.opened < first.began < first.ended < second.began
    assert all(first.began <= lap.began <= lap.ended <= first.ended for lap in first.laps)
    assert 0 < first.outside < first.seconds and second.laps == ()
    assert 10e6 < first.peak_bytes <= second.peak_bytes


def test_a_worker_multiplies_in_its_own_precision(bundles: Path, setting: Setting):
    """And goes on drawing."""
    for name, kind, precision in (("dense", "graphs", "fp32"), ("dense", "graphs", "int8"), ("x", "autocast", "bf16")):
        path = bundles / ("dense" if kind == "graphs" else "dense.safetensors")
        with started(replace(contestant(name, kind, path=path), precision=precision), setting) as worker:
            worker.draw(1, False)
            assert (worker.multiply() or 0) > 1e8
            assert worker.draw(1, False).ended > 0


def test_what_a_worker_cannot_open_is_told(bundles: Path, setting: Setting):
    with (
        started(contestant("the lost one", path=bundles / "nowhere"), setting) as worker,
        pytest.raises(ActVARError, match=r"the lost one cannot draw: .*nowhere is not a folder"),
    ):
        worker.draw(1, False)


def test_a_worker_that_is_killed_is_told(bundles: Path, setting: Setting):
    """The system ends processes that take too much memory, without a word."""
    with started(contestant("dense", path=bundles / "dense"), setting) as worker:
        worker.draw(1, False)
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(ActVARError, match="dense cannot draw: its process ended with the code -9"):
            worker.draw(1, False)


def test_a_peer_is_seen_by_scales_too(bundles: Path):
    """The same names as the graphs', so that they can stand in one table."""
    drawer = open_network(bundles / "dense.safetensors", False, Where(torch.get_num_threads(), "cpu", "fp32"))
    assert [lap.graph for lap in drawer.draw(0, 2, looked_into=True)] == list(graph_names(DENSE))
    assert drawer.draw(2, 1, looked_into=False) == []


def test_openvino_draws_the_same_pictures(tmp_path: Path):
    """From the files that ONNX Runtime reads, with the bodies of our operators; it reads no FFN that routes."""
    pytest.importorskip("openvino", reason="pip install openvino")
    from actvar.benchmarks.pictures.openvino_graphs import open_openvino

    assert ACTIVE.activation
    static = replace(ACTIVE, guided_scales=0, activation=replace(ACTIVE.activation, expert_choice=STATIC))
    export_bundle(vivid_model(static), tmp_path / "static", "fp32", "a test")
    drawer = open_openvino(tmp_path / "static", "fp32", 1, 1)
    assert [lap.graph for lap in drawer.draw(0, 1, looked_into=True)] == list(graph_names(static))
    orders = [Order(3, 0), Order(1, 5)]
    expected = open_graphs(tmp_path / "static", 1, 1).draw(orders, static.sampling, 7)
    for drawn, picture in zip(drawer.source.draw(orders, static.sampling, 7), expected, strict=True):
        assert np.abs(drawn.pixels_HW3.astype(int) - picture.pixels_HW3).max() <= 1
    assert (drawer.multiply() or 0) > 1e8


def test_who_draws_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Peers are of the dense, guided model, once; with a checkout they run its code, and it takes part as it is."""
    monkeypatch.setenv("ACTVAR_CACHE", str(tmp_path))
    free = replace(ACTIVE, guided_scales=0)
    graphs = [contestant("VAR", model=DENSE), contestant("free", model=free), contestant("int8", model=free)]
    graphs[2] = replace(graphs[2], precision="int8")
    peers = ["compile", "bf16", "openvino"]
    own = list(peers_of(graphs, "VAR", peers, None, "cpu"))
    official = list(peers_of(graphs, "VAR", peers, tmp_path, "cpu"))
    assert [peer.kind for peer in own] == ["compiled", "autocast", "openvino"]
    assert [peer.kind for peer in official] == ["official", "official-compiled", "official-autocast", "openvino"]
    assert [peer.precision for peer in official] == ["fp32", "fp32", "bf16", "fp32"]
    assert all(peer.model == DENSE for peer in (*own, *official))


MODELS = """
import torch, dist
from huggingface_hub import PyTorchModelHubMixin
print("a constructor that prints")

class Hub(PyTorchModelHubMixin):
    pass

class Quantizer(torch.nn.Module):
    def get_next_autoregressive_input(self, si):
        return si

class Vae(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.quantize = Quantizer()
        self.conv = torch.nn.Conv2d(3, 3, 1)
        self.conv.weight.data.fill_(torch.nan)
    def fhat_to_img(self, f_hat):
        return self.conv(f_hat)

class Var(torch.nn.Module):
    def __init__(self, vae, **choices):
        super().__init__()
        self.vae, self.choices = (vae,), choices
    def autoregressive_infer_cfg(self, B, label_B, g_seed, cfg, top_k, top_p):
        print("and so does drawing")
        assert label_B.tolist() == [g_seed % 5] and self.choices["depth"] == 2 and dist.get_device() == "cpu"
        for si in self.choices["patch_nums"]:
            self.vae[0].quantize.get_next_autoregressive_input(si)
        return self.vae[0].fhat_to_img(torch.zeros(B, 3, 8, 8))

def build_vae_var(device, **choices):
    vae = Vae()
    return vae, Var(vae, **choices)
"""
DIST = """
import torch
def get_device():
    return "cuda" if torch.cuda.is_available() else "cpu"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that keeps to the interface of VAR's code, and to its manners: it prints, and it picks its device."""
    folder = tmp_path / "VAR"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "__init__.py").write_text(MODELS)
    (folder / "models" / "var.py").write_text("")
    (folder / "dist.py").write_text(DIST)
    return folder


def test_official_var_draws_from_a_checkout(checkout: Path, setting: Setting):
    """What it prints is not an answer; memory that it leaves as it was found does not become a picture."""
    with started(contestant("official", "official", path=checkout), setting) as worker:
        drawn = worker.draw(1, True)
        assert worker.draw(1, False).laps == ()
    assert [lap.graph for lap in drawn.laps] == list(graph_names(DENSE))[1:]


def test_a_checkout_of_something_else_is_told(checkout: Path, setting: Setting):
    (checkout / "models" / "__init__.py").write_text("")
    with (
        started(contestant("official", "official", path=checkout), setting) as worker,
        pytest.raises(ActVARError, match="is not as VAR's was in 2024"),
    ):
        worker.draw(1, True)


# ---- the command


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """`actvar-trt bench` in this process, in an empty folder; what its workers say is read, too."""
    monkeypatch.setenv("ACTVAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return in_process(monkeypatch, capfd, "bench")


def test_one_command_leaves_one_report(command, bundles: Path):
    """Table, JSON and drawing, of the dense and the active bundle side by side."""
    named = ["--model", bundles / "dense", "--model", bundles / "active"]
    code, out, err = command(*named, "--peers", "none", "--rounds", 2, "--starts", 1, "--threads", 1)
    assert code == 0, err
    for name in ("bench.json", "bench.txt", "bench.png", "bench.svg"):
        assert f"bench/{name}" in out
    content = json.loads(Path("bench/bench.json").read_text())
    assert [one["name"] for one in content["contestants"]] == ["dense, onnxruntime", "active, onnxruntime"]
    assert [saving["active"] for saving in content["savings"]] == ["active, onnxruntime"]
    dense = content["contestants"][0]
    assert list(dense["batches"]["1"]["graphs"]) == list(graph_names(DENSE))
    assert dense["cold_start"]["command"]["median"] > dense["cold_start"]["imported"]["median"] > 0
    assert "dense, onnxruntime, fp32" in out and Path("bench/bench.txt").read_text().count("\n") > 20
    minidom.parse("bench/bench.svg")
    assert Image.open("bench/bench.png").width > 600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-sizes", "1,x"], "--batch-sizes must be whole numbers"),
        (["--batch-sizes", "0,1"], "--batch-sizes must be numbers of pictures from 1"),
        (["--peers", "jax"], "--peers must be none, or some of eager,compile"),
        (["--backend", "tensorrt", "--device", "cpu"], "TensorRT needs a GPU"),
        (["--fp16", "--precision", "bf16"], "exclude each other"),
        (["--fp16", "--precision", "int8"], "exclude each other"),
        (["--fp16", "--precision", "fp16-weights"], "--fp16 and --precision fp16-weights exclude each other"),
        (
            ["--precision", "fp16-weights", "--backend", "tensorrt"],
            "The precision fp16-weights is for ONNX Runtime on a CPU",
        ),
        (["--precision", "int8", "--backend", "tensorrt"], "The precision int8 is for ONNX Runtime on a CPU"),
        (["--model", "{dense}", "--fp16"], "is a bundle and has its own precision"),
        (["--model", "{dense}", "--preset", "d16"], "--model names what is there"),
        (["--model", "{dense}", "--token-rates", "0.5"], "--model names what is there"),
        (["--model", "{dense}", "--decoder", "small"], "is a bundle and has its own decoder"),
        (["--deployed", "--precision", "int8"], "--deployed says which forms take part"),
        (["--model", "{dense}", "--model", "{dense}"], "The same --model is named twice"),
        (["--model", "{dense}", "--official-var", "."], "is no checkout of VAR: it has no models/__init__.py"),
        (["--official-var", "VAR"], "Official VAR has no VQVAE of this shape"),
        (["--out", "file"], "--out file cannot be a folder"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(
    command, bundles: Path, checkout: Path, arguments: list[str], message: str
):
    """One line and code 2, before anything is exported or measured."""
    Path("file").write_text("")
    code, out, err = command(*(argument.format(dense=bundles / "dense") for argument in arguments))
    assert (code, out) == (2, "")
    assert message in err and len(err.splitlines()) == 1
    assert not Path("cache").exists()
