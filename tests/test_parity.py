"""The parity check: it passes what is right, and names the graph of what is wrong."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from command_line import Command, in_process
from onnx import numpy_helper
from polygraphy.comparator import IterationResult
from small_models import small_config, vivid_model

from actvar.bundle.contract import ENCODER, MASKED_SCALES, SCALES, graph_names
from actvar.bundle.manifest import read_manifest, write_manifest
from actvar.checkpoint.model import load_model
from actvar.checkpoint.own import save_model
from actvar.cli import parity as parity_command
from actvar.config import MINI, Activation, Sampling
from actvar.export.onnx_export import export_bundle
from actvar.export.parity.check import check_parity, compare_batch
from actvar.export.parity.compare import Difference, OutputCompareFunc, Tolerance
from actvar.export.parity.recording import record
from actvar.export.parity.report import CHAIN, ParityReport
from actvar.export.parity.runners import EngineGraphRunner
from actvar.files import hash_file
from actvar.models.actvar import ActVAR
from actvar.runtime.backends import ort
from actvar.runtime.pipeline import GraphSource
from actvar.runtime.sources import open_graphs

# Of few codes, so that no uniform number of these pictures lies within rounding of a boundary.
SAMPLING = Sampling(cfg=2.0, top_k=20, top_p=0.9)
TEN_SCALES = replace(MINI, depth=1, activation=Activation(), sampling=SAMPLING)
NO_LIMIT = Tolerance()
FOUR_SCALES = replace(small_config(activation=Activation(4, (2, 4), (0.5, 0.6), (0.75, 0.25))), sampling=SAMPLING)


@pytest.fixture(scope="module")
def model() -> ActVAR:
    """An ActVAR of one block, with the mini model's VQVAE."""
    return vivid_model(TEN_SCALES)


@pytest.fixture(scope="module")
def bundles(model, tmp_path_factory) -> Callable[[str], Path]:
    """Its bundles by precision, each made once."""
    made: dict[str, Path] = {}

    def get(precision: str) -> Path:
        if precision not in made:
            made[precision] = tmp_path_factory.mktemp("bundles") / precision
            export_bundle(model, made[precision], precision, "random weights", debug=True)
        return made[precision]

    return get


@pytest.fixture(scope="module", params=[SCALES, MASKED_SCALES, "each"])
def graphs(bundles, request) -> GraphSource:
    """The fp32 bundle, opened to draw two pictures at a time; all scales by one graph, or each by its own."""
    folder = bundles("fp32")
    return GraphSource(ort.load(folder, read_manifest(folder), threads=1, scales=request.param), 2)


@pytest.fixture(scope="module")
def small_checkpoint(tmp_path_factory) -> Path:
    """A checkpoint of four scales, for what does not need ten."""
    path = tmp_path_factory.mktemp("checkpoints") / "small.safetensors"
    save_model(vivid_model(FOUR_SCALES), path, torch.float32)
    return path


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`actvar-trt parity` in this process."""
    return in_process(monkeypatch, capsys, "parity")


# ---- what is right passes


@pytest.fixture(scope="module")
def report(model, graphs) -> ParityReport:
    """Three pictures in two batches, the second of one picture."""
    return check_parity(model, graphs, pictures=3, seed=7)


def test_graphs_and_chain_of_a_right_bundle_are_within_tolerance(report):
    """The claim itself: in fp32 every token of all ten scales is the model's, and so is every picture."""
    assert report.passed, report.verdict
    assert report.first_flip is None
    tokens = {key: difference for key, difference in report.found.items() if key[1].endswith("token_ids")}
    of_encoder = tokens.pop((ENCODER, "token_ids"))
    assert of_encoder.equal == of_encoder.choices == 3 * MINI.schedule.total
    assert len(tokens) == 20  # of ten graphs, and of ten scales of the chain
    for (graph, output), difference in tokens.items():
        scale = int((output if graph == CHAIN else graph)[6:8])
        assert difference.equal == difference.choices == 3 * MINI.schedule.tokens[scale - 1]


def test_every_output_of_every_graph_is_compared(report, graphs):
    """An output that is left out could hold anything."""
    manifest = graphs.engine.manifest
    outputs = {(name, spec.name) for name in manifest.graphs for spec in manifest.graphs[name].outputs}
    compared = {(graph, output) for graph, output in report.found if graph != CHAIN}
    # At the active scales also what it comes to if the two sides choose for themselves.
    free = {"kept_free", "experts_free", "logits_free", "token_ids_forced"}
    assert compared == outputs | {(graph, output) for graph in ("scale_09", "scale_10") for output in free}
    assert {graph for graph, output in outputs if output == "logits"} == set(graph_names(MINI)[1:-1])
    assert all(difference.pictures == 3 for difference in report.found.values())


