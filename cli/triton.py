"""`actvar-trt triton`: a bundle as a model repository of Triton Inference Server."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from actvar.arguments import require_place
from actvar.cli.options import DeviceOption, GraphBackend, ThreadsOption, batch_size_option, integers, model_option
from actvar.errors import UsageError
from actvar.serve.triton_repository import NAME, Repository, write_repository

EXAMPLES = """Examples:

actvar-trt triton models --bundle bundles/mini

actvar-trt triton models --bundle bundles/d20-fp16 --backend tensorrt --gpus 0,1 --batch-size 8"""

_serving = partial(typer.Option, rich_help_panel="Serving")


def triton(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The repository's folder, which is to be written.")],
    *,
    bundle: Annotated[
        Path, model_option(metavar="FOLDER", help="The bundle that is drawn with, where the server sees it, too.")
    ],
    backend: GraphBackend = "onnxruntime",
    device: DeviceOption = None,
    threads: ThreadsOption = 0,
    batch_size: Annotated[int, batch_size_option("Pictures that are drawn at a time, at most.", max=1024)] = 8,
    max_wait_ms: Annotated[
        float, _serving(min=0, max=60_000, help="Milliseconds that a picture waits for others to share its batch.")
    ] = 5.0,
    instances: Annotated[int, _serving(min=1, max=64, help="Of the model; on GPUs of each.")] = 1,
    gpus: Annotated[
        str | None, _serving(metavar="0,1", show_default="0", help="Numbers of the GPUs that draw.")
    ] = None,
) -> None:
    """Write a model repository for Triton Inference Server: the Python backend, with dynamic batching.

    The pictures that it gives are those of `generate`, whatever Triton puts into one batch.
    """
    place = device or ("cuda" if backend == "tensorrt" else "cpu")
    require_place(backend, place)
    if gpus and place == "cpu":
        raise UsageError("--gpus is of a model that draws on GPUs. Add --device cuda or --backend tensorrt.")
    numbers = integers("--gpus", gpus) if gpus else (0,)
    write_repository(out, Repository(bundle, backend, place, threads, instances, numbers, batch_size, max_wait_ms))
    typer.echo(str(out / NAME / "config.pbtxt"))
