"""What a program in Python asks for, held to a model before anything is drawn: classes, numbers, sampling, seeds.

Says in Python's words what is wrong; the command line has its own. numpy, and no PyTorch: who gives one of its
generators has loaded it.
"""

import operator
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sized
from typing import Any

import numpy as np

from actvar.bundle.contract import CPU_PRECISIONS
from actvar.classes import choose_classes
from actvar.config import ModelConfig, Sampling
from actvar.errors import ArgumentError, UsageError

MAX_SEED = 2**64 - 1


def held_labels(model: ModelConfig, class_labels: Any) -> Iterable[Any]:
    """Labels of classes, also of one that stands alone; there may be any number of an iterator's, which is not touched.

    Raises:
        ArgumentError: there is none, or one of them is no class of the model's.
    """
    alone = isinstance(class_labels, (str, int)) or getattr(class_labels, "shape", None) == ()
    labels = [class_labels] if alone else class_labels
    if not isinstance(labels, Iterable):
        raise _no_label(labels)
    if isinstance(labels, Sized):
        if not len(labels):
            raise ArgumentError("class_labels is empty. Name at least one class.")
        for label in labels:
            _classes(model, label)
    return labels


def numbered_classes(model: ModelConfig, labels: Iterable[Any], count: int) -> Iterator[tuple[int, int]]:
    """Class and number of `count` pictures of each label: numbers from 0, and none twice for a class that comes again.

    Raises:
        ArgumentError: a label is no class of the model's.
    """
    numbered: Counter[int] = Counter()
    for label in labels:
        for class_id in _classes(model, label):
            numbered[class_id] += count
            for number in range(numbered[class_id] - count, numbered[class_id]):
                yield class_id, number


def _classes(model: ModelConfig, label: Any) -> list[int]:
    """The classes of one label, a number or a text: one class, but for the few texts that mean more."""
    if isinstance(label, str):
        try:
            return choose_classes(model, [label])
        except UsageError as error:
            raise ArgumentError(str(error).replace("--class", "class_labels")) from None  # it speaks of the option
    try:
        number = operator.index(label)
    except TypeError:
        raise _no_label(label) from None
    if isinstance(label, bool):
        raise _no_label(label)
    if not 0 <= number < model.num_classes:
        raise ArgumentError(f"class_labels must lie in 0..{model.num_classes - 1} for this model, got {number}.")
    return [number]


def chosen_sampling(model: ModelConfig, guidance_scale: Any, top_k: Any, top_p: Any) -> Sampling:
    """The model's own sampling where nothing else is asked for.

    Raises:
        ArgumentError: a number is outside its range, or none, or a strength is given for a guidance-free model.
    """
    own = model.sampling
    if guidance_scale is not None:
        require_guided(model, "guidance_scale")
    cfg = own.cfg if guidance_scale is None else _real("guidance_scale", guidance_scale)
    best = own.top_k if top_k is None else whole_number("top_k", top_k, 1)
    mass = own.top_p if top_p is None else _real("top_p", top_p)
    try:
        return Sampling(cfg, best, mass)
    except ValueError as error:
        raise ArgumentError(f"{str(error).replace('cfg', 'guidance_scale', 1)}.") from None


def require_guided(model: ModelConfig, name: str) -> None:
    """Refuse a strength of guidance, given under a name, for a model that has no use for one.

    Raises:
        ArgumentError: the model is guidance-free.
    """
    if not model.is_guided:
        raise ArgumentError(
            f"{name} is a strength of guidance, and this model is guidance-free: what guidance does it has learned. "
            "Leave it out."
        )


def chosen_seed(seed: Any, generator: Any) -> int:
    """The seed that is given, 0 if none is, or one that is drawn from a generator of numpy's or PyTorch's.

    Raises:
        ArgumentError: both are given, or something else.
    """
    if generator is None:
        return 0 if seed is None else whole_number("seed", seed, 0, MAX_SEED)
    if seed is not None:
        raise ArgumentError("seed and generator both decide the pictures. Give one of them.")
    if isinstance(generator, np.random.Generator):
        return int(generator.integers(2**63))
    torch = sys.modules.get("torch")
    if torch and isinstance(generator, torch.Generator):
        return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    raise ArgumentError(f"generator must be numpy's or PyTorch's Generator, got a {type(generator).__name__}.")


def whole_number(name: str, value: Any, low: int, high: int | None = None) -> int:
    """A whole number within its range, of Python's, numpy's or PyTorch's.

    Raises:
        ArgumentError: it is none, or outside.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise ArgumentError(f"{name} must be a whole number, got {value!r}.") from None
    if isinstance(value, bool) or number < low or (high is not None and number > high):
        wanted = f"{low} or more" if high is None else f"in {low}..{high}"
        raise ArgumentError(f"{name} must be a whole number, {wanted}, got {value!r}.")
    return number


def require_place(backend: str, device: str | None, precision: str | None = None) -> None:
    """Hold to each other what draws, where, and in which precision; the command line has the same words.

    Args:
        backend: "onnxruntime", "tensorrt" or "torch".
        device: "cpu" or "cuda"; None leaves it to the backend.
        precision: of graphs; None leaves it to them.

    Raises:
        ArgumentError: they exclude each other.
    """
    if backend == "tensorrt" and device == "cpu":
        raise ArgumentError("TensorRT needs a GPU, and the device is cpu. Leave the device out.")
    if backend == "torch" and device != "cuda" and precision not in (None, "fp32"):
        raise ArgumentError(
            f"PyTorch draws in fp32 on the CPU, as the reference, and the precision is {precision}. "
            "Leave it out, or take the device cuda."
        )
    if precision in CPU_PRECISIONS and (backend != "onnxruntime" or device == "cuda"):
        raise ArgumentError(f"The precision {precision} is for ONNX Runtime on a CPU. Take fp16 on a GPU.")
    if precision == "bf16" and backend == "onnxruntime":
        raise ArgumentError("ONNX Runtime does not draw in bf16. Take fp16 or fp32, or TensorRT as the backend.")


def one_of(name: str, value: Any, choices: Iterable[str]) -> None:
    """Hold an argument to its choices.

    Raises:
        ArgumentError: it is none of them.
    """
    known = tuple(choices)
    if value not in known:
        raise ArgumentError(f"{name} must be one of {', '.join(known)}, got {value!r}.")


def _real(name: str, value: Any) -> float:
    try:
        if not isinstance(value, (str, bool)):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise ArgumentError(f"{name} must be a number, got {value!r}.")


def _no_label(found: object) -> ArgumentError:
    return ArgumentError(f"class_labels must be numbers and names of classes, got {found!r}.")