def test_fp16_is_judged_by_shares_and_its_pictures_are_only_reported(model, bundles):
    """In fp16 choices do flip: the report says how many, holds numbers to 1e-2, and does not condemn the pictures."""
    report = check_parity(model, open_graphs(bundles("fp16"), batch_size=2, threads=1), pictures=2)
    least = {"token_ids": 0.99, "kept": 0.99, "experts": 0.99}
    for (graph, output), difference in report.found.items():
        if graph == CHAIN or output.endswith(("_free", "_forced")):
            assert difference.passed
        elif output in least:
            parts = difference.blocks or (difference,)
            assert difference.passed == all(part.equal / part.choices >= least[output] for part in parts)
        else:
            assert difference.passed == (difference.relative <= 1e-2)
    for name in graph_names(MINI)[1:-1]:
        assert 0 < report.found[name, "logits"].relative <= 1e-2, "fp16 must show, and must not show much"


def test_numbers_of_an_fp16_graph_that_hides_its_choices_are_not_judged_where_it_chooses(small_checkpoint, tmp_path):
    """They may be of another computation, and then say nothing; those of the other scales are judged."""
    export_bundle(vivid_model(FOUR_SCALES), tmp_path / "plain", "fp16", "random weights")
    report = check_parity(load_model(small_checkpoint), open_graphs(tmp_path / "plain", 1, threads=1), pictures=1)
    judged = {
        graph: report.found[graph, "new_kv"].tolerance != NO_LIMIT for graph in ("scale_01", "scale_02", "scale_03")
    }
    assert judged == {"scale_01": True, "scale_02": False, "scale_03": True}


# ---- what is wrong is caught, and named


DAMAGES = {
    "condition": ("var.class_emb.weight", (MINI.num_classes, 0)),
    "scale_01": ("var.blocks.0.attn.proj.weight", (0, 0)),
    "scale_05": ("var.pos_1LC", (0, MINI.schedule.starts[4], 3)),
    "scale_09": ("var.blocks.0.ffn.router.bias", (2,)),  # scales 9 and 10 are the active ones
    "decoder": ("vqvae.decoder.conv_out.bias", (1,)),
}


@pytest.mark.parametrize("graph", DAMAGES)
def test_one_changed_weight_is_found_in_the_first_graph_that_reads_it(graph, model, graphs):
    """Inputs are the reference's own: a graph that computes the same must pass, whatever the graphs before it did."""
    damaged, (name, place) = copy.deepcopy(model), DAMAGES[graph]
    dict(damaged.named_parameters())[name][place] += 10
    report = check_parity(damaged, graphs, pictures=1)
    assert report.first_departure is not None and report.first_departure.graph == graph
    assert f"The first graph that departs is {graph}" in report.verdict


@pytest.fixture(scope="module")
def three_blocks(tmp_path_factory) -> tuple[ActVAR, GraphSource]:
    """A model of four scales, the second and fourth of them active, and its graphs."""
    model, folder = vivid_model(replace(FOUR_SCALES, depth=3)), tmp_path_factory.mktemp("bundles") / "three"
    export_bundle(model, folder, "fp32", "random weights", debug=True)
    return model, open_graphs(folder, batch_size=2, threads=1)


