"""Pictures from Python: a bundle is opened, and asked for pictures of classes.

    from actvar.runtime.api import Pipeline

    with Pipeline.from_bundle("my-bundle") as pipe:
        images = pipe(class_labels=["brown-crescent", 88], guidance_scale=1.5, seed=7).images
        for picture in pipe.stream(class_labels=range(100), batch_size=4):
            picture.image.save(f"{picture.class_id}-{picture.number}.png")

Needs numpy, Pillow and one engine's library: no PyTorch, no ONNX. `actvar.Pipeline` does all that this one does, and
opens checkpoints and Hub repositories besides. The words are those of diffusers' class-conditional pipelines.

Picture n of a class and a seed is the one that `actvar-trt generate --class CLASS --count COUNT --seed SEED` numbers n:
the same bytes, alone and in any batch.

Letters in shapes: N pictures, H height and W width of a picture.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import numpy as np
from PIL import Image

from actvar.arguments import chosen_sampling, chosen_seed, held_labels, numbered_classes, one_of, whole_number
from actvar.classes import class_label
from actvar.config import ModelConfig
from actvar.console import wanted_bar
from actvar.errors import ArgumentError, UsageError
from actvar.runtime.backends.protocol import Device
from actvar.runtime.pictures import OnScaleEnd, Order, Picture, PictureSource, ScaleEnd
from actvar.runtime.pipeline import GraphSource
from actvar.runtime.sources import Backend, open_bundle

ClassLabels: TypeAlias = "int | str | Iterable[int | str]"
OutputType: TypeAlias = Literal["pil", "np"]
"""PIL's pictures, or numpy's as diffusers has them: float32 [H, W, 3] in [0, 1]; times 255, rounded, they are bytes."""

P = TypeVar("P", bound="Pipeline")


@dataclass(frozen=True, eq=False)
class DrawnPicture:
    """One picture of a stream.

    Args:
        image: of the output type that was asked for.
        class_id, label: its class, and the class for people, such as "88 (brown-crescent)"; for "none" the number after
            the last class.
        number, seed: with the class they decide the picture.
    """

    image: Any
    class_id: int
    label: str
    number: int
    seed: int


@dataclass(frozen=True, eq=False)
class PipelineOutput:
    """What a call returns: `images`, a list of PIL's or one array [N, H, W, 3], and what each of them is, in order."""

    images: Any
    class_ids: tuple[int, ...]
    labels: tuple[str, ...]
    numbers: tuple[int, ...]
    seed: int


@dataclass(frozen=True, eq=False)
class PartialPictures(PipelineOutput):
    """A batch as it is after scale `scale` of `scales`, numbered from 1, while the next is still to come."""

    scale: int
    scales: int


Callback: TypeAlias = Callable[[int, PartialPictures], object]
"""`callback(scale, partial)`."""


