"""`actvar-trt generate`: classes in, PNG files out."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from actvar.config import ModelConfig, Sampling
from actvar.errors import BundleError, UsageError
from actvar.plans import PlanOptions
from actvar.runtime.backends.protocol import Device
from actvar.runtime.bundle_cache import Checkpoint, cached_bundle, discard
from actvar.runtime.class_choice import choose_classes, class_label
from actvar.runtime.commands.console import progress_bar, say, tell
from actvar.runtime.commands.model_choice import refuse_int8_elsewhere
from actvar.runtime.extras import needs
from actvar.runtime.image import sheet, write_png
from actvar.runtime.output import destination, make_folder, scales_strip
from actvar.runtime.pipeline import Order, Picture, PictureSource
from actvar.runtime.sources import open_eager, open_engines, open_graphs, shipped_checkpoint

EXAMPLES = """Examples:

actvar-trt generate --class 88

actvar-trt generate --class brown-crescent --class red-heart --count 8 --grid --out sheet.png

actvar-trt generate --class 88 --show-scales

actvar-trt generate --class 207 --checkpoint var_d16.pth --vqvae vae_ch160v4096z32.pth

actvar-trt generate --class 207 --bundle bundles/d20-fp16 --backend tensorrt --batch-size 8 --count 8"""

Model: TypeAlias = Literal["actvar-mini", "var-mini"]
Backend: TypeAlias = Literal["onnxruntime", "tensorrt", "torch"]
Precision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8"]


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
    cfg: Annotated[
        float | None, typer.Option(show_default="the model's", help="Strength of guidance, 0 or more.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(show_default="the model's", help="Draw from this many best codes, 1 to 900.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(show_default="the model's", help="Draw from the codes with this mass, up to 1.")
    ] = None,
    model: Annotated[Model, typer.Option(help="One of the package's own models.")] = "actvar-mini",
    checkpoint: Annotated[
        Path | None, typer.Option(help="Another model: a .safetensors, or an official .pth file.")
    ] = None,
    vqvae: Annotated[Path | None, typer.Option(help="The VQVAE that belongs to an official checkpoint.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="An exported model: a folder of `actvar-trt export`.")] = None,
    backend: Annotated[
        Backend,
        typer.Option(
            help="onnxruntime draws with the graphs, tensorrt with engines built from them, "
            "torch with the model they are made from."
        ),
    ] = "onnxruntime",
    device: Annotated[
        Device | None,
        typer.Option(show_default="cpu; cuda for tensorrt", help="Where the graphs run; cuda is the first NVIDIA GPU."),
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Of the graphs, where they are not exported yet.")] = "fp32",
    batch_size: Annotated[
        int,
        typer.Option(
            min=1,
            help="Pictures that are drawn at a time, and then written; more take more memory, and no picture changes.",
        ),
    ] = 1,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="CPU threads; 0 is one for each core.")] = 0,
) -> None:
    """Draw pictures of classes, and say where they are. Each is written as soon as it is drawn.

    The first use of a model exports it into a cache; later uses take it from there.
    """
    _refuse_contradictions(seed, bundle, checkpoint, vqvae, backend, device)
    refuse_int8_elsewhere("--precision int8", precision, backend, device)
    where = destination(out, 1 if grid else count * len(set(classes)))

    def sampling_of(config: ModelConfig) -> Sampling:
        return _sampling(config.sampling, cfg, top_k, top_p)

    def accept(config: ModelConfig) -> None:
        choose_classes(config, classes)
        sampling_of(config)

    def open_bundle(folder: Path) -> PictureSource:
        if backend == "tensorrt":
            return open_engines(folder, batch_size) if bundle else _open_built(folder, batch_size)
        return open_graphs(folder, batch_size, threads, device or "cpu")

    if bundle:
        source = open_bundle(bundle)
    else:
        chosen = Checkpoint(checkpoint, vqvae) if checkpoint else shipped_checkpoint(model)
        if backend == "torch":
            source = open_eager(chosen, threads)
        else:
            source = _open_cached(chosen, precision, accept, open_bundle)
    class_ids, sampling = choose_classes(source.model, classes), sampling_of(source.model)
    orders = (Order(class_id, number) for class_id in class_ids for number in range(count))
    make_folder(where)
    with _counted(len(class_ids) * count, grid) as counted:
        pictures = counted(source.draw(orders, sampling, seed, show_scales))
        if grid:
            _write_sheet(pictures, source.model, class_ids, count, show_scales, where.grid(seed), seed)
        else:
            for picture in pictures:
                _write(picture, source.model, where.picture(source.model, picture.order, seed), seed)


def _refuse_contradictions(
    seed: int, bundle: Path | None, checkpoint: Path | None, vqvae: Path | None, backend: str, device: str | None
) -> None:
    """What can be told from the options alone.

    Raises:
        UsageError: a number is too large, or two options exclude each other.
    """
    if bundle and checkpoint:
        raise UsageError("--bundle and --checkpoint both name a model. Give one of them.")
    if bundle and backend == "torch":
        raise UsageError("--backend torch draws with a checkpoint, and --bundle names graphs. Give --checkpoint.")
    if backend == "tensorrt" and device == "cpu":
        raise UsageError("--backend tensorrt needs a GPU, and --device cpu names none. Leave --device out.")
    if backend == "torch" and device == "cuda":
        raise UsageError("--backend torch draws on the CPU, as the reference. Leave --device out.")
    if seed >= 2**64:
        raise UsageError(f"--seed must lie in 0..2^64-1, got {seed}.")
    if vqvae and not checkpoint:
        raise UsageError("--vqvae belongs to a --checkpoint, and there is none. Give both, or leave it out.")


def _sampling(default: Sampling, cfg: float | None, top_k: int | None, top_p: float | None) -> Sampling:
    """The model's own sampling where nothing else is asked for.

    Raises:
        UsageError: a number is outside its range.
    """
    try:
        return Sampling(
            default.cfg if cfg is None else cfg,
            default.top_k if top_k is None else top_k,
            default.top_p if top_p is None else top_p,
        )
    except ValueError as error:
        raise UsageError(f"--{str(error).replace('_', '-')}.") from None  # its first word is the option's


def _open_cached(
    checkpoint: Checkpoint,
    precision: str,
    accept: Callable[[ModelConfig], None],
    open_bundle: Callable[[Path], PictureSource],
) -> PictureSource:
    """The graphs of a checkpoint, exported into the cache if they are not there, or not whole."""
    with progress_bar(f"Exporting {checkpoint.path.name}, once") as progress:
        folder = cached_bundle(checkpoint, precision, accept, progress)
        try:
            return open_bundle(folder)
        except BundleError as error:
            say(f"{error} It is only a copy: making it anew.")
            discard(folder)
            return open_bundle(cached_bundle(checkpoint, precision, accept, progress))


def _open_built(folder: Path, batch_size: int) -> PictureSource:
    """The engines of a bundle in the cache, built now if they are not there, or not for this GPU and batch."""
    try:
        return open_engines(folder, batch_size)
    except BundleError as error:
        say(f"{error} Doing it now, once.")
    with needs("export", "to build engines for the first time"):
        from actvar.export.engine_builder import build_plans
        from actvar.export.engine_library import choose_target
    options = PlanOptions()
    low, best, high = options.batch
    try:
        options = replace(options, batch=(low, max(best, min(batch_size, high)), max(high, batch_size)))
    except ValueError as error:
        raise UsageError(f"--batch-size {batch_size}: {error}.") from None
    with progress_bar("Building engines") as progress:
        build_plans(folder, choose_target(None, None), options, progress=progress)
    return open_engines(folder, batch_size)


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
