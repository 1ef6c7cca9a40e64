"""Classes as a person names them: a number, a name, or part of one; several at once as `all`, `0-9` or `1,2`.

`none` is no class: what guidance leads away from, drawn for its own sake. Its number is the one after the last class.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import lru_cache

from actvar.class_names import IMAGENET_CLASSES, imagenet_names, normal
from actvar.config import ModelConfig
from actvar.errors import UsageError, shown

ALL, NONE = "all", "none"
_SUGGESTIONS = 3
_SHOWN = 6  # of the classes that a part of a name could mean


def class_names(model: ModelConfig) -> tuple[tuple[str, ...], ...]:
    """All names of each class, the one to show first; nothing where the classes have no names.

    A model's own names win. A thousand classes without any are taken for ImageNet's, as official VAR's are.
    """
    return names_of(model.num_classes, model.class_names)


def names_of(num_classes: int, own: Sequence[str] = ()) -> tuple[tuple[str, ...], ...]:
    """The same of a model that has so many classes, and these names of its own."""
    if own:
        return tuple((name,) for name in own)
    return imagenet_names() if num_classes == IMAGENET_CLASSES else ()


def choose_classes(model: ModelConfig, wanted: Sequence[str]) -> list[int]:
    """Class numbers of what a person wrote, each once, in the order in which they were first asked for.

    Args:
        model: whose classes they are.
        wanted: numbers, names, parts of names that mean one class, `all`, ranges such as `0-9`, `none`, which `all`
            has not, and several of these with commas between.

    Raises:
        UsageError: a number is out of range, a name unknown, or a part of a name means several classes; or it is none
            for a guidance-free model, which never learned to do without.
    """
    return list(dict.fromkeys(number for text in wanted for number in _choose(model, text.strip())))


def class_label(model: ModelConfig, class_id: int) -> str:
    """A class for people: "88 (brown-crescent)", or "none"."""
    if class_id == model.num_classes:
        return NONE
    names = class_names(model)
    return f"{class_id} ({shown(names[class_id][0])})" if names else str(class_id)


def class_value(model: ModelConfig, class_id: int) -> int | str:
    """What names a class wherever one is asked for: its number, or "none"."""
    return NONE if class_id == model.num_classes else class_id


def _choose(model: ModelConfig, text: str) -> Iterator[int]:
    last = model.num_classes - 1
    if text == ALL:
        yield from range(model.num_classes)
    elif text == NONE:
        if not model.is_guided:
            raise UsageError(
                "--class none is for models that learned to draw without a class, and this guidance-free one did not. "
                "Name a class."
            )
        yield model.num_classes
    elif re.fullmatch(r"[+-]?[0-9]+", text):
        yield _number(text, last)
    elif found := re.fullmatch(r"([0-9]+)-([0-9]+)", text):
        first, end = (_number(number, last) for number in found.groups())
        if first > end:
            raise UsageError(f"--class {text} runs backwards. Write {end}-{first}.")
        yield from range(first, end + 1)
    elif "," in text and normal(text) not in map(normal, model.class_names):
        for part in text.split(","):
            yield from _choose(model, part.strip())
    else:
        yield _named(model, text)


def _number(text: str, last: int) -> int:
    if not text.isdigit() or len(text) > 9 or int(text) > last:
        raise UsageError(f"--class must lie in 0..{last} for this model, got {text}.")
    return int(text)


def _named(model: ModelConfig, text: str) -> int:
    """The class of a name, of the first sort of likeness that any has: the same, the same words, or how they begin.

    Raises:
        UsageError: no class is called so, or several are.
    """
    if text in model.class_names:  # as it is given: names that come from folders may differ by case alone
        return model.class_names.index(text)
    names, last, wanted = class_names(model), model.num_classes - 1, normal(text)
    if not names:
        raise UsageError(f"--class must be a number in 0..{last}, as this model's classes have no names; got {text!r}.")
    normals = _normal_forms(names)
    likenesses: tuple[Callable[[Sequence[str]], bool], ...] = (
        lambda of_class: wanted == of_class[0],
        lambda of_class: wanted in of_class,
        lambda of_class: any(f"-{wanted}-" in f"-{name}-" for name in of_class),
        lambda of_class: any(f"-{wanted}" in f"-{name}" for name in of_class),
    )
    for is_like in likenesses if wanted else ():
        found = [number for number, of_class in enumerate(normals) if is_like(of_class)]
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(class_label(model, number) for number in found[:_SHOWN])
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise UsageError(f"--class {text!r} could be {listed}{more}. Name one of them, or give its number.")
    raise UsageError(
        f"--class {text!r} is unknown: expected a number in 0..{last} or a name of the model's. "
        f"{_hint(wanted, names, normals)}"
    )


@lru_cache(maxsize=4)
def _normal_forms(names: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(map(normal, of_class)) for of_class in names)


def _hint(wanted: str, names: Sequence[Sequence[str]], normals: Sequence[Sequence[str]]) -> str:
    """The nearest names, each class's own first one, or how names look."""
    firsts = {name: shown(of_class[0]) for of_class, forms in zip(names, normals, strict=True) for name in forms}
    close = [firsts[name] for name in get_close_matches(wanted, firsts, n=_SUGGESTIONS, cutoff=0.5)]
    if close:
        return f"Did you mean {', '.join(dict.fromkeys(close))}?"
    first = ", ".join(shown(of_class[0]) for of_class in names[:3])
    return f"Names are {first} and so on: see `actvar-trt classes --model MODEL`."
