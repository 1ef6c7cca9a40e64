"""`actvar-trt generate`: classes in, PNG files out."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from actvar.classes import choose_classes, class_label
from actvar.cli.output import destination, make_folder, scales_strip
from actvar.cli.source_choice import (
    BackendOption,
    BundleOption,
    CfgOption,
    CheckpointOption,
    DeviceOption,
    ModelOption,
    PrecisionOption,
    SourceChoice,
    ThreadsOption,
    TopKOption,
    TopPOption,
    VqvaeOption,
    chosen_sampling,
    refuse_large_seed,
)
from actvar.config import ModelConfig
from actvar.console import progress_bar, say, tell
from actvar.runtime.image import sheet, write_png
from actvar.runtime.pictures import Order, Picture

EXAMPLES = """Examples:

actvar-trt generate --class 88

actvar-trt generate --class brown-crescent --class red-heart --count 8 --grid --out sheet.png

actvar-trt generate --class 88 --show-scales

actvar-trt generate --class 207 --checkpoint var_d16.pth --vqvae vae_ch160v4096z32.pth

actvar-trt generate --class 207 --bundle bundles/d20-fp16 --backend tensorrt --batch-size 8 --count 8"""


def generate(
    classes: Annotated[
        list[str],
        typer.Option("--class", metavar="NUMBER|NAME", show_default=False, help="What to draw; may be given often."),
    ],
    count: Annotated[int, typer.Option(min=1, help="Pictures of each class.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same pictures.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the pictures, or a .png file.")] = Path("."),
    grid: Annotated[bool, typer.Option("--grid", help="Put all pictures on one sheet.")] = False,
    show_scales: Annotated[
        bool, typer.Option("--show-scales", help="Also write a strip of the partial pictures, one for each scale.")
    ] = False,
    cfg: CfgOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    model: ModelOption = "actvar-mini",
    checkpoint: CheckpointOption = None,
    vqvae: VqvaeOption = None,
    bundle: BundleOption = None,
    backend: BackendOption = "onnxruntime",
    device: DeviceOption = None,
    precision: PrecisionOption = "fp32",
    batch_size: Annotated[
        int,
        typer.Option(
            min=1,
            help="Pictures that are drawn at a time, and then written; more take more memory, and no picture changes.",
        ),
    ] = 1,
    threads: ThreadsOption = 0,
) -> None:
    """Draw pictures of classes, and say where they are. Each is written as soon as it is drawn.

    The first use of a model exports it into a cache; later uses take it from there.
    """
    refuse_large_seed(seed)
    choice = SourceChoice(model, checkpoint, vqvae, bundle, backend, device, precision, batch_size, threads)
    where = destination(out, 1 if grid else count * len(set(classes)))

    def accept(config: ModelConfig) -> None:
        choose_classes(config, classes)
        chosen_sampling(config.sampling, cfg, top_k, top_p)

    source = choice.open(accept)
    class_ids = choose_classes(source.model, classes)
    sampling = chosen_sampling(source.model.sampling, cfg, top_k, top_p)
    orders = (Order(class_id, number) for class_id in class_ids for number in range(count))
    make_folder(where)
    with _counted(len(class_ids) * count, grid) as counted:
        pictures = counted(source.draw(orders, sampling, seed, show_scales))
        if grid:
            _write_sheet(pictures, source.model, class_ids, count, show_scales, where.grid(seed), seed)
        else:
            for picture in pictures:
                _write(picture, source.model, where.picture(source.model, picture.order, seed), seed)


@contextmanager
def _counted(total: int, for_a_sheet: bool) -> Iterator[Callable[[Iterator[Picture]], Iterator[Picture]]]:
    """Gives what counts pictures on their way, with a bar where there are several.

    A picture counts when the next one is asked for: it is on the disk by then. However the block ends, it is told how
    many of several that was.
    """
    done, started = 0, time.perf_counter()
    try:
        with progress_bar("Drawing", announced=False, pieces=total) as progress:

            def counted(pictures: Iterator[Picture]) -> Iterator[Picture]:
                nonlocal done
                if total > 1:
                    progress(0)
                for picture in pictures:
                    yield picture
                    done += 1
                    if total > 1:
                        progress(done)

            yield counted
    finally:
        seconds = time.perf_counter() - started
        if done == total:
            say(f"{done} picture{'s' * (done > 1)} in {seconds:.1f} s, {done / seconds:.3f} pictures per second.")
        elif total > 1:
            how = "drawn, and no sheet of them," if for_a_sheet else "written"
            say(f"{done} of {total} pictures {how} in {seconds:.1f} s.")


def _write(picture: Picture, model: ModelConfig, path: Path, seed: int) -> None:
    """Write a picture, and the strip of its scales if it has one: before it, so that no picture is without its own."""
    if picture.partials:
        count = len(picture.partials)
        write_png(sheet(picture.partials, count, count), scales_strip(path))
    write_png(picture.pixels_HW3, path)
    label = class_label(model, picture.order.class_id)
    tell(f"{path}: class {label}, picture {picture.order.number} of seed {seed}")
    if picture.partials:
        tell(f"{scales_strip(path)}: its {count} scales")


def _write_sheet(
    pictures: Iterator[Picture],
    model: ModelConfig,
    class_ids: Sequence[int],
    count: int,
    show_scales: bool,
    path: Path,
    seed: int,
) -> None:
    """Write all pictures as one: a row for each class, or for each picture's scales."""
    scales = len(model.schedule) if show_scales else 1
    total = len(class_ids) * count
    columns = scales if show_scales else count if len(class_ids) > 1 else None
    panels = (panel for picture in pictures for panel in picture.partials or (picture.pixels_HW3,))
    write_png(sheet(panels, total * scales, columns), path)
    labels = ", ".join(class_label(model, class_id) for class_id in class_ids)
    tell(f"{path}: {total} pictures of class {labels}, seed {seed}")
