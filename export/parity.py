"""Do the graphs of a bundle compute what the model computes? Asked twice: of each graph alone, and of whole pictures.

Each graph alone is given the inputs that the eager model's own run would give it, so that one token that flips early
does not hide what the graphs after it do. Whole pictures are drawn by both sides from the same seed.

polygraphy's Comparator runs both sides and compares them: see `parity_runners` and `parity_compare`.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.comparator import Comparator
from polygraphy.logger import G_LOGGER

from actvar.bundle import graph_names
from actvar.export.parity_compare import CHAIN_TOLERANCES, GRAPH_TOLERANCES, Difference, OutputCompareFunc
from actvar.export.parity_report import CHAIN, ParityReport
from actvar.export.parity_runners import Arrays, EagerGraphRunner, EngineGraphRunner, PictureRunner
from actvar.export.recording import record
from actvar.models.actvar import ActVAR
from actvar.runtime.backends.torch_eager import EagerSource
from actvar.runtime.pipeline import Pipeline


def check_parity(
    model: ActVAR,
    graphs: Pipeline,
    pictures: int,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> ParityReport:
    """Compare a bundle with the model that it was made from.

    Args:
        model: in evaluation mode, on the CPU.
        graphs: its bundle, opened; its batch size is that of the comparison. Logits are compared where the bundle was
            exported with `debug_logits`.
        pictures: how many, spread over the classes; picture i is number i of the seed.
        seed: of the pictures.
        progress: told the share that is done, 0 to 1.

    Raises:
        BundleError: a graph cannot be run.
        ActVARError: a picture's values are not numbers.
    """
    found: dict[tuple[str, str], Difference] = {}
    numbers = range(pictures)
    batches = [numbers[start : start + graphs.batch_size] for start in numbers[:: graphs.batch_size]]
    compared_per_batch = len(graph_names(model.config)) + 1
    for place, batch in enumerate(batches):
        class_ids = [number * model.config.num_classes // pictures for number in batch]
        for done, (graph, differences) in enumerate(_compare_batch(model, graphs, class_ids, batch, seed), 1):
            for output, difference in differences.items():
                key = graph, output
                found[key] = found[key] + difference if key in found else difference
            if progress:
                progress((place + done / compared_per_batch) / len(batches))
    manifest = graphs.engine.manifest
    return ParityReport(manifest.source, manifest.precision, pictures, graphs.batch_size, seed, found)


def _compare_batch(
    model: ActVAR, graphs: Pipeline, class_ids: list[int], numbers: range, seed: int
) -> Iterator[tuple[str, Mapping[str, Difference]]]:
    """Each graph alone, in the order in which they run, and at last whole pictures."""
    manifest, sampling = graphs.engine.manifest, model.config.sampling
    recordings = record(model, class_ids, sampling, seed, numbers)
    compare = OutputCompareFunc(GRAPH_TOLERANCES[manifest.precision], numbers)
    for name in graph_names(model.config):
        eager, engine = EagerGraphRunner(model, name, manifest.graphs[name]), EngineGraphRunner(graphs.engine, name)
        yield name, _compare(eager, engine, recordings.pop(name).inputs, compare)
    compare = OutputCompareFunc(CHAIN_TOLERANCES[manifest.precision], numbers)
    oracle = PictureRunner("PyTorch", EagerSource(model), sampling, seed)
    drawn = PictureRunner("graphs", graphs, sampling, seed)
    yield CHAIN, _compare(oracle, drawn, {"class_ids": np.array(class_ids), "numbers": np.array(numbers)}, compare)


def _compare(
    reference: BaseRunner, result: BaseRunner, inputs: Arrays, compare: OutputCompareFunc
) -> Mapping[str, Difference]:
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):  # it would print what the report says
        # Streaming: each runner's inputs are converted from the recording's types, not from the other runner's.
        runs = Comparator.run([reference, result], data_loader=[inputs], streaming=True)
        (accuracy,) = Comparator.compare_accuracy(runs, compare_func=compare)
    ((differences,),) = accuracy.values()  # of the one pair of runners the one batch
    return differences
