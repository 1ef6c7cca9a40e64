"""What the shell is offered for an option's value while it is being typed: quick, and without PyTorch."""

import typer

from actvar.checkpoint.files import SHIPPED_MODELS
from actvar.class_names import imagenet_names, normal
from actvar.classes import NONE, class_names
from actvar.errors import ActVARError
from actvar.naming import named_model
from actvar.told_model import told_config


def complete_model(incomplete: str) -> list[str]:
    """The shipped models; files and folders the shell finds itself."""
    return [name for name in SHIPPED_MODELS if name.startswith(incomplete)]


def complete_class(context: typer.Context, incomplete: str) -> list[str]:
    """The names of the classes of the model on the same line; of `a,b` the last one is completed."""
    before, comma, begun = incomplete.rpartition(",")
    try:
        name = context.params.get("model") or SHIPPED_MODELS[0]
        config = told_config(named_model(name, local_files_only=True, shown=False))
    except ActVARError:
        return []  # at a prompt there is nobody to tell
    names = class_names(config) if config else imagenet_names()  # what tells nothing is official
    firsts = (*(normal(of_class[0]) for of_class in names), NONE)
    return [f"{before}{comma}{name}" for name in firsts if name.startswith(normal(begun))]
