"""Whatever names a model: one that ships with the package, a bundle, a checkpoint's file, or a repository of the Hub.

Looks at names and paths: what is here is not opened, and what is on the Hub is fetched. No PyTorch and no engine.
"""

from dataclasses import dataclass
from pathlib import Path

from actvar.bundle.manifest import MANIFEST_FILE
from actvar.checkpoint.files import SHIPPED_MODELS, Checkpoint, shipped_checkpoint
from actvar.errors import UsageError
from actvar.hub import CHECKPOINT_FILE, Repository, fetch, repository_of


@dataclass(frozen=True)
class NamedModel:
    """A model by its name: a checkpoint that may have to be exported, or a bundle that can be drawn with.

    Exactly one of the two is there. `name` is what a person would call the model.
    """

    name: str
    checkpoint: Checkpoint | None = None
    bundle: Path | None = None


def named_model(
    name: str,
    vqvae: Path | None = None,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    with_plans: bool = False,
    shown: bool = True,
) -> NamedModel:
    """The model that a name stands for.

    Args:
        name: of a model of the package; of a folder, which is a bundle or holds a model.safetensors; of a checkpoint's
            file; of a Hub repository, "user/repo", or of a file in one, "user/repo/var_d20.pth". The first of these
            that there is, in this order: what is here wins over the Hub.
        vqvae: the VQVAE's file, for a checkpoint that holds none.
        revision: a branch, a tag or a commit of a Hub repository.
        local_files_only: of a Hub repository take what was fetched before, and ask nobody.
        with_plans: of a bundle on the Hub fetch its plans, too.
        shown: whether bars may be shown while files are fetched.

    Raises:
        UsageError: nothing bears this name, or a VQVAE or a revision is named beside what has none.
        ActVARError: this installation lacks a model of the package, or a repository cannot be fetched.
    """
    here = _named_here(name, vqvae)
    if here is None and (repository := repository_of(name)):
        return _fetched(repository, vqvae, revision, local_files_only, with_plans, shown)
    if here is None:
        raise UsageError(
            f"No model is called {name}. Name {', '.join(SHIPPED_MODELS)}, a bundle's folder, a checkpoint's file, "
            "or a Hub repository (user/repo)."
        )
    if revision:
        raise UsageError(f"A revision is of a Hub repository, and {name} is none. Leave it out.")
    return here


def _named_here(name: str, vqvae: Path | None) -> NamedModel | None:
    path = Path(name)
    if name in SHIPPED_MODELS:
        _refuse_vqvae(vqvae, f"{name} has its own")
        return NamedModel(name, checkpoint=shipped_checkpoint(name))
    if (path / MANIFEST_FILE).exists():
        _refuse_vqvae(vqvae, f"{name} is a bundle, and holds one")
        return NamedModel(path.absolute().name, bundle=path)
    if (path / CHECKPOINT_FILE).exists():
        return NamedModel(path.absolute().name, checkpoint=Checkpoint(path / CHECKPOINT_FILE, vqvae))
    if path.is_dir():
        raise UsageError(
            f"{name} is a folder and no bundle: it holds no {MANIFEST_FILE}, and no {CHECKPOINT_FILE} either. "
            "Name another model."
        )
    return NamedModel(path.stem, checkpoint=Checkpoint(path, vqvae)) if path.exists() else None


def _fetched(
    repository: Repository,
    vqvae: Path | None,
    revision: str | None,
    local_files_only: bool,
    with_plans: bool,
    shown: bool,
) -> NamedModel:
    found = fetch(
        repository,
        revision=revision,
        local_files_only=local_files_only,
        with_plans=with_plans,
        own_vqvae=vqvae is not None,
        shown=shown,
    )
    if found.bundle:
        _refuse_vqvae(vqvae, f"{repository.name} is a bundle, and holds one")
        return NamedModel(repository.model_name, bundle=found.bundle)
    assert found.checkpoint
    return NamedModel(repository.model_name, checkpoint=Checkpoint(found.checkpoint, vqvae or found.vqvae))


def _refuse_vqvae(vqvae: Path | None, why: str) -> None:
    if vqvae:
        raise UsageError(f"--vqvae belongs to a checkpoint without one, and {why}. Leave it out.")
