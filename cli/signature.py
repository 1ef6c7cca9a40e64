"""Commands as typer wants them: each option an argument of its own, those of a dataclass too.

typer reads a command's signature. Options that several commands share are the fields of one frozen dataclass, which a
command takes as one argument; here it gives way to its fields, and is made of what they were given.
"""

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from inspect import Parameter, signature
from typing import Annotated, Any, get_args, get_type_hints


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of its dataclasses in their places."""
    hints = get_type_hints(command, include_extras=True)
    of_command = signature(command).parameters.values()
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}

    def parameters() -> Iterator[Parameter]:
        for parameter in of_command:
            if group := groups.get(parameter.name):
                yield from _fields(group)
            else:
                yield _parameter(parameter.name, hints[parameter.name], parameter.default)

    @wraps(command)
    def run(**given: Any) -> None:
        made = {
            name: group(**{field.name: given.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**given, **made)

    run.__signature__ = signature(command).replace(parameters=list(parameters()))  # type: ignore[attr-defined]
    return run


def _fields(group: Any) -> Iterator[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        yield _parameter(field.name, hints[field.name], Parameter.empty if field.default is MISSING else field.default)


def _parameter(name: str, hint: Any, default: Any) -> Parameter:
    """One that typer reads. A switch is on or not there: it has no `--no-` form, and the help shows no type of it."""
    if get_args(hint)[:1] == (bool,):
        option = copy(get_args(hint)[1])
        option.metavar = ""
        if option.default is ...:  # typer's place for a name that is given
            option.param_decls = (f"--{name.replace('_', '-')}",)
        hint = Annotated[bool, option]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=hint)
