"""Whatever names a model: one that ships with the package, a bundle's folder, or a checkpoint's file.

Looks at names and paths, and opens nothing: no PyTorch and no engine.
"""

from dataclasses import dataclass
from pathlib import Path

from actvar.bundle.manifest import MANIFEST_FILE
from actvar.checkpoint.files import SHIPPED_MODELS, Checkpoint, shipped_checkpoint
from actvar.errors import UsageError


@dataclass(frozen=True)
class NamedModel:
    """A model by its name: a checkpoint that may have to be exported, or a bundle that can be drawn with.

    Exactly one of the two is there. `name` is what a person would call the model.
    """

    name: str
    checkpoint: Checkpoint | None = None
    bundle: Path | None = None


def named_model(name: str, vqvae: Path | None = None) -> NamedModel:
    """The model that a name stands for.

    Args:
        name: of a model of the package, a bundle's folder, or a checkpoint's file; in this order.
        vqvae: the VQVAE's file, for a checkpoint that holds none.

    Raises:
        UsageError: nothing bears this name, or a VQVAE is named beside what has one.
        ActVARError: this installation lacks a model of the package.
    """
    path = Path(name)
    if name in SHIPPED_MODELS:
        _refuse_vqvae(vqvae, f"{name} has its own")
        return NamedModel(name, checkpoint=shipped_checkpoint(name))
    if path.is_dir():
        if not (path / MANIFEST_FILE).exists():
            raise UsageError(f"{name} is a folder and no bundle: it holds no {MANIFEST_FILE}. Name another model.")
        _refuse_vqvae(vqvae, f"{name} is a bundle, and holds one")
        return NamedModel(path.absolute().name, bundle=path)
    if path.exists():
        return NamedModel(path.stem, checkpoint=Checkpoint(path, vqvae))
    raise UsageError(
        f"No model is called {name}. Name {' or '.join(SHIPPED_MODELS)}, a bundle's folder, or a checkpoint's file."
    )


def _refuse_vqvae(vqvae: Path | None, why: str) -> None:
    if vqvae:
        raise UsageError(f"--vqvae belongs to a checkpoint without one, and {why}. Leave it out.")
