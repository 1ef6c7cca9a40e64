"""`actvar-trt classes`: the numbers and names that `--class` takes."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from actvar.classes import class_names, names_of
from actvar.cli.model_choice import Facts, chosen_model
from actvar.cli.options import JsonOption, ModelOption
from actvar.errors import CheckpointError, counted, shown
from actvar.naming import NamedModel
from actvar.reports import check_json_option, deliver
from actvar.told_model import told_config

EXAMPLES = """Examples:

actvar-trt classes

actvar-trt classes --model var_d16.pth

actvar-trt classes --model bundles/d16 --json -"""

FORMAT, VERSION = "actvar-classes", 1


def classes(*, model: ModelOption = "actvar-mini", facts: Facts, json_file: JsonOption = None) -> None:
    """List the classes that a model draws: their numbers and names.

    --class takes either, and none for a picture of no class. Those of official VAR are ImageNet's, and can be named by
    any of WordNet's names and ids.
    """
    check_json_option(json_file)
    named = chosen_model(model, None, None, facts)
    count, names = _classes(named)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model": named.name,
        "classes": [{"number": number, "names": list(names[number]) if names else []} for number in range(count)],
    }
    nameless = f"{counted(count, 'class', 'classes')} without names: their numbers are 0 to {count - 1}."
    deliver([_table(names) if names else nameless], json.dumps(content, indent=1, ensure_ascii=False) + "\n", json_file)


def _classes(named: NamedModel) -> tuple[int, Sequence[Sequence[str]]]:
    """How many there are, and the names of each; a file that does not tell them is opened.

    Raises:
        ActVARError: it is no checkpoint, or one of PyTorch's own, which is not installed.
    """
    if config := told_config(named):
        return config.num_classes, class_names(config)
    from actvar.checkpoint.networks import networks
    from actvar.checkpoint.tensor_file import open_tensor_file

    assert named.checkpoint
    path: Path = named.checkpoint.path
    weights, _ = networks(open_tensor_file(path))
    if weights is None:
        raise CheckpointError(f"{path} holds no VAR. Name a checkpoint that does.")
    count = weights.shape("class_emb.weight", 2)[0] - 1  # the last is none: what guidance leads away from
    return count, names_of(count)


def _table(names: Sequence[Sequence[str]]) -> Table:
    """Number and first name; of ImageNet's also the last, which is WordNet's id."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right")
    for number, of_class in enumerate(names):
        table.add_row(str(number), escape(shown(of_class[0])), *map(escape, of_class[1:][-1:]))
    return table
