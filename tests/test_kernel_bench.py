"""`actvar-trt bench kernels`: what is measured beside what, that it is checked before it is timed, and the report.

Without a GPU the kernels run over the stand-in for CUDA, memory and streams are those of `gpu_on_host.py`, and cuBLASLt
is a small library of the same C interface. Times mean nothing then; everything else does.

Letters in shapes: M tokens, C width, N experts.
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from xml.dom import minidom

import numpy as np
import pytest
from PIL import Image

cuda_memory = pytest.importorskip("actvar.runtime.backends.cuda_memory", reason="needs cuda-bindings")

from cuda.bindings import runtime as real  # noqa: E402
from gpu_on_host import OK, HostCuda  # noqa: E402
from import_tree import ROOT  # noqa: E402
from kernel_library import host_library  # noqa: E402
from plugin_build import kernel_library_path  # noqa: E402

from actvar.benchmarks.kernels import bench as kernel_bench  # noqa: E402
from actvar.benchmarks.kernels import cublas_lt  # noqa: E402
from actvar.benchmarks.kernels.bench import KernelBench  # noqa: E402
from actvar.benchmarks.kernels.cases import Cases, Ceiling, Moved, Routed  # noqa: E402
from actvar.benchmarks.kernels.cublas_lt import CublasLt, Product, open_cublas_lt  # noqa: E402
from actvar.benchmarks.kernels.report import KernelReport  # noqa: E402
from actvar.benchmarks.pictures.measure import Spread  # noqa: E402
from actvar.cli.main import main  # noqa: E402
from actvar.errors import ActVARError, EngineError  # noqa: E402
from actvar.plugins.kernel_calls import TACTICS, open_kernels  # noqa: E402
from actvar.plugins.library import PLUGIN_VARIABLE  # noqa: E402
from actvar.runtime.backends.cuda_memory import CudaMemory  # noqa: E402
from actvar.runtime.backends.memory import Block, HostMemory  # noqa: E402
from actvar.runtime.machine import Machine  # noqa: E402

WEIGHT_BYTES = 2 * 2 * 4 * 32 * 32  # of one set, of width 32


class TimedCuda(HostCuda):
    """With events, between which a millisecond passes, and copies within the device."""

    def cudaEventCreate(self):
        return OK, object()

    def cudaEventRecord(self, event, stream):
        return (OK,)

    def cudaEventSynchronize(self, event):
        return (OK,)

    def cudaEventElapsedTime(self, begin, end):
        return OK, 1.0

    def cudaEventDestroy(self, event):
        return (OK,)

    def cudaMemcpyAsync(self, target, source, count, kind, stream):
        if kind != real.cudaMemcpyKind.cudaMemcpyDeviceToDevice:
            return super().cudaMemcpyAsync(target, source, count, kind, stream)
        self.put(stream, lambda: np.copyto(self.at(target, count), self.at(source, count)))
        return (OK,)


@cache
def host_cublas_lt() -> Path:
    """The stand-in for cuBLASLt."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    library = Path(host_library()._name).with_name(f"libcublasLt-{os.getpid()}.so")
    command = [compiler, "-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"]
    command += [str(ROOT / "tests" / "cublas_lt_on_host.cpp"), "-o", str(library)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return library


@pytest.fixture
def lt(monkeypatch) -> Iterator[CublasLt]:
    """Opened as the real one is, from where NVIDIA's own search says that it is."""
    from cuda import pathfinder

    found = SimpleNamespace(abs_path=str(host_cublas_lt()))
    monkeypatch.setattr(pathfinder, "load_nvidia_dynamic_lib", lambda name: found)
    yield open_cublas_lt()


@pytest.fixture
def host(monkeypatch, lt) -> TimedCuda:
    """All stand-ins in their places, and cases that a CPU is done with in seconds."""
    cuda = TimedCuda()
    monkeypatch.setattr(cuda_memory, "cudart", cuda)
    monkeypatch.setattr(cuda_memory.CudaStream, "handle", property(lambda stream: 0))  # what the host's libraries take
    monkeypatch.setattr(kernel_bench, "_SCRATCH", 256)
    monkeypatch.setattr(kernel_bench, "_MOST_PRODUCT", 32)
    monkeypatch.setattr(kernel_bench.KernelBench.ceiling, "__defaults__", (32, 4096))
    monkeypatch.setattr(kernel_bench, "_ROTATED", 0)  # one set
    monkeypatch.setattr(kernel_bench, "ROWS", (2,))
    monkeypatch.setattr(kernel_bench, "KEPT", ((9, 7),))
    monkeypatch.setattr(kernel_bench, "ROUTED_TOKENS", (40,))
    return cuda


@pytest.fixture
def kept() -> list[Moved | Routed]:
    """What the bench has handed over so far."""
    return []


@pytest.fixture
def bench(host, lt, kept) -> KernelBench:
    """Over the stand-ins."""
    memory = CudaMemory()
    library = open_kernels(Path(host_library()._name))
    return KernelBench(library, lt, memory, memory.stream(), lambda share: None, kept.append)


# ---- cuBLASLt


@pytest.mark.parametrize(("columns_first", "gelu", "with_bias"), [(1, 1, 1), (0, 0, 1), (1, 0, 0)])
def test_products_are_of_row_major_matrices(lt, columns_first, gelu, with_bias):
    """fc1 reads [out, in], fc2 [in, out]; every algorithm that can be used gives y = x w + b, and GELU where asked."""
    rows, depth, columns = 5, 16, 24
    rng, memory = np.random.default_rng(0), HostMemory()
    x, bias = (rng.standard_normal(shape).astype(np.float16) for shape in ((rows, depth), columns))
    w = rng.standard_normal((columns, depth) if columns_first else (depth, columns)).astype(np.float16)
    y = np.full((rows, columns), np.nan, np.float16)
    product = Product(rows, depth, columns, bool(columns_first), bool(gelu))
    given = x.ctypes.data, w.ctypes.data, bias.ctypes.data if with_bias else None, y.ctypes.data
    launches = lt.candidates(product, *given, memory.allocate(64))
    expected = x.astype(np.float64) @ (w.T if columns_first else w).astype(np.float64) + (bias if with_bias else 0)
    if gelu:
        expected = 0.5 * expected * (1 + np.tanh(np.sqrt(2 / np.pi) * (expected + 0.044715 * expected**3)))
    assert len(launches) == 2
    for launch in launches:
        y.fill(np.nan)
        launch(0)
        np.testing.assert_allclose(y.astype(np.float64), expected, rtol=2e-3, atol=2e-3)


def test_what_cublas_lt_refuses_is_said(lt):
    """Here a search without any workspace."""
    with pytest.raises(EngineError, match="cublasLtMatmulAlgoGetHeuristic of cuBLASLt failed with status 15"):
        lt.candidates(Product(1, 8, 8, True), 0, 0, None, 0, Block(0, 0, None))


def test_cublas_lts_numbers_are_those_of_nvidias_own_binding():
    """It holds no version of Python back, but has machine code: so what runs on a GPU does without it."""
    nvmath = pytest.importorskip("nvmath")
    from nvmath.bindings import cublas, cublasLt

    attribute, epilogue = cublasLt.MatmulDescAttribute, cublasLt.Epilogue
    result = cublasLt.matmul_heuristic_result_dtype
    assert (cublas_lt._FP32, cublas_lt._FP16) == (nvmath.CudaDataType.CUDA_R_32F, nvmath.CudaDataType.CUDA_R_16F)
    assert (cublas_lt._SUMS_IN_FP32, cublas_lt._TRANSPOSED) == (cublas.ComputeType.COMPUTE_32F, cublas.Operation.T)
    assert cublas_lt._TRANSPOSE_A == attribute.TRANSA
    assert (cublas_lt._EPILOGUE, cublas_lt._BIAS_POINTER) == (attribute.EPILOGUE, attribute.BIAS_POINTER)
    assert cublas_lt._MOST_WORKSPACE == cublasLt.MatmulPreferenceAttribute.MAX_WORKSPACE_BYTES
    assert (cublas_lt._NO_EPILOGUE, cublas_lt._BIAS) == (epilogue.DEFAULT, epilogue.BIAS)
    assert cublas_lt._GELU_BIAS == epilogue.GELU_BIAS
    heuristic = cublas_lt._Heuristic
    assert ctypes.sizeof(heuristic) == result.itemsize
    of_binding = [result.fields[name][1] for name in result.names]
    assert [getattr(heuristic, name).offset for name, _ in heuristic._fields_] == of_binding


def test_without_cublas_lt_it_is_said_what_to_install():
    """This machine's own search, where there is none."""
    from cuda import pathfinder

    try:
        pathfinder.load_nvidia_dynamic_lib("cublasLt")
    except RuntimeError:
        with pytest.raises(ActVARError, match="pip install nvidia-cublas"):
            open_cublas_lt()
    else:
        pytest.skip("cuBLASLt is here")


# ---- measuring


def test_every_tactic_is_measured_beside_the_dense_ffn_and_compared_with_it(bench, kept):
    """With all experts active both compute the same; fewer, random or recorded, are timed alone."""
    recorded = np.tile(np.arange(16, dtype=np.float32), (3, 1))
    found = bench.routed(Cases((3, 40), (32,), (4, 16), recorded))
    names = [(f.tokens, f.active, f.routing) for f in found]
    each = [(4, "random"), (16, "random"), (4, "recorded")]
    assert names == [(tokens, *rest) for tokens in (3, 40) for rest in each]
    assert kept == found
    for figures in found:
        assert set(figures.tactics) == set(TACTICS) and figures.default in TACTICS
        assert figures.dense.median == 1e-3
        assert (figures.difference is not None) == (figures.active == 16)
        assert figures.difference is None or 0 <= figures.difference < 0.01


def test_a_wrong_result_is_not_timed(bench, monkeypatch):
    """A figure of a kernel that computes something else would be worth nothing."""
    launch = type(bench.kernels).launch

    def wrong(kernels, function, *arguments):
        return launch(kernels, function, *arguments[:5], arguments[2], *arguments[6:])  # b1 is x

    monkeypatch.setattr(type(bench.kernels), "launch", wrong)
    with pytest.raises(EngineError, match=r"Tactic 1 differs by .* from the dense FFN of width 32 for 40 tokens"):
        bench.routed(Cases((40,), (32,), (16,)))


def test_repeats_go_through_sets_of_weights_that_no_cache_holds(bench, monkeypatch):
    """Here three sets; each is read as often as the others, by the kernels and by the dense FFN."""
    monkeypatch.setattr(kernel_bench, "_ROTATED", 2 * WEIGHT_BYTES)
    launch, read = type(bench.kernels).launch, Counter[tuple[int, int, int]]()

    def recording(kernels, function, *arguments):
        if function == "actvarRoutedFfn":
            read[arguments[1], arguments[4], arguments[6]] += 1
        return launch(kernels, function, *arguments)

    monkeypatch.setattr(type(bench.kernels), "launch", recording)
    bench.routed(Cases((3,), (32,), (4,)))
    for tactic in TACTICS:
        first, *others = (times for (number, *_), times in read.items() if number == tactic)
        assert len(others) == 2 and len(set(others)) == 1 and 0 <= first - others[0] <= 2  # twice before it is recorded


def test_a_kernel_that_moves_bytes_is_beside_a_copy_of_as_many(bench, kept):
    """Bytes read and written, counted from the shapes."""
    found = {(moved.kernel, *moved.shape.values()): moved for moved in bench.moves((32,))}
    assert kept == list(found.values())
    assert {name: moved.bytes for name, moved in found.items()} == {
        ("select", 2, 9, 7): 2 * (9 * 4 + 7 * 8),
        ("gather", 2, 9, 7, 32): 2 * 2 * 7 * 32 * 2 + 2 * 7 * 8,
        ("scatter", 2, 9, 7, 32): 2 * 2 * 9 * 32 * 2 + 2 * 7 * 8,
        ("gather + norm", 2, 9, 7, 32): 2 * (7 * 32 * (4 + 4 + 2) + 2 * 32 * 4 + 7 * 8),
        ("gate + scatter", 2, 9, 7, 32): 2 * (9 * 32 * (4 + 4) + 7 * 32 * 2 + 32 * 4 + 7 * 8),
        ("route", 40): 40 * 16 * 4 + 40 * 4,
        ("order", 40, 1): 40 * 4 + 40 * 4,
        ("order", 40, 2): 40 * 4 + 2 * 40 * 4,
        ("order", 40, 4): 40 * 4 + 4 * 40 * 4,
    }
    assert all(moved.ratio == 1 for moved in found.values())


def test_the_ceiling_is_of_a_product_and_a_copy_of_random_numbers(bench, lt, monkeypatch):
    """2 n³ operations in a millisecond, and twice the bytes of a copy; zeros would take less power, and run faster."""
    candidates, copy, seen = type(lt).candidates, type(bench.stream).copy, []

    def multiplied(lt, product, x, w, *rest):
        seen.extend(np.ctypeslib.as_array((ctypes.c_uint16 * 4096).from_address(a)).copy() for a in (x, w))
        return candidates(lt, product, x, w, *rest)

    def copied(stream, target, source, size):
        seen.append(np.ctypeslib.as_array((ctypes.c_uint16 * (size // 2)).from_address(source)).copy())
        return copy(stream, target, source, size)

    monkeypatch.setattr(type(lt), "candidates", multiplied)
    monkeypatch.setattr(type(bench.stream), "copy", copied)
    assert bench.ceiling(64, 4096) == Ceiling(pytest.approx(2 * 64**3 / 1e-3), pytest.approx(2 * 4096 / 1e-3))
    assert len(seen) > 2 and all(len(np.unique(values)) > len(values) / 4 for values in seen)


# ---- the report


def test_ratios_and_the_fastest_tactic_are_taken_from_medians():
    """A crossover is read from these."""
    spreads = {1: Spread.of([4.0, 2.0, 3.0]), 2: Spread.of([1.0])}
    figures = Routed(8, 32, 4, "random", Spread.of([2.0]), Spread.of([1.0]), spreads, 1, None)
    assert figures.ratios == {1: 1.5, 2: 0.5} and figures.best == 2
    assert figures.dense_operations == 2 * (2 * 8 * 32 * 128)


def test_every_figure_says_which_part_of_the_roofline_it_reaches():
    """By hand: 4 of 16 experts are a quarter of the operations; weights, biases, x, y and scores count once."""
    ceiling = Ceiling(operations=1e6, bytes=1e5)
    figures = Routed(8, 32, 4, "random", Spread.of([2.0]), Spread.of([1.0]), {1: Spread.of([4.0])}, 1, None)
    operations, size = 2 * (2 * 8 * 32 * 128), 2 * (2 * 32 * 128 + 128 + 32 + 2 * 8 * 32)
    assert figures.reached_dense(ceiling) == {"bytes": size / 2 / 1e5, "operations": operations / 2 / 1e6}
    routed = {"bytes": (size + 8 * 16 * 4) / 4 / 1e5, "operations": operations / 4 / 4 / 1e6}
    assert figures.reached(ceiling) == {1: routed}
    moved = Moved("gather", {}, 10, Spread.of([4.0]), Spread.of([2.0]))
    assert moved.reached(ceiling) == {"bytes": 10 / 4 / 1e5, "operations": 0}


def test_the_report_holds_every_figure_once_and_draws_the_best():
    """Tables for a person, JSON with the single measurements, one line in the drawing for each width and routing."""
    machine = Machine("cpu", 2, 1, "system", "a GPU", 0.0, {})
    routed = tuple(
        Routed(m, c, 4, masks, Spread.of([1.0]), Spread.of([0.75]), {1: Spread.of([0.5]), 2: Spread.of([1.5])}, 2, None)
        for m in (4096, 24576)
        for c in (1024, 1280)
        for masks in ("random", "recorded")
    )
    moved = (Moved("gather", {"rows": 2}, 10, Spread.of([3.0]), Spread.of([2.0])),)
    report = KernelReport("a command", machine, Ceiling(1e15, 3e12), moved, routed)
    content = json.loads(report.to_json())
    assert [f["aim"] for f in content["routed"]] == [0.38] * 4 + [0.33] * 4
    assert {f["best"] for f in content["routed"]} == {1} and content["moved"][0]["ratio"] == 1.5
    assert all(figures["reached"]["1"].keys() == {"bytes", "operations"} for figures in content["routed"])
    assert content["moved"][0]["reached"]["bytes"] == 10 / 3 / 3e12
    [axes] = report.plot().axes
    lines = [line for line in axes.lines if list(line.get_xdata()) == [4096, 24576]]
    assert len(lines) == 4 and sum(line.get_linestyle() == "--" for line in lines) == 2
    assert all(list(line.get_ydata()) == [0.5, 0.5] for line in lines)
    assert [table.row_count for table in report.tables()] == [1, 8]


# ---- the command


def run(*arguments: str) -> int:
    """The command line in this process; the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["actvar-trt", "bench", "kernels", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
    return int(stopped.value.code or 0)


SMALL = ("--token-counts", "3", "--presets", "mini", "--active-experts", "16,4")


@pytest.mark.slow
def test_the_command_leaves_json_tables_and_a_drawing(host, monkeypatch, tmp_path, capsys):
    """Of recorded scores too."""
    monkeypatch.setenv(PLUGIN_VARIABLE, host_library()._name)
    np.save(tmp_path / "scores.npy", np.eye(16, dtype=np.float32))
    out = tmp_path / "out"
    assert run(*SMALL, "--routing", str(tmp_path / "scores.npy"), "--out", str(out)) == 0
    content = json.loads((out / "kernels.json").read_text())
    assert [(f["active"], f["routing"]) for f in content["routed"]] == [(4, "random"), (16, "random"), (4, "recorded")]
    assert "Routed FFN" in (out / "kernels.txt").read_text() and "Routed FFN" in capsys.readouterr().out
    minidom.parse(str(out / "kernels.svg"))
    assert Image.open(out / "kernels.png").width > 600


def test_without_a_gpu_the_command_says_so_and_leaves_nothing(tmp_path, capsys):
    """With exit code 1, before it makes a folder."""
    if run("--out", str(tmp_path / "out")) == 0:
        pytest.skip("there is a GPU")
    assert "no GPU" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value", "code", "said"),
    [
        ("--token-counts", "0,5", 2, "--token-counts must be numbers from 1 to"),
        ("--active-experts", "17", 2, "--active-experts must be numbers from 1 to 16"),
        ("--presets", "d16,d17", 2, "No preset is called 'd17'"),
        ("--routing", "nothing.npy", 1, "nothing.npy cannot be read"),
        ("--routing", str(ROOT / "README.md"), 1, "is no .npy file"),
    ],
)
def test_wrong_options_are_said(option, value, code, said, capsys):
    """Before anything is measured."""
    assert run(option, value) == code
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "content", [np.zeros((4, 8), np.float32), np.zeros((0, 16), np.float32), np.zeros((4, 16), int)]
)
def test_scores_of_another_form_are_refused(content, tmp_path, capsys):
    """Eight experts, none, and no scores."""
    np.save(tmp_path / "scores.npy", content)
    assert run("--routing", str(tmp_path / "scores.npy")) == 1
    assert "must hold scores [tokens, 16]" in " ".join(capsys.readouterr().err.split())


@pytest.mark.gpu
def test_the_command_on_a_gpu(monkeypatch, tmp_path):
    """With the real cuBLASLt: every tactic computes what it does."""
    monkeypatch.setenv(PLUGIN_VARIABLE, str(kernel_library_path()))
    assert run("--token-counts", "254", "--presets", "d16", "--active-experts", "16,12", "--out", str(tmp_path)) == 0
    content = json.loads((tmp_path / "kernels.json").read_text())
    checked = next(f for f in content["routed"] if f["active"] == 16)
    assert checked["difference"] is not None and content["ceiling_operations_per_second"] > 1e12


# ---- recording


@pytest.mark.slow
def test_the_routers_scores_are_recorded(tmp_path):
    """Two pictures of the mini model: 2 rows of 192 tokens each, of the scores that choose their experts."""
    command = [sys.executable, str(ROOT / "benchmarks" / "kernel_routing.py"), "--pictures", "2"]
    done = subprocess.run([*command, "--out", str(tmp_path / "new" / "routing")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scores = np.load(tmp_path / "new" / "routing")
    assert scores.shape == (2 * 2 * 192, 16) and scores.dtype == np.float32 and scores.std() > 0
    assert "tokens: 768" in done.stdout and "block 4" in done.stdout
