"""What `actvar-trt evaluate` says in the end: pictures shown to a judge, a table, and the same as JSON."""

import json
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import typer
from rich.table import Table

from actvar.config import ModelConfig
from actvar.console import counting, say
from actvar.errors import ActVARError, counted, needs
from actvar.evaluation.frechet import FeatureStatistics
from actvar.evaluation.picture_run import PictureRun
from actvar.evaluation.protocol import Protocol, released_fid
from actvar.evaluation.statistics_file import write_statistics
from actvar.provenance import typed
from actvar.reports import STDOUT, deliver, said_if_replaced

if TYPE_CHECKING:  # what loads PyTorch is loaded when it is needed
    from actvar.evaluation.judges import Judge
    from actvar.evaluation.reference import Reference
    from actvar.evaluation.scores import Scores


def protocol_of(run: PictureRun, judge: "Judge", reference: "Reference") -> Protocol:
    """The protocol of a score that is to be; what is unlike that of papers is said, before hours are spent on it.

    Raises:
        ActVARError: the reference's file cannot be read.
    """
    evaluator = f"torch-fidelity {version('torch-fidelity')}"
    protocol = Protocol(run.spec, reference.described, judge.described, evaluator)
    if protocol.departures:
        say(f"Not to be compared with FIDs of papers: {'; '.join(protocol.departures)}.")
    return protocol


def score_run(
    run: PictureRun,
    name: str,
    model: ModelConfig,
    protocol: Protocol,
    judge: "Judge",
    reference: "Reference",
    save_statistics: Path | None,
    json_file: Path | None,
) -> None:
    """Look at the pictures of a whole run and at the reference, and report.

    Args:
        run: the pictures.
        name: of the model.
        model: its size.
        protocol: of the score.
        judge: who looks.
        reference: what they are held against.
        save_statistics: where to write the reference's statistics.
        json_file: where to write the report.

    Raises:
        ActVARError: a picture cannot be read, or a file not be written.
    """
    with needs("evaluate", "to score pictures"):
        from actvar.evaluation.scores import fitted, score
    with counting("Looking", run.spec.count + reference.count) as advance:
        seen = judge.look(run, advance)
        other = judge.look(reference.pictures, advance) if reference.pictures else None
    has_classes = judge.knows_classes and run.spec.knows_classes
    asked_N = np.array([run.spec.class_of(number) for number in range(run.spec.count)]) if has_classes else None
    statistics = reference.statistics or (fitted(other.features_NF) if other else None)
    assert statistics is not None  # a reference is pictures, or statistics, or both
    scores = score(seen, statistics, other, asked_N)
    known = released_fid(model)
    report = {
        "command": typed(["actvar-trt", *sys.argv[1:]]),
        "model": name,
        "run": asdict(run.spec),
        "judge": judge.name,
        "reference": {
            "name": reference.name,
            "pictures": reference.count,
            "cropped": reference.cropped.identity if reference.cropped else None,
        },
        "torch_fidelity": version("torch-fidelity"),
        "protocol": protocol.record,
        "released": {"model": known[0], "fid": known[1]} if known else None,
        "scores": asdict(scores),
    }
    content = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    deliver([_table(scores, name, protocol, reference, known)], content, json_file)
    if save_statistics:
        with said_if_replaced(save_statistics):
            _save_statistics(save_statistics, statistics, judge)
        typer.echo(str(save_statistics), err=json_file == STDOUT)


def _table(
    scores: "Scores", name: str, protocol: Protocol, reference: "Reference", known: tuple[str, float] | None
) -> Table:
    extractor = protocol.extractor
    table = Table(counted(scores.pictures, "picture", form=","), name)
    table.columns[1].justify = "right"
    pictures = f", {counted(reference.count, 'picture', form=',')}" if reference.count else ""
    table.add_row("held against", reference.in_words + pictures)
    table.add_row("seen by", extractor.name)
    for row in protocol.rows:
        table.add_row(*row)
    table.add_row("FID" if extractor.is_inception else "Fréchet distance", f"{scores.frechet_distance:.3f}")
    if known and extractor.is_inception:
        table.add_row(f"FID of the released {known[0]}", f"{known[1]:.2f}")
    table.add_row("Inception score", f"{scores.inception_score:.2f} ± {scores.inception_score_spread:.2f}")
    for label, share in (("precision", scores.precision), ("recall", scores.recall)):
        table.add_row(label, "the reference has no pictures" if share is None else f"{share:.4f}")
    if scores.class_accuracy is not None:
        table.add_row("class accuracy", f"{scores.class_accuracy:.2%}")
    return table


def _save_statistics(path: Path, statistics: FeatureStatistics, judge: "Judge") -> None:
    try:
        write_statistics(path, statistics, judge.name)
    except OSError as error:
        raise ActVARError(
            f"{path} cannot be written: {error.strerror or error}. Name another with --save-statistics."
        ) from None