@pytest.mark.parametrize(
    ("weight", "graph", "block", "by", "output"),
    [
        ("blocks.1.attn.proj.bias", "scale_01", 1, "numbers", "hidden"),
        ("blocks.2.attn.q_bias", "scale_02", 2, "numbers", "hidden"),  # the first scale has one key to look at
        ("blocks.2.attn.v_bias", "scale_01", 2, "numbers", "hidden"),
        ("blocks.0.ffn.fc2.bias", "scale_01", 0, "numbers", "hidden"),
        ("blocks.1.selector.weight", "scale_02", 1, "choice of tokens", "kept"),
        ("blocks.2.ffn.router.bias", "scale_02", 2, "choice of experts", "experts"),
        ("head.bias", "scale_01", None, None, "logits"),
    ],
)
def test_the_report_names_the_first_block_that_departs_and_what_of_it(three_blocks, weight, graph, block, by, output):
    """One changed weight of one side, and a person knows where to look; what follows from it is not named."""
    model, graphs = three_blocks
    damaged = copy.deepcopy(model)
    values = dict(damaged.var.named_parameters())[weight]
    values.view(-1)[: values.numel() // 2] += 1.0
    report = check_parity(damaged, graphs, pictures=2)
    found = json.loads(report.to_json())["first_departure"]
    assert found == {"graph": graph, "block": block, "by": by, "output": output}
    place = f"and in it blocks.{block}, by its {by}" if by else "behind its blocks"
    assert f"The first graph that departs is {graph}, {place}: {output}: " in report.verdict


def test_numbers_are_compared_at_equal_choices(three_blocks):
    """Where both sides choose otherwise everywhere, their numbers still agree: only the choices are wrong."""
    model, graphs = three_blocks
    damaged = copy.deepcopy(model)
    for block in damaged.var.blocks:
        block.selector.weight.neg_()
        block.ffn.router.weight.neg_()
    report = check_parity(damaged, graphs, pictures=2)
    failed = {key for key, difference in report.found.items() if not difference.passed and key[0] != CHAIN}
    assert {key for key in failed if key[1] != "token_ids"} == {
        (graph, output) for graph in ("scale_02", "scale_04") for output in ("kept", "experts")
    }
    for graph in ("scale_02", "scale_04"):
        assert report.found[graph, "logits"].absolute <= 1e-4 < 0.1 < report.found[graph, "logits_free"].absolute
        assert report.found[graph, "token_ids_forced"].equal == report.found[graph, "token_ids_forced"].choices


class OddEngine:
    """An engine that gives what another does, but for one output."""

    def __init__(self, engine, graph: str, output: str, value: np.ndarray):
        self._engine, self.manifest, self._odd = engine, engine.manifest, (graph, output, value)

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def run(self, graph, inputs):
        made = dict(self._engine.run(graph, inputs))
        odd_graph, output, value = self._odd
        if graph == odd_graph:
            made[output] = self._engine.upload(np.broadcast_to(value, self._engine.download(made[output]).shape))
        return made


@pytest.mark.parametrize("output", ["kept", "experts", "token_ids"])
@pytest.mark.parametrize("value", [-1, 10**6, 0], ids=["below", "above", "all the same"])
def test_a_choice_that_is_none_is_reported_and_not_made(three_blocks, output, value):
    """What an engine gives may be anything; the model must not be asked for a token that there is not."""
    model, graphs = three_blocks
    engine = OddEngine(graphs.engine, "scale_02", output, np.array(value))
    source = replace(graphs, engine=engine)
    (differences,) = [found for name, found in compare_batch(model, source, [0], range(1), 0) if name == "scale_02"]
    assert not differences[output].passed
    assert differences["hidden"].passed


class CacheOfItsOwn(OddEngine):
    """Remembers what was put into its cache."""

    def kv_cache(self, pictures):
        self.cache = super().__getattr__("kv_cache")(pictures)
        self.appended = []
        append = self.cache.append
        self.cache.append = lambda new_kv: (self.appended.append(self.download(new_kv)), append(new_kv))
        return self.cache


def test_keys_and_values_reach_a_graph_through_the_engines_own_cache(three_blocks):
    """A backend may keep its cache in one place and read it nowhere else."""
    model, graphs = three_blocks
    config = model.config
    engine = CacheOfItsOwn(graphs.engine, "", "", np.array(0))
    recording = dict(record(model, [0, 1], config.sampling))["scale_03"]
    EngineGraphRunner(engine, "scale_03").run(dict(recording.inputs))
    (appended,) = engine.appended
    assert appended.shape[-2] == config.cached_tokens[2] < recording.inputs["past_kv"].shape[-2]


def change_constant(folder: Path, graph: str, name: str) -> None:
    """Change one constant of a graph, and let the manifest agree."""
    manifest = read_manifest(folder)
    path = folder / manifest.graphs[graph].entry.file
    proto = onnx.load(path, load_external_data=False)
    (constant,) = (tensor for tensor in proto.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(constant).copy()
    values.flat[0] += 0.5
    constant.CopyFrom(numpy_helper.from_array(values, constant.name))
    path.write_bytes(proto.SerializeToString())
    spec = manifest.graphs[graph]
    graphs = {**manifest.graphs, graph: replace(spec, entry=hash_file(path))}
    write_manifest(folder, replace(manifest, graphs=graphs))


def test_a_bundle_with_a_wrong_constant_ends_with_code_1_and_the_graphs_name(
    command: Command, small_checkpoint, tmp_path
):
    """A fault in one graph alone: the graphs before and after it are right, and the report says so."""
    bundle, file = tmp_path / "bundle", tmp_path / "report.json"
    export_bundle(vivid_model(FOUR_SCALES), bundle, "fp32", "random weights")
    change_constant(bundle, "scale_03", "bicubic_3_to_5")
    code, out, _ = command(
        "--bundle", bundle, "--model", small_checkpoint, "--count", 2, "--json", file, "--cpu-graph", "each"
    )
    assert code == 1
    assert "The first graph that departs is scale_03: next_f_hat:" in out
    assert "Whole pictures first draw other tokens at scale_04/token_ids" in out
    content = json.loads(file.read_text())
    assert content["passed"] is False
    assert content["first_departure"] == {"graph": "scale_03", "block": None, "by": None, "output": "next_f_hat"}
    failed = {row["graph"] for row in content["outputs"] if not row["passed"]}
    assert failed == {"scale_03", CHAIN}


# ---- how outputs are compared


def compared(reference: dict, result: dict, tolerance: Tolerance = NO_LIMIT) -> dict[str, Difference]:
    """Outputs of two pictures, numbers 4 and 5."""
    compare = OutputCompareFunc(dict.fromkeys(result, tolerance), (4, 5))
    return compare(IterationResult(reference), IterationResult(result))


def test_errors_are_the_largest_absolute_and_the_norms_quotient():
    """Element by element, a relative error would be endless at the reference's zeros."""
    reference = np.array([[0.0, 3.0], [4.0, 0.0]], np.float32)
    found = compared({"image": reference}, {"image": reference + np.array([[0.5, 0.0], [0.0, 0.0]], np.float32)})
    assert (found["image"].absolute, found["image"].relative) == (0.5, 0.1)


def test_unequal_tokens_are_counted_and_the_first_is_placed():
    """A person looks at that picture; its number is that of the seed and not its place in the batch."""
    found = compared({"token_ids": np.array([[1, 2], [3, 4]])}, {"token_ids": np.array([[1, 2], [9, 9]])})
    assert (found["token_ids"].equal, found["token_ids"].choices) == (2, 4)
    assert found["token_ids"].first_unequal == (5, 0)


def test_selections_are_sets_of_each_row_and_of_each_block():
    """One token kept in another's place moves all between; it is one that differs, in its block."""
    reference = np.array([[[0, 1, 2], [3, 4, 5]], [[0, 1, 2], [3, 4, 5]]])  # two blocks of two rows
    result = np.array([[[0, 1, 2], [3, 4, 5]], [[1, 2, 9], [3, 4, 5]]])
    found = compared({"kept": reference}, {"kept": result}, Tolerance(equal=0.9))["kept"]
    assert (found.equal, found.choices) == (11, 12)
    assert [(block.equal, block.choices) for block in found.blocks] == [(6, 6), (5, 6)]
    assert [block.passed for block in found.blocks] == [True, False]
    assert not found.passed, "eleven of twelve are enough, five of six are not"


def test_experts_of_other_tokens_are_other_experts():
    """Side by side would compare an expert of one token with one of another."""
    reference = {"kept": np.array([[[0, 1]]]), "experts": np.array([[[[5, 6], [7, 8]]]])}
    free = {"kept_free": np.array([[[0, 2]]]), "experts_free": np.array([[[[5, 7], [7, 8]]]])}
    found = compared({**reference, **free}, reference)
    assert found["experts"].equal == found["experts"].choices == 4
    assert (found["experts_free"].equal, found["experts_free"].choices) == (1, 4)
    assert (found["kept_free"].equal, found["kept_free"].choices) == (1, 2)


def test_of_numbers_the_worst_block_counts():
    """A small block's error would drown in the norm of a large one's numbers."""
    reference = np.array([[[1.0, 0.0]], [[1000.0, 0.0]]])
    found = compared({"hidden": reference}, {"hidden": reference + 0.1}, Tolerance(relative=0.01))["hidden"]
    assert [block.passed for block in found.blocks] == [False, True]
    assert not found.passed and found.relative == pytest.approx(2**0.5 / 10)


@pytest.mark.parametrize(
    "wrong",
    [np.full((2, 3), np.nan), np.array([[np.inf, 1, 1], [1, 1, 1]]), np.ones((2, 4))],
    ids=["NaN", "infinity", "another shape"],
)
def test_what_is_no_number_or_of_another_shape_is_outside_any_tolerance(wrong):
    """Comparisons with NaN are false, and must not read as "not above the limit"."""
    found = compared({"image": np.ones((2, 3))}, {"image": wrong}, Tolerance(absolute=1e9))
    assert not found["image"].passed
    assert not (Difference(Tolerance(absolute=1.0), 1, 0.5, 0.5) + found["image"]).absolute <= 1.0


def test_batches_add_up():
    """Worst errors, and all tokens: a share is of all pictures, not a mean of unequal batches."""
    numbers = Difference(Tolerance(absolute=1.0), 4, 0.2, 0.1) + Difference(Tolerance(absolute=1.0), 1, 0.1, 0.3)
    assert (numbers.pictures, numbers.absolute, numbers.relative) == (5, 0.2, 0.3)
    tolerance = Tolerance(equal=0.99)
    first = Difference(tolerance, 99, choices=99, equal=99)
    second = Difference(tolerance, 1, choices=1, equal=0, first_unequal=(99, 0))
    assert not second.passed
    both = first + second
    assert both.passed and (both.choices, both.equal, both.first_unequal) == (100, 99, (99, 0))
    blocks = replace(second, blocks=(second,)) + replace(first, blocks=(first,))
    assert blocks.passed and blocks.blocks == (replace(both, first_unequal=(99, 0)),)


# ---- the command


def test_a_right_checkpoint_ends_with_code_0_and_a_report(command: Command, small_checkpoint, tmp_path):
    """What CI runs: nothing but a checkpoint, an exit code, and a report for a program."""
    file = tmp_path / "report.json"
    code, out, err = command("--model", small_checkpoint, "--count", 3, "--batch-size", 2, "--json", file)
    assert code == 0, err
    assert "Parity holds in fp32" in out
    assert "scale_04" in out and "logits" in out
    content = json.loads(file.read_text())
    assert content["passed"] is True and content["first_departure"] is None and content["first_flip"] is None
    assert {row["pictures"] for row in content["outputs"]} == {3}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--preset", "mini", "--model", "x.pth"], "--preset and --model both name a model"),
        (["--vqvae", "x.pth"], "--vqvae belongs to a checkpoint"),
        (["--bundle", "x"], "--bundle is compared with the --model"),
        (["--bundle", "x", "--model", "y", "--precision", "fp16"], "--precision is for an export"),
        (["--backend", "tensorrt", "--device", "cpu"], "TensorRT needs a GPU"),
        (["--precision", "int8", "--backend", "tensorrt"], "The precision int8 is for ONNX Runtime on a CPU"),
        (["--precision", "int8", "--device", "cuda"], "Take fp16 on a GPU"),
        (
            ["--precision", "fp16-weights", "--device", "cuda"],
            "The precision fp16-weights is for ONNX Runtime on a CPU",
        ),
        (["--json", "no/such/folder/report.json"], "--json must be a file in a folder that is there"),
        (["--count", "0"], "--count"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_done(command: Command, arguments, expected):
    """One message, exit code 2."""
    code, _, err = command(*arguments)
    assert code == 2
    assert expected in err


def test_engines_are_not_built_where_there_is_no_gpu_to_run_them(command: Command, monkeypatch):
    """An export and a build of minutes, to end in a refusal."""
    monkeypatch.setattr(parity_command, "first_gpu", lambda: None)
    code, _, err = command("--backend", "tensorrt")
    assert code == 2
    assert "--backend tensorrt needs an NVIDIA GPU, and there is none" in err


def test_a_bundle_of_another_model_is_refused(command: Command, small_checkpoint, bundles):
    """To compare them would be to report nonsense, graph by graph."""
    code, _, err = command("--bundle", bundles("fp32"), "--model", small_checkpoint)
    assert code == 2
    assert "is of another model than checkpoint small.safetensors" in err


@pytest.mark.slow
def test_the_shipped_model_draws_the_same_tokens_through_its_graphs(command: Command, tmp_path):
    """The promise of the README, on trained weights: 32 pictures, all ten scales, logits within 2e-4."""
    file = tmp_path / "report.json"
    code, _, err = command("--json", file)
    assert code == 0, err
    rows = {(row["graph"], row["output"]): row for row in json.loads(file.read_text())["outputs"]}
    for si, tokens in enumerate(MINI.schedule.tokens):
        chain = rows[CHAIN, f"scale_{si + 1:02d}/token_ids"]
        assert chain["equal"] == chain["choices"] == 32 * tokens
        assert rows[f"scale_{si + 1:02d}", "logits"]["absolute"] <= 2e-4


@pytest.mark.slow
def test_the_shipped_model_holds_in_fp16(command: Command, tmp_path):
    """The promise of docs/parity.md: 32 pictures, numbers within 1e-2 at equal choices, 99 % of each scale's tokens."""
    code, _, err = command("--precision", "fp16")
    assert code == 0, err
