"""`actvar-trt serve`: pictures behind a port, in the form of OpenAI's API."""

import ipaddress
import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from actvar.cli.model_choice import Facts, chosen_model
from actvar.cli.options import (
    DecoderOption,
    DeviceOption,
    Fp16Option,
    GuidanceUntilOption,
    ModelOption,
    PatchNumsOption,
    PrecisionOption,
    SmoothOption,
    ThreadsOption,
    VqvaeOption,
)
from actvar.cli.source import AnyBackendOption, Engine
from actvar.console import say
from actvar.errors import ActVARError, UsageError, needs, shown

EXAMPLES = """Examples:

actvar-trt serve

actvar-trt serve --model bundles/d16 --port 9000 --max-batch 16

actvar-trt serve --host 0.0.0.0 --api-key-file key.txt"""

KEY_VARIABLE = "ACTVAR_API_KEY"
_SHORTEST_KEY = 8

_serving = partial(typer.Option, rich_help_panel="Serving")


def serve(
    *,
    host: Annotated[str, _serving(help="Address to listen on. Any but this machine's own needs a key.")] = "127.0.0.1",
    port: Annotated[int, _serving(min=0, max=65535, help="Port; 0 takes one that is free.")] = 8000,
    api_key_file: Annotated[
        Path | None,
        _serving(metavar="FILE", help=f"The key that every request must name; or set {KEY_VARIABLE}."),
    ] = None,
    max_batch: Annotated[int, _serving(min=1, max=1024, help="Pictures that are drawn at a time.")] = 8,
    max_wait_ms: Annotated[
        float, _serving(min=0, max=60_000, help="Milliseconds that a picture waits for others to share its batch.")
    ] = 5.0,
    max_queue: Annotated[
        int, _serving(min=1, max=100_000, help="Pictures that may wait; who asks for more is answered with 429.")
    ] = 64,
    no_page: Annotated[bool, _serving(help="Leave out the page at /, which needs Gradio.")] = False,
    grace: Annotated[
        float, _serving(min=1, max=3600, help="Seconds in which SIGTERM lets what was taken on be finished.")
    ] = 30.0,
    model: ModelOption = "actvar-mini",
    vqvae: VqvaeOption = None,
    patch_nums: PatchNumsOption = None,
    facts: Facts,
    guidance_until: GuidanceUntilOption = None,
    backend: AnyBackendOption = "onnxruntime",
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    fp16: Fp16Option = False,
    decoder: DecoderOption = None,
    smooth: SmoothOption = False,
    threads: ThreadsOption = 0,
) -> None:
    """Serve pictures over HTTP, in the form of OpenAI's API, with a page at / and the API's own at /docs.

    Pictures of several requests share a batch, and none changes by a byte: they are those of `generate`.
    """
    key = _key(host, api_key_file)
    with needs("serve", "to serve pictures"):
        from actvar.serve.app import create_app
        from actvar.serve.server import listen, run
    listening = listen(host, port)
    engine = Engine(backend, device, precision, fp16, decoder, max_batch, threads, smooth)
    named = chosen_model(model, vqvae, patch_nums, facts, backend == "tensorrt")
    with engine.open(named, lambda config: None, guidance_until) as pipeline:
        app = create_app(
            pipeline,
            max_batch=max_batch,
            max_wait_ms=max_wait_ms,
            max_queue=max_queue,
            api_key=key,
            grace_seconds=grace,
            with_page=not no_page,
        )
        address, number = listening.getsockname()[:2]
        where = f"[{address}]" if ":" in address else address
        say(f"{pipeline.name} at http://{where}:{number} - stop it with Ctrl-C or SIGTERM.")
        run(app, listening, grace)
    say("Stopped; all that was taken on is done.")


def _key(host: str, file: Path | None) -> str | None:
    """The key that requests must name.

    Raises:
        UsageError: there is none, and others than this machine's own could come in; or it is too short.
        ActVARError: its file cannot be read.
    """
    if file:
        try:
            key = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ActVARError(f"--api-key-file {file} cannot be read: {shown(error)}. Name another.") from None
    else:
        key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key and not file and _is_loopback(host):
        return None
    if not key and not file:
        raise UsageError(
            f"--host {host} lets others in, so a key is needed. Give --api-key-file FILE, or set {KEY_VARIABLE}."
        )
    if len(key) < _SHORTEST_KEY or not key.isascii() or not key.isprintable():
        raise UsageError(f"A key must have {_SHORTEST_KEY} printable ASCII signs or more. Write a longer one.")
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
