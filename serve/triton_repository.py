"""A model repository for Triton Inference Server: a bundle behind its Python backend, with dynamic batching."""

import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from actvar.bundle.manifest import Manifest, read_manifest
from actvar.errors import ActVARError, UsageError
from actvar.files import content_of, remove_folder
from actvar.runtime.backends.protocol import Device
from actvar.runtime.sources import Backend

NAME = "actvar"
_MODEL = """import os
import sys

sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))  # which Triton's stub ignores

from actvar.serve.triton_model import TritonPythonModel  # noqa: E402, F401  the server looks for this name
"""
_INPUTS = {
    "class_id": ("TYPE_INT64", False),
    "seed": ("TYPE_UINT64", True),
    "number": ("TYPE_UINT64", True),
    "guidance_scale": ("TYPE_FP32", True),
    "top_k": ("TYPE_INT32", True),
    "top_p": ("TYPE_FP32", True),
}


@dataclass(frozen=True)
class Repository:
    """What a repository is to be.

    Attributes:
        bundle: its folder, as the server sees it.
        backend, device, threads: see `open_bundle`.
        instances: of the model; on GPUs of each.
        gpus: their numbers, where the device is cuda.
        batch_size: pictures that are drawn at a time, at most.
        wait_ms: milliseconds that a picture waits for others to share its batch.
    """

    bundle: Path
    backend: Backend
    device: Device
    threads: int
    instances: int
    gpus: tuple[int, ...]
    batch_size: int
    wait_ms: float


def write_repository(folder: Path, repository: Repository) -> None:
    """Write a repository, there whole or not at all.

    Raises:
        BundleError: the bundle cannot be used.
        UsageError: something is in the folder already.
        ActVARError: it cannot be written.
    """
    manifest = read_manifest(repository.bundle)
    folder = folder.absolute()
    temporary = folder.with_name(f".{folder.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        if folder.exists() and content_of(folder):
            raise UsageError(f"{folder} holds {content_of(folder)[0]} already. Name a new folder.")
        (temporary / NAME / "1").mkdir(parents=True)
        (temporary / "README.md").write_text(_readme(repository, manifest), encoding="utf-8")
        (temporary / NAME / "config.pbtxt").write_text(config(repository, manifest), encoding="utf-8")
        (temporary / NAME / "1" / "model.py").write_text(_MODEL, encoding="utf-8")
        temporary.rename(folder)
    except OSError as error:
        raise ActVARError(
            f"{error.filename or folder} cannot be written: {error.strerror}. Name another folder."
        ) from None
    finally:
        remove_folder(temporary)


def config(repository: Repository, manifest: Manifest) -> str:
    """The model's config.pbtxt."""
    side = manifest.model.picture_size
    parameters = {
        "bundle": str(repository.bundle.absolute()),
        "backend": repository.backend,
        "device": repository.device,
        "threads": str(repository.threads),
    }
    gpus = f" gpus: [ {', '.join(map(str, repository.gpus))} ]" if repository.device == "cuda" else ""
    kind = "KIND_GPU" if repository.device == "cuda" else "KIND_CPU"
    inputs = ",\n".join(
        f'  {{ name: "{name}" data_type: {dtype} dims: [ 1 ]{" optional: true" if optional else ""} }}'
        for name, (dtype, optional) in _INPUTS.items()
    )
    given = ",\n".join(
        f"  {{ key: {json.dumps(name)} value: {{ string_value: {json.dumps(value)} }} }}"
        for name, value in parameters.items()
    )
    warm = "\n".join(
        f'  inputs {{ key: "{name}" value {{ data_type: {_INPUTS[name][0]} dims: [ 1 ] zero_data: true }} }}'
        for name in ("class_id", "seed", "number")
    )
    return f"""name: "{NAME}"
backend: "python"
max_batch_size: {repository.batch_size}
input [
{inputs}
]
output [ {{ name: "picture" data_type: TYPE_UINT8 dims: [ {side}, {side}, 3 ] }} ]
dynamic_batching {{ max_queue_delay_microseconds: {round(repository.wait_ms * 1000)} }}
instance_group [ {{ count: {repository.instances} kind: {kind}{gpus} }} ]
model_warmup [ {{
  name: "one picture"
  batch_size: 1
{warm}
}} ]
parameters [
{given}
]
"""


def _readme(repository: Repository, manifest: Manifest) -> str:
    model = manifest.model
    none = f", or {model.num_classes} for none" if model.is_guided else ""
    extra = "gpu" if repository.device == "cuda" else "cpu"
    return f"""# ActVAR behind Triton Inference Server

    pip install 'actvar-trt[{extra}]'                     # for the Python of Triton's Python backend

Give this folder to `tritonserver` as its model repository. Where that Python is none that packages are installed
into, set PYTHONPATH to the packages of one of the same version.

`POST /v2/models/{NAME}/infer` takes, with the batch first, `class_id` [B, 1] (0 to {model.num_classes - 1}{none}),
and if wanted `seed`, `number`, `guidance_scale`, `top_k` and `top_p`, each [B, 1]; it gives `picture`
[B, {model.picture_size}, {model.picture_size}, 3] uint8. It is the picture that the command line numbers `number`
for that class and seed: what else is in its batch changes no byte on a CPU. What is left out is 0, or the model's own.

The bundle is read from where config.pbtxt says, under `parameters`: change `bundle` there if the server sees it
elsewhere. `instance_group`, `max_batch_size` and `dynamic_batching` are Triton's own words.
"""
