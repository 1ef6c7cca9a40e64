"""The recorded form of the model: it can be recorded, and a replay draws what the eager model draws.

A CUDA graph cannot be had here. `graphs_on_host.py` records and replays on the CPU, with a graph's limits.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import graphs_on_host
import numpy as np
import pytest
import torch
from small_models import small_config, vivid_model

from actvar.config import FIXED, STATIC, Activation, Sampling, SmallDecoderConfig
from actvar.drawers import Drawn, EagerModel, ToDraw
from actvar.errors import ActVARError, EngineError
from actvar.models.actvar import ActVAR, empty_model
from actvar.plugins import expected
from actvar.recorded.model import RecordedModel
from actvar.recorded.operators import PlainOperators
from actvar.recorded.recorders import CudaGraphs, run_again
from actvar.recorded.steps import Places, Steps, cached_tokens
from actvar.recorded.weights import COMPUTED_IN, Weights
from actvar.runtime.backends import torch_source
from actvar.runtime.backends.torch_source import TorchSource, eager_source
from actvar.runtime.pictures import Order, ScaleEnd

SPARSE = Activation(16, (3, 4), (0.75, 0.5), (0.5, 0.25))
CONFIGS = {
    "VAR": small_config(),
    "ActVAR": small_config(activation=SPARSE),
    "shared AdaLN": small_config(activation=SPARSE, shared_adaln=True),
    "fixed tokens": small_config(activation=replace(SPARSE, token_choice=FIXED)),
    "static experts": small_config(activation=replace(SPARSE, expert_choice=STATIC)),
    "guidance-free": replace(small_config(activation=SPARSE), guided_scales=0),
    "guidance until 2": replace(small_config(activation=SPARSE), guided_scales=2),
    "small decoder": replace(small_config(), small_decoder=SmallDecoderConfig(8, 1)),
}
SAMPLING = Sampling(cfg=2.0, top_k=20, top_p=0.9)
FIRST = [ToDraw(3, 7, 0), ToDraw(0, 7, 1), ToDraw(4, 9, 2**40)]
SECOND = [ToDraw(1, 8, 3), ToDraw(1, 8, 4), ToDraw(2, 7, 0), ToDraw(3, 7, 0)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The sums of a product depend on how it is shared out, and a near tie between tokens on the sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recorded(model: ActVAR, record: Callable = graphs_on_host.record, largest: int = 4) -> RecordedModel:
    """In fp32, on the CPU."""
    return RecordedModel(model, "fp32", "cpu", PlainOperators(), record, largest)


def assert_drawn_as_by_the_eager_model(drawn: Drawn, model: ActVAR, wanted: list[ToDraw], sampling: Sampling) -> None:
    """Token by token; pixels are truncated, and may differ by one."""
    for i, picture in enumerate(wanted):
        alone = EagerModel(model).draw([picture], sampling, with_partials=bool(drawn.partials))
        np.testing.assert_array_equal(drawn.token_ids_BS[i], alone.token_ids_BS[0])
        pairs = zip((drawn.pixels_BHW3, *drawn.partials), (alone.pixels_BHW3, *alone.partials), strict=True)
        for of_batch, of_picture in pairs:
            assert np.abs(of_batch[i].astype(int) - of_picture[0]).max() <= 1


@pytest.mark.parametrize("name", CONFIGS)
def test_a_replay_draws_what_the_eager_model_draws(name: str):
    """Of other classes, seeds, numbers and settings than it was recorded with; nothing of those may stay in it."""
    model = vivid_model(CONFIGS[name])
    drawer = recorded(model)
    for wanted, sampling in ((FIRST, SAMPLING), (SECOND, Sampling(0.5, 5, 1.0)), (FIRST[:1], SAMPLING)):
        drawn = drawer.draw(wanted, sampling)
        assert drawn.pixels_BHW3.shape[0] == len(drawn.token_ids_BS) == len(wanted)
        assert_drawn_as_by_the_eager_model(drawn, model, wanted, sampling)


def test_partial_pictures_are_those_of_the_eager_model():
    """Each is there before the next scale begins."""
    model, seen = vivid_model(CONFIGS["ActVAR"]), []
    drawn = recorded(model).draw(FIRST, SAMPLING, True, lambda si, pixels_BHW3: seen.append((si, pixels_BHW3)))
    assert [si for si, _ in seen] == [0, 1, 2, 3]
    for (_, told), partial in zip(seen, drawn.partials, strict=True):
        np.testing.assert_array_equal(told, partial)
    assert_drawn_as_by_the_eager_model(drawn, model, FIRST, SAMPLING)


def test_batches_of_any_size_take_few_recordings_and_the_same_pictures_come_of_them():
    """What is left over of a batch is filled up; a smaller batch does not disturb a larger one's cache."""
    model, made = vivid_model(CONFIGS["ActVAR"]), []

    def record(step: Callable[[], None]) -> Callable[[], None]:
        made.append(step)
        return graphs_on_host.record(step)

    drawer = recorded(model, record, largest=6)
    of_a_size = len(model.config.schedule) + 2
    many = [ToDraw(i % 5, 7, i) for i in range(6)]
    whole = drawer.draw(many, SAMPLING)
    assert len(made) == of_a_size
    for count, recordings in ((5, 1), (4, 2), (3, 2), (1, 3), (6, 3)):
        some = drawer.draw(many[:count], SAMPLING)
        assert len(made) == recordings * of_a_size
        np.testing.assert_array_equal(some.token_ids_BS, whole.token_ids_BS[:count])


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "fp16") for name in CONFIGS), ("ActVAR", "fp32"), ("ActVAR", "bf16")]
)
def test_nothing_waits_is_unknown_or_comes_from_the_host(name: str, precision: str):
    """On a device whose tensors hold nothing: who asks for a value has none to get, and what is the host's is seen."""
    config = CONFIGS[name]
    weights = Weights.of(empty_model(config), precision, "meta")
    values = config.depth * 2 * config.row_groups(0) * 2 * config.heads * cached_tokens(config) * 64
    places = Places.of(config, 2, torch.empty(values, dtype=COMPUTED_IN[precision], device="meta"))
    before = {name: tensor.shape for name, tensor in vars(places).items()}
    with graphs_on_host.Forbidding("meta") as watched, torch.no_grad():
        for step in Steps(config, weights, precision, PlainOperators(), places).all():
            assert step() is None
    assert len(watched.seen) > 100
    assert {name: tensor.shape for name, tensor in vars(places).items()} == before


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (lambda x: x.sum().item(), "host wait"),
        (lambda x: bool((x > 0).all()), "host wait"),
        (lambda x: x[x > 0], "looks for what is true"),
        (lambda x: x.nonzero(), "depends on values"),
        (lambda x: x + torch.tensor([1.0]), "takes from it"),
    ],
)
def test_what_cannot_be_recorded_is_found(step: Callable, why: str):
    """The check itself."""
    x = torch.ones(3)
    with pytest.raises(graphs_on_host.NotRecordable, match=why):
        graphs_on_host.record(lambda: step(x))


