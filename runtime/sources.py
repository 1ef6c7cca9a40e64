"""What draws pictures, opened: a bundle behind ONNX Runtime or TensorRT, or a checkpoint behind PyTorch.

The one place that knows which backend there is; each is imported when it is asked for.
"""

from pathlib import Path
from typing import Literal, TypeAlias, get_args

from actvar.arguments import one_of, require_place, whole_number
from actvar.bundle.manifest import read_manifest, require_weights, verify_graphs, verify_weights
from actvar.checkpoint.files import Checkpoint
from actvar.errors import needs
from actvar.runtime.backends.protocol import Device, Scales
from actvar.runtime.pictures import PictureSource
from actvar.runtime.pipeline import GraphSource
from actvar.telemetry import switch_off

Backend: TypeAlias = Literal["onnxruntime", "tensorrt"]
"""What draws with a bundle."""

_MAX_THREADS = 1024


def require_engine(backend: str, device: str | None, batch_size: int, threads: int) -> None:
    """Hold what is said of an engine to what there is.

    Raises:
        ArgumentError: there is no such device, or not for this backend, or a number is out of range.
    """
    whole_number("batch_size", batch_size, 1)
    whole_number("threads", threads, 0, _MAX_THREADS)
    if device is not None:
        one_of("device", device, get_args(Device))
    require_place(backend, device)


def open_bundle(bundle: Path, backend: Backend, device: Device | None, batch_size: int, threads: int) -> GraphSource:
    """A bundle behind the backend that is chosen; the arguments are those of the two below.

    Raises:
        ArgumentError: there is no such backend for a bundle, or see `require_engine`.
    """
    one_of("the backend of a bundle", backend, get_args(Backend))
    require_engine(backend, device, batch_size, threads)
    if backend == "tensorrt":
        return open_engines(bundle, batch_size)
    return open_graphs(bundle, batch_size, threads, device or "cpu")


def open_graphs(
    bundle: Path, batch_size: int, threads: int, device: Device = "cpu", scales: Scales = "fastest"
) -> GraphSource:
    """The graphs of a bundle in ONNX Runtime, every file of it checked first.

    Args:
        bundle: its folder.
        batch_size: pictures at a time.
        threads: of the CPU; 0 is one for each core.
        device: where the graphs run.
        scales: what runs the scales on the CPU.

    Raises:
        BundleError: the bundle is incomplete, altered, reaches out of its folder, or is of types that the device lacks.
        ActVARError: ONNX Runtime is not installed, or cannot use the device.
    """
    switch_off()
    with needs("cpu" if device == "cpu" else "gpu", "to run graphs"):
        from actvar.runtime.backends import ort
    manifest = read_manifest(bundle)
    require_weights(bundle, manifest)
    verify_graphs(bundle, manifest)
    engine = ort.load(bundle, manifest, threads, device, scales)  # which goes on in the background
    verify_weights(bundle, manifest)
    return GraphSource(engine, batch_size)


def open_engines(bundle: Path, batch_size: int) -> GraphSource:
    """The engines of a bundle in TensorRT or TensorRT-RTX, on the first GPU.

    Args:
        bundle: its folder.
        batch_size: pictures at a time.

    Raises:
        BundleError: the bundle is incomplete or altered, or has no plans for this GPU, engine and batch.
        ActVARError: there is no GPU, or no engine is installed.
    """
    switch_off()
    with needs("gpu", "to run engines"):
        from actvar.runtime.backends import trt
    manifest = read_manifest(bundle)
    require_weights(bundle, manifest)
    return GraphSource(trt.load(bundle, manifest, batch_size), batch_size)


def open_torch(
    checkpoint: Checkpoint,
    threads: int,
    device: Device = "cpu",
    precision: Literal["fp32", "fp16", "bf16"] = "fp32",
    batch_size: int = 1,
) -> PictureSource:
    """The model of a checkpoint in PyTorch.

    Args:
        checkpoint: the model.
        threads: for PyTorch in this whole process; 0 leaves its own choice.
        device: "cpu" for the model as it is, in fp32 and a picture at a time, which all else is compared with; "cuda"
            for CUDA graphs of it on the first GPU.
        precision, batch_size: on a GPU: what matrices are multiplied in; and the most pictures at a time.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ActVARError: PyTorch is not installed, or has no GPU or too little memory on it.
    """
    switch_off()
    with needs("train", "for --backend torch"):
        from actvar.runtime.backends import torch_source
    network = torch_source.load(checkpoint, threads)
    if device == "cpu":
        return torch_source.eager_source(network)
    return torch_source.recorded_source(network, precision, batch_size)
