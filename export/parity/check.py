"""Do the graphs of a bundle compute what the model computes? Asked twice: of each graph alone, and of whole pictures.

Each graph alone is given the inputs that the eager model's own run would give it, so that one token that flips early
does not hide what the graphs after it do; and it is compared with the eager model at its own choices, so that one that
flips within it does not either. Whole pictures are drawn by both sides from the same seed.

polygraphy's Comparator runs both sides and compares them: see `parity_runners` and `parity_compare`.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.comparator import Comparator, RunResults
from polygraphy.logger import G_LOGGER

from actvar.bundle.contract import ENCODER, scale_name
from actvar.bundle.manifest import Manifest
from actvar.export.graphs.scale import HIDDEN
from actvar.export.parity.compare import (
    ENCODER_TOLERANCES,
    Difference,
    OutputCompareFunc,
    Tolerance,
    chain_tolerances,
    graph_tolerances,
)
from actvar.export.parity.recording import record
from actvar.export.parity.report import CHAIN, ParityReport
from actvar.export.parity.runners import (
    CHOICES,
    GRAPHS,
    PYTORCH,
    Arrays,
    EagerGraphRunner,
    EngineGraphRunner,
    PictureRunner,
)
from actvar.models.actvar import ActVAR
from actvar.runtime.backends.torch_source import eager_source
from actvar.runtime.pipeline import GraphSource


def check_parity(
    model: ActVAR,
    graphs: GraphSource,
    pictures: int,
    seed: int = 0,
    engine: str = "onnxruntime on cpu",
    progress: Callable[[float], None] | None = None,
) -> ParityReport:
    """Compare a bundle with the model that it was made from.

    Args:
        model: in evaluation mode, on the CPU.
        graphs: its bundle, opened; its batch size is that of the comparison. Where it was exported with `debug`, the
            inside of the graphs is compared, too, and all numbers at equal choices.
        pictures: how many, spread over the classes; picture i is number i of the seed. There are as many more as the
            last batch lacks, where the bundle's plans want more pictures than are left for it.
        seed: of the pictures.
        engine: what runs the graphs, in words, for the report.
        progress: told the share that is done, 0 to 1.

    Raises:
        BundleError: a graph cannot be run.
        ActVARError: a picture's values are not numbers.
    """
    found: dict[tuple[str, str], Difference] = {}
    left = pictures % graphs.batch_size
    pictures += max(0, graphs.engine.fewest - left) if left else 0
    numbers = range(pictures)
    batches = [numbers[start : start + graphs.batch_size] for start in numbers[:: graphs.batch_size]]
    compared_per_batch = len(graphs.engine.manifest.graphs) + 1
    for place, batch in enumerate(batches):
        class_ids = [number * model.config.num_classes // pictures for number in batch]
        for done, (graph, differences) in enumerate(compare_batch(model, graphs, class_ids, batch, seed), 1):
            for output, difference in differences.items():
                key = graph, output
                found[key] = found[key] + difference if key in found else difference
            if progress:
                progress((place + done / compared_per_batch) / len(batches))
    manifest = graphs.engine.manifest
    return ParityReport(manifest.source, engine, manifest.precision, pictures, graphs.batch_size, seed, found)


def compare_batch(
    model: ActVAR, graphs: GraphSource, class_ids: list[int], numbers: range, seed: int
) -> Iterator[tuple[str, Mapping[str, Difference]]]:
    """One batch: each graph alone, in the order in which they run, and at last whole pictures.

    Args:
        model, graphs, seed: see `check_parity`.
        class_ids: of the pictures.
        numbers: of the pictures.

    Returns: name by name (or `CHAIN`), the differences of the outputs.
    """
    manifest, sampling = graphs.engine.manifest, model.config.sampling
    for name, recording in record(model, class_ids, sampling, seed, numbers):
        if name not in manifest.graphs:
            continue
        compare = OutputCompareFunc(_tolerances(manifest, name), numbers)
        drawn = _run(EngineGraphRunner(graphs.engine, name), recording.inputs)
        (outputs,) = drawn[GRAPHS]
        choices = {choice: outputs[choice] for choice in CHOICES if choice in outputs}
        eager = EagerGraphRunner(model, name, manifest.graphs[name], choices)
        yield name, _compared(_run(eager, recording.inputs), drawn, compare)
    compare = OutputCompareFunc(chain_tolerances(manifest.precision, manifest.model.smooth), numbers)
    orders = {"class_ids": np.array(class_ids), "numbers": np.array(numbers)}
    expected = _run(PictureRunner(PYTORCH, eager_source(model), sampling, seed), orders)
    yield CHAIN, _compared(expected, _run(PictureRunner(GRAPHS, graphs, sampling, seed), orders), compare)


def _tolerances(manifest: Manifest, graph: str) -> Mapping[str, Tolerance]:
    """Of a graph's outputs. Half precision chooses otherwise: numbers are held to anything at equal choices alone."""
    if graph == ENCODER:
        return ENCODER_TOLERANCES[manifest.precision]
    spec, model = manifest.graphs[graph], manifest.model
    tolerances = graph_tolerances(manifest.precision, model.smooth)
    active = any(graph == scale_name(si) and model.is_active(si) for si in range(len(model.schedule)))
    if manifest.precision == "fp32" or not active or any(tensor.name == HIDDEN for tensor in spec.outputs):
        return tolerances
    return {**tolerances, "new_kv": Tolerance()}


def _run(runner: BaseRunner, inputs: Arrays) -> RunResults:
    """One batch through one runner."""
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):  # it would print what the report says
        return Comparator.run([runner], data_loader=[inputs])


def _compared(reference: RunResults, result: RunResults, compare: OutputCompareFunc) -> Mapping[str, Difference]:
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        (accuracy,) = Comparator.compare_accuracy(RunResults([*reference, *result]), compare_func=compare)
    ((differences,),) = accuracy.values()  # of the one pair of runners the one batch
    return differences