class Pipeline:
    """Draws pictures of classes.

    Several threads may use one pipeline: they take turns, a batch at a time, and each gets its own pictures. A stream
    that nobody takes pictures from keeps nobody waiting.

    Args:
        source: what draws.
        name: of the model, for people.
        bundle: the folder that it draws from, if it does.
        progress_bar: whether a call shows a bar where there is a terminal. May be set at any time.
    """

    def __init__(
        self, source: PictureSource, *, name: str = "", bundle: Path | None = None, progress_bar: bool = True
    ) -> None:
        self._source: PictureSource | None = source
        self.name, self.bundle, self.progress_bar = name, bundle, progress_bar

    @classmethod
    def from_bundle(
        cls: type[P],
        folder: str | PathLike[str],
        *,
        backend: Backend = "onnxruntime",
        device: Device | None = None,
        batch_size: int = 1,
        threads: int = 0,
        progress_bar: bool = True,
    ) -> P:
        """Open a bundle.

        Args:
            folder: that `actvar-trt export` or `save_pretrained` wrote.
            backend: "onnxruntime" draws with the graphs, "tensorrt" with the plans that were built of them.
            device: "cpu", or "cuda" for the first NVIDIA GPU; the backend's own if left out.
            batch_size: pictures that are drawn at a time; more take more memory, and no picture changes.
            threads: of the CPU; 0 is one for each core.
            progress_bar: see `Pipeline`.

        Raises:
            ArgumentError: an argument is out of range, or two exclude each other; it is a ValueError.
            BundleError: the bundle is incomplete or altered, or has no plans for this GPU.
            ActVARError: the engine's library is not installed, or the device cannot be used.
        """
        path = Path(folder).absolute()
        source = open_bundle(path, backend, device, batch_size, threads)
        return cls(source, name=path.name, bundle=path, progress_bar=progress_bar)

    @property
    def source(self) -> PictureSource:
        """What draws.

        Raises:
            UsageError: the pipeline is closed.
        """
        if self._source is None:
            raise UsageError("This pipeline is closed. Open the model again.")
        return self._source

    @property
    def model(self) -> ModelConfig:
        """What is drawn with: its classes and their names, its scales, its sampling."""
        return self.source.model

    def close(self) -> None:
        """Let go of the model: its memory is free as soon as no picture is being drawn."""
        self._source = None

    def __enter__(self: P) -> P:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(
        self,
        class_labels: ClassLabels,
        guidance_scale: float | None = None,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        num_images_per_label: int = 1,
        seed: int | None = None,
        generator: Any = None,
        output_type: OutputType = "pil",
        callback_on_scale_end: Callback | None = None,
    ) -> PipelineOutput:
        """Draw pictures of classes, and return them all.

        Args:
            class_labels: one class or several, each by its number or its name; "none" is no class. A class that comes
                again goes on with its next numbers, so that no picture comes twice.
            guidance_scale: strength of classifier-free guidance at the last scale, 0 or more; the model's own if left
                out. 0 is none: it is VAR's t, which is diffusers' scale less 1. Not for a guidance-free model.
            top_k: draw from so many best codes, 1 to 900; the model's own if left out.
            top_p: draw from the codes with this mass, above 0 and up to 1; the model's own if left out.
            num_images_per_label: pictures of each label, numbered from 0.
            seed: the same seed gives the same pictures. 0 if left out, so that every call can be repeated.
            generator: numpy's or PyTorch's, in place of a seed: one is drawn from it, so that two calls differ.
            output_type: see `OutputType`.
            callback_on_scale_end: is called as `callback(scale, partial)` with `PartialPictures` while a batch is
                drawn, when each of its scales has ended. Other threads wait for it; what it raises ends the call.

        Raises:
            ArgumentError: an argument does not fit the model, and nothing was drawn; it is a ValueError.
            UsageError: the pipeline is closed.
            ActVARError: the engine failed.
        """
        labels = list(held_labels(self.model, class_labels))
        pictures = self.stream(
            labels,
            guidance_scale,
            top_k=top_k,
            top_p=top_p,
            num_images_per_label=num_images_per_label,
            seed=seed,
            generator=generator,
            output_type=output_type,
            callback_on_scale_end=callback_on_scale_end,
        )
        return self._all(pictures, labels, num_images_per_label, output_type)

    def _all(
        self, pictures: Iterator[DrawnPicture], labels: Iterable[int | str], count: int, output_type: OutputType
    ) -> PipelineOutput:
        """The pictures of a stream together, with a bar as they come."""
        total = sum(1 for _ in numbered_classes(self.model, labels, count))
        drawn: list[DrawnPicture] = []
        with wanted_bar("Drawing", self.progress_bar and total > 1, announced=False, pieces=total) as show:
            show(0)
            for picture in pictures:
                drawn.append(picture)
                show(len(drawn))
        return PipelineOutput(
            _together([picture.image for picture in drawn], output_type),
            tuple(picture.class_id for picture in drawn),
            tuple(picture.label for picture in drawn),
            tuple(picture.number for picture in drawn),
            drawn[0].seed,
        )

    def stream(
        self,
        class_labels: ClassLabels,
        guidance_scale: float | None = None,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        num_images_per_label: int = 1,
        seed: int | None = None,
        generator: Any = None,
        output_type: OutputType = "pil",
        callback_on_scale_end: Callback | None = None,
        batch_size: int | None = None,
        given: tuple[np.ndarray, ...] = (),
    ) -> Iterator[DrawnPicture]:
        """Draw the same pictures one by one, each as soon as it is there; nothing is kept of those that were taken.

        There may be any number of labels: an iterator's are looked at when their turn comes, all others before
        anything is drawn. There is no progress bar.

        Args:
            batch_size: pictures that are drawn at a time; the pipeline's own if left out.
            given: codes that take the places of drawn ones, of every scale [L] int64, and -1 for a token that is drawn.

        The other arguments, and the errors, are those of a call.
        """
        source, model, labels = self.source, self.model, held_labels(self.model, class_labels)
        one_of("output_type", output_type, get_args(OutputType))
        sampling = chosen_sampling(model, guidance_scale, top_k, top_p)
        count = whole_number("num_images_per_label", num_images_per_label, 1)
        if callback_on_scale_end is not None and not callable(callback_on_scale_end):
            raise ArgumentError(f"callback_on_scale_end must be callable, got {callback_on_scale_end!r}.")
        if batch_size is not None:
            size = whole_number("batch_size", batch_size, 1)
            source = replace(source, batch_size=size) if isinstance(source, GraphSource) else source
        drawn_with = chosen_seed(seed, generator)
        told = _teller(model, drawn_with, output_type, callback_on_scale_end) if callback_on_scale_end else None
        orders = (Order(*numbered, given=given) for numbered in numbered_classes(model, labels, count))
        pictures = source.draw(orders, sampling, drawn_with, on_scale_end=told)
        return self._given(pictures, model, drawn_with, output_type)

    def _given(
        self, pictures: Iterator[Picture], model: ModelConfig, seed: int, output_type: OutputType
    ) -> Iterator[DrawnPicture]:
        """The pictures of a source as they were asked for, until there are no more or the pipeline is closed."""
        while self.source and (picture := next(pictures, None)):
            order, label = picture.order, class_label(model, picture.order.class_id)
            yield DrawnPicture(_image(picture.pixels_HW3, output_type), order.class_id, label, order.number, seed)


def _teller(model: ModelConfig, seed: int, output_type: OutputType, callback: Callback) -> OnScaleEnd:
    """What gives a person's callback the pictures as they were asked for."""

    def tell(end: ScaleEnd) -> None:
        images = _together([_image(pixels_HW3, output_type) for pixels_HW3 in end.pixels_BHW3], output_type)
        ids, numbers = (tuple(getattr(order, name) for order in end.orders) for name in ("class_id", "number"))
        labels = tuple(class_label(model, class_id) for class_id in ids)
        callback(end.scale, PartialPictures(images, ids, labels, numbers, seed, end.scale, end.scales))

    return tell


def _image(pixels_HW3: np.ndarray, output_type: OutputType) -> Any:
    return pixels_HW3.astype(np.float32) / 255 if output_type == "np" else Image.fromarray(pixels_HW3)


def _together(images: list[Any], output_type: OutputType) -> Any:
    return np.stack(images) if output_type == "np" else images