def test_what_a_recording_holds_of_python_is_found():
    """The stand-in itself: a class that is read from a variable stays the recorded one."""
    held, place = [3.0], torch.zeros(2)
    replay = graphs_on_host.record(lambda: place.fill_(held[0]))
    held[0] = 4.0
    replay()
    assert place.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_keeps_its_parts_in_fp32(precision: str):
    """Those of a bundle: scorers, head, embeddings, codebook, and all that passes between steps but the cache."""
    model = vivid_model(CONFIGS["ActVAR"])
    weights = Weights.of(model, precision, "cpu")
    for block in weights.blocks:
        assert block.qkv.weight.dtype == block.experts.w1_FC.dtype == COMPUTED_IN[precision]
        assert block.selector.weight.dtype == block.router.weight.dtype == torch.float32
    assert weights.head.weight.dtype == weights.class_emb.dtype == weights.positions_1LC[1].dtype == torch.float32
    drawer = RecordedModel(model, precision, "cpu", PlainOperators(), run_again, 2)
    drawn, exact = (each.draw(FIRST[:2], SAMPLING) for each in (drawer, recorded(model, run_again)))
    first_scales = slice(0, 5)
    assert (drawn.token_ids_BS[:, first_scales] == exact.token_ids_BS[:, first_scales]).mean() > 0.7


def test_values_that_are_no_numbers_are_refused():
    """By the flag that the last step leaves."""
    model = vivid_model(CONFIGS["VAR"])
    model.vqvae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(ActVARError, match="not numbers"):
        recorded(model).draw(FIRST, SAMPLING)


def test_a_step_is_run_once_and_then_captured_in_fp32_that_is_fp32(monkeypatch: pytest.MonkeyPatch):
    """As PyTorch's own CUDA graphs want it: on a stream beside, from one pool, other threads left alone."""
    events: list[object] = []

    class Graph:
        def replay(self) -> None:
            events.append("replay")

    @contextmanager
    def graph(which: Graph, pool: object, stream: object, capture_error_mode: str) -> Iterator[None]:
        events.append((pool, capture_error_mode))
        yield
        events.append("captured")

    def stream() -> SimpleNamespace:
        return SimpleNamespace(wait_stream=lambda other: events.append("waits"))

    stand_ins = {"Stream": stream, "current_stream": stream, "stream": lambda which: nullcontext(), "CUDAGraph": Graph}
    for name, value in {**stand_ins, "graph": graph, "graph_pool_handle": lambda: "pool"}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [each.allow_tf32 for each in flags]
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    replay = CudaGraphs()(lambda: events.append([each.allow_tf32 for each in flags]))
    replay()
    run = [False, False]
    assert events == ["waits", run, "waits", ("pool", "thread_local"), run, "captured", "replay"]
    assert torch.backends.cudnn.allow_tf32 and flags[0].allow_tf32 == before[0]


