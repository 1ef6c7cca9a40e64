"""ActVAR-TRT: ActVAR in PyTorch, exported scale by scale to ONNX, run by ONNX Runtime and TensorRT.

    from actvar import Pipeline

    pipe = Pipeline.from_pretrained("actvar-mini")
    images = pipe(class_labels=["brown-crescent", 88], guidance_scale=1.5, seed=7).images

Importing this package imports nothing heavy: PyTorch is loaded by `actvar.models` and what builds on it, and
`Pipeline` when it is asked for; neither it nor a bundle that it draws from loads PyTorch or ONNX.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actvar.export.front_door import Pipeline

__all__ = ["Pipeline", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The front door, which lies in a room above; see `actvar.export.front_door`."""
    if name == "Pipeline":
        from actvar.export.front_door import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
