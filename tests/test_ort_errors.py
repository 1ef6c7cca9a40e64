"""What ONNX Runtime refuses keeps its kind: damaged, not for this use, too large for this machine, or its own words."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from onnx import TensorProto, helper
from small_models import small_config, vivid_model

from actvar.errors import ActVARError, BundleError, DamagedError, EngineError
from actvar.export.onnx_export import export_bundle
from actvar.runtime.backends import ort
from actvar.runtime.sources import open_graphs


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "small"
    export_bundle(vivid_model(small_config()), folder, "fp32", "a test")
    return folder


def refused(folder: Path, kind: str, dtype: int = TensorProto.FLOAT) -> ActVARError:
    """What a session of one node raises, as the runtime passes it on."""
    shape = helper.make_tensor_value_info("x", dtype, [2]), helper.make_tensor_value_info("y", dtype, [2])
    graph = helper.make_graph([helper.make_node(kind, ["x"], ["y"])], "one", [shape[0]], [shape[1]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (folder / "one.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ActVARError) as caught:
        ort._make_session(folder, "one", {}, 1, "cpu")
    return caught.value


def test_a_graph_that_is_none_is_damaged(tmp_path):
    """To export it again helps."""
    (tmp_path / "one.onnx").write_bytes(b"\x0a\xff\xff\xff\xff")
    with pytest.raises(DamagedError, match=r"one\.onnx cannot be loaded: .* Export the bundle again"):
        ort._make_session(tmp_path, "one", {}, 1, "cpu")


def test_an_operator_that_is_not_there_is_not_for_this_use(tmp_path):
    """To export it again, as it is, would not help."""
    error = refused(tmp_path, "Relu", TensorProto.BFLOAT16)
    assert isinstance(error, BundleError) and not isinstance(error, DamagedError)
    assert "in fp32" in str(error) and "again" not in str(error)


def test_what_nobody_foresaw_comes_in_the_librarys_words(tmp_path):
    """And names no way out that is none."""
    with pytest.raises(EngineError, match="cannot be loaded") as caught:
        ort._make_session(tmp_path, "nowhere", {}, 1, "cpu")
    assert "Export" not in str(caught.value)


def test_names_in_a_graph_do_not_reach_the_terminal_as_they_are(tmp_path, monkeypatch):
    """The library's words hold names of the file; this one has a sign that turns the text around."""
    given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "\u202e"))
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "one", [given], [made])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (tmp_path / "one.onnx").write_bytes(model.SerializeToString())
    monkeypatch.chdir(tmp_path)  # a message has room for so much
    with pytest.raises(ActVARError, match=r"cannot be loaded") as caught:
        ort._make_session(Path(), "one", {}, 1, "cpu")
    assert "\\u202e" in str(caught.value) and str(caught.value).isprintable()


def test_a_path_of_other_bytes_is_refused_before_anything_is_loaded(bundle, tmp_path):
    """It was taken for a damaged bundle."""
    other = os.fsdecode(os.fsencode(tmp_path) + b"/b\xff")
    try:
        os.symlink(bundle, other)
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(ActVARError, match=r"no UTF-8, as in '.*b\\udcff'\. Move the bundle"):
        open_graphs(Path(other), 1, 1)


LIMITED = """
import resource, sys
from pathlib import Path
from actvar.config import Sampling
from actvar.errors import ActVARError
from actvar.runtime.pictures import Order
from actvar.runtime.sources import open_graphs
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]), -1))
try:
    pipe = open_graphs(Path(sys.argv[1]), 64, 1)
    list(pipe.draw([Order(0, n) for n in range(64)], Sampling()))
except MemoryError:
    print("MemoryError")
except RuntimeError as error:
    print("RuntimeError", error)  # of a thread that cannot be started
except ActVARError as error:
    print(type(error).__name__, error)
"""


def test_too_little_memory_is_said_to_be_that(bundle):
    """`std::bad_alloc` of ONNX Runtime became a bundle that was to be exported again."""
    for megabytes in (4, 30):
        command = [sys.executable, "-c", LIMITED, str(bundle), str(megabytes << 20)]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "Export the bundle again" not in said.stdout, said.stdout
