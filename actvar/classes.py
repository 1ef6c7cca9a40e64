"""Classes as a person names them: a number, or a name where the model has names."""

from collections.abc import Sequence
from difflib import get_close_matches

from actvar.config import ModelConfig
from actvar.errors import UsageError

_SUGGESTIONS = 3


def choose_classes(model: ModelConfig, wanted: Sequence[str]) -> list[int]:
    """Class numbers of numbers and names, each once, in the order in which they were first asked for.

    Raises:
        UsageError: a number is out of range, or a name unknown.
    """
    return list(dict.fromkeys(_choose(model, text.strip()) for text in wanted))


def class_label(model: ModelConfig, class_id: int) -> str:
    """A class for people: "88 (brown-crescent)"."""
    return f"{class_id} ({model.class_names[class_id]})" if model.class_names else str(class_id)


def _choose(model: ModelConfig, text: str) -> int:
    last = model.num_classes - 1
    if text.isascii() and text.lstrip("+-").isdigit():
        if not text.isdigit() or len(text) > 9 or int(text) > last:
            raise UsageError(f"--class must lie in 0..{last} for this model, got {text}.")
        return int(text)
    if not model.class_names:
        raise UsageError(f"--class must be a number in 0..{last}, as this model's classes have no names; got {text!r}.")
    name = text.lower().replace(" ", "-").replace("_", "-")
    for each in (text, name):  # as it is given, for names that come from folders; then as ours are written
        if each in model.class_names:
            return model.class_names.index(each)
    close = get_close_matches(name, model.class_names, n=_SUGGESTIONS, cutoff=0.5)
    hint = f"Did you mean {', '.join(close)}?" if close else f"Names are {', '.join(model.class_names[:3])} and so on."
    raise UsageError(f"--class {text!r} is unknown: expected a number in 0..{last} or a name of the model's. {hint}")
