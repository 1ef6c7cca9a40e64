"""B is all that a caller chooses: every graph of a bundle runs with any B, and no tool can choose sizes that differ.

Polygraphy is asked as people ask it: with no shapes given, so that it takes 1 for what is open.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from small_models import small_config, vivid_model

from actvar.bundle.contract import contract, graph_names
from actvar.bundle.manifest import Manifest
from actvar.config import Activation, ModelConfig
from actvar.export.onnx_export import export_bundle

ACTIVE = small_config(activation=Activation(4, (2, 4), (0.5, 0.6), (0.75, 0.25)))
CONFIGS = {
    "dense": small_config(),
    "active": ACTIVE,
    "guided at first": replace(ACTIVE, guided_scales=2),
    "guidance-free": replace(ACTIVE, guided_scales=0),
}
Bundles = Callable[[str], tuple[Path, Manifest]]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    made: dict[str, tuple[Path, Manifest]] = {}

    def get(name: str) -> tuple[Path, Manifest]:
        if name not in made:
            folder = tmp_path_factory.mktemp("free") / "bundle"
            made[name] = folder, export_bundle(vivid_model(CONFIGS[name]), folder, "fp32", "random weights")
        return made[name]

    return get


def open_dimensions(path: Path) -> set[str]:
    """The names of all dimensions that a caller chooses or learns."""
    graph = onnx.load(path, load_external_data=False).graph
    return {d.dim_param for value in (*graph.input, *graph.output) for d in value.type.tensor_type.shape.dim} - {""}


@pytest.mark.parametrize("name", CONFIGS)
def test_no_dimension_but_pictures_is_open(bundles: Bundles, name: str):
    """The contract's, and the graphs' own; every number in an output follows from those of the inputs."""
    folder, manifest = bundles(name)
    for graph, spec in manifest.graphs.items():
        assert open_dimensions(folder / f"{graph}.onnx") == {"B"}
        assert {size for tensor in (*spec.inputs, *spec.outputs) for size in tensor.shape if isinstance(size, str)} == {
            "B"
        }


@pytest.mark.parametrize("name", CONFIGS)
def test_polygraphy_runs_every_graph_with_no_shapes_given(bundles: Bundles, name: str):
    """`polygraphy run GRAPH --onnxrt` chose R = 1 beside B = 1 where R had a name of its own."""
    pytest.importorskip("polygraphy")
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator, DataLoader
    from polygraphy.logger import G_LOGGER

    folder, manifest = bundles(name)
    for graph, spec in manifest.graphs.items():
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            runner = OnnxrtRunner(SessionFromOnnx(str(folder / f"{graph}.onnx")))
            ((_, (outputs,)),) = Comparator.run([runner], data_loader=DataLoader(iterations=1))
        assert {output: array.shape for output, array in outputs.items()} == {t.name: t.sized(1) for t in spec.outputs}


@pytest.mark.parametrize("pictures", [1, 2, 5])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_graph_runs_with_pictures_alone_chosen(bundles: Bundles, name: str, pictures: int):
    """By ONNX Runtime: outputs are of the sizes that the manifest gives them."""
    folder, manifest = bundles(name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    for graph, spec in manifest.graphs.items():
        session = onnxruntime.InferenceSession(folder / f"{graph}.onnx", options, providers=["CPUExecutionProvider"])
        inputs = {tensor.name: _values(tensor.sized(pictures), tensor.dtype) for tensor in spec.inputs}
        names = [tensor.name for tensor in spec.outputs]
        for tensor, array in zip(spec.outputs, session.run(names, inputs), strict=True):
            assert array.shape == tensor.sized(pictures), (graph, tensor.name)


def _values(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.ones(shape, dtype) if dtype == "int64" else np.full(shape, 0.5, dtype)


@pytest.mark.parametrize(
    ("guided", "groups"), [(None, [2, 2, 2, 2]), (3, [2, 2, 2, 1]), (1, [2, 1, 1, 1]), (0, [1] * 4)]
)
def test_a_scale_gives_the_groups_of_rows_that_it_has(guided: int | None, groups: list[int]):
    """It reads what the first scale has: both, where any scale is guided. Without guidance there is no strength."""
    model: ModelConfig = replace(ACTIVE, guided_scales=guided)
    for si, graph in enumerate(graph_names(model)[1:-1]):
        inputs, outputs = contract(model, graph)
        assert inputs["modulation"][:3] == (model.depth, groups[0], "B")
        assert ("cfg" in inputs) == (groups[si] == 2)
        assert si == 0 or inputs["past_kv"][:4] == (model.depth, 2, groups[0], "B")
        assert si == 3 or outputs["new_kv"][:4] == (model.depth, 2, groups[si], "B")