@pytest.mark.parametrize(("precision", "wanted"), [("fp32", False), ("fp16", True), ("bf16", True)])
def test_in_half_precision_the_head_is_multiplied_in_tf32_and_nothing_else_is(precision, wanted):
    """Scorers decide by scores that lie close together; f_hat is handed on from scale to scale."""
    config = CONFIGS["ActVAR"]
    weights, allowed = Weights.of(empty_model(config), precision, "meta"), defaultdict(set)

    def watched(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def product(x: torch.Tensor) -> torch.Tensor:
            allowed[name].add(torch.backends.cuda.matmul.allow_tf32)
            return getattr(weights, name)(x)

        return product

    spied = replace(weights, head=watched("head"), word_embed=watched("word_embed"))
    values = config.depth * 2 * config.row_groups(0) * 2 * config.heads * cached_tokens(config) * 64
    places = Places.of(config, 2, torch.empty(values, dtype=COMPUTED_IN[precision], device="meta"))
    steps = Steps(config, spied, precision, PlainOperators(), places)
    with torch.no_grad():
        for si in range(len(config.schedule)):
            steps.scale(si)
    assert allowed == {"head": {wanted}, "word_embed": {False}}


# ---- the source


def test_a_source_of_batches_gives_what_the_eager_source_gives():
    """In order, each with its own; and a callback sees each batch after each of its scales."""
    model, ends = vivid_model(CONFIGS["ActVAR"]), list[ScaleEnd]()
    orders = [Order(i % 5, i) for i in range(5)]
    found = list(TorchSource(recorded(model, run_again, 2)).draw(orders, SAMPLING, 7, True, ends.append))
    wanted = list(eager_source(model).draw(orders, SAMPLING, 7, True))
    for a, b in zip(found, wanted, strict=True):
        assert a.order == b.order and len(a.partials) == len(b.partials) == 4
        for ids, expected_ids in zip(a.token_ids, b.token_ids, strict=True):
            np.testing.assert_array_equal(ids, expected_ids)
    assert [(end.scale, len(end.orders)) for end in ends] == [(s, n) for n in (2, 2, 1) for s in (1, 2, 3, 4)]


def test_without_a_gpu_there_is_a_message():
    """That says what this PyTorch lacks."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, and this is about machines without one")
    with pytest.raises(ActVARError, match=r"This PyTorch .* Draw on the CPU, or install one for CUDA"):
        torch_source.recorded_source(vivid_model(CONFIGS["VAR"]), "fp32", 1)


def test_a_gpu_that_is_too_small_is_a_message(monkeypatch: pytest.MonkeyPatch):
    """While the weights are brought there, and while a batch is drawn."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch_source, "first_gpu", lambda: SimpleNamespace(capability="9.0"))
    monkeypatch.setattr(torch_source, "CudaGraphs", lambda: run_again)
    monkeypatch.setattr(torch_source, "RecordedModel", full)
    with pytest.raises(EngineError, match="Choose a smaller"):
        torch_source.recorded_source(vivid_model(CONFIGS["VAR"]), "fp32", 64)
    source = TorchSource(recorded(vivid_model(CONFIGS["VAR"]), full))
    with pytest.raises(EngineError, match="Choose a smaller"):
        next(source.draw([Order(0, 0)], SAMPLING))


def test_experts_are_routed_where_that_is_expected_to_pay():
    """On Ampere and Ada for half of them or fewer; never on Hopper."""
    gpus = ("7.5", "8.0", "8.9", "9.0", "12.0")
    pays = [(gpu, active) for gpu in gpus for active in (4, 8, 12) if expected.routing_pays(gpu, active, 16)]
    assert pays == [("8.0", 4), ("8.0", 8), ("8.9", 4), ("8.9", 8)]


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONFIGS)
def test_cuda_graphs_draw_what_the_eager_model_draws(name: str):
    """Token by token in fp32; recorded once, replayed for other pictures."""
    if not torch.cuda.is_available():
        pytest.skip("needs PyTorch with CUDA and a GPU")
    model = vivid_model(CONFIGS[name])
    drawer = RecordedModel(model, "fp32", "cuda", PlainOperators(), CudaGraphs(), 4)
    for wanted in (FIRST, SECOND):
        assert_drawn_as_by_the_eager_model(drawer.draw(wanted, SAMPLING), model, wanted, SAMPLING)
