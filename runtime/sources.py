"""What draws pictures, opened: a bundle behind ONNX Runtime, or a checkpoint behind PyTorch.

The one place that knows which backend there is; each is imported when it is asked for.
"""

from importlib.resources import files
from pathlib import Path

from actvar.bundle import read_manifest, require_weights, verify
from actvar.errors import ActVARError
from actvar.runtime.bundle_cache import Checkpoint
from actvar.runtime.extras import needs
from actvar.runtime.pipeline import PictureSource, Pipeline

SHIPPED_MODELS = ("actvar-mini", "var-mini")


def shipped_checkpoint(name: str) -> Checkpoint:
    """The checkpoint of a model that is in the package; both share the VQVAE, which is in ActVAR-mini's file.

    Raises:
        ActVARError: this installation lacks it.
    """
    assets = Path(str(files("actvar"))) / "assets"
    with_vqvae = assets / "actvar_mini.safetensors"
    path = assets / f"{name.replace('-', '_')}.safetensors"
    for file in (path, with_vqvae):
        if not file.is_file():
            raise ActVARError(f"{file} is missing, so there is no {name} here. Install again, or name a --checkpoint.")
    return Checkpoint(path, None if path == with_vqvae else with_vqvae)


def open_graphs(bundle: Path, batch_size: int, threads: int) -> Pipeline:
    """The graphs of a bundle, every file of it checked first.

    Raises:
        BundleError: the bundle is incomplete, altered, or reaches out of its folder.
        ActVARError: ONNX Runtime is not installed.
    """
    with needs("cpu", "to run graphs"):
        from actvar.runtime.backends import ort
    manifest = read_manifest(bundle)
    require_weights(bundle, manifest)
    verify(bundle, manifest)
    return Pipeline(ort.load(bundle, manifest, threads), batch_size)


def open_eager(checkpoint: Checkpoint, threads: int) -> PictureSource:
    """The eager model of a checkpoint.

    Args:
        checkpoint: the model.
        threads: for PyTorch in this whole process; 0 leaves its own choice.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ActVARError: PyTorch is not installed.
    """
    with needs("train", "for --backend torch"):
        from actvar.runtime.backends import torch_eager
    return torch_eager.load(checkpoint.path, checkpoint.vqvae, threads)
