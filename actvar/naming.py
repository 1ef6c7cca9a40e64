"""Whatever names a model: one that ships with the package, a bundle, a checkpoint's file, or a repository of the Hub.

Looks at names and paths: what is here is not opened, and what is on the Hub is fetched. No PyTorch and no engine.
"""

from dataclasses import dataclass
from pathlib import Path

from actvar.bundle.manifest import MANIFEST_FILE
from actvar.checkpoint.files import SHIPPED_MODELS, Checkpoint, shipped_checkpoint
from actvar.checkpoint.folder import CHECKPOINT_FILE, models_among, several, vqvae_beside
from actvar.errors import UsageError
from actvar.hub import Repository, fetch, repository_of
from actvar.scales import ScaleSchedule


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
    schedule: ScaleSchedule | None = None,
    znorm: bool = False,
    revision: str | None = None,
    local_files_only: bool = False,
    with_plans: bool = False,
    shown: bool = True,
) -> NamedModel:
    """The model that a name stands for.

    Args:
        name: of a model of the package; of a folder, which is a bundle or holds a checkpoint; of a checkpoint's
            file; of a Hub repository, "user/repo", or of a file in one, "user/repo/var_d20.pth". The first of these
            that there is, in this order: what is here wins over the Hub.
        vqvae: the VQVAE's file, for a checkpoint that holds none.
        schedule: the token maps, for a checkpoint that does not tell them.
        znorm: of an official VQVAE that was trained with `using_znorm`, which its file does not tell.
        revision: a branch, a tag or a commit of a Hub repository.
        local_files_only: of a Hub repository take what was fetched before, and ask nobody.
        with_plans: of a bundle on the Hub fetch its plans, too.
        shown: whether bars may be shown while files are fetched.

    Raises:
        UsageError: nothing bears this name, or a VQVAE, token maps or a revision are named beside what has none.
        ActVARError: this installation lacks a model of the package, or a repository cannot be fetched.
    """
    beside = _Beside(vqvae, schedule, znorm)
    here = _named_here(name, beside)
    if here is None and (repository := repository_of(name)):
        return _fetched(repository, beside, revision, local_files_only, with_plans, shown)
    if here is None:
        raise UsageError(
            f"No model is called {name}. Name {', '.join(SHIPPED_MODELS)}, a bundle's folder, a checkpoint's file, "
            "or a Hub repository (user/repo)."
        )
    if revision:
        raise UsageError(f"A revision is of a Hub repository, and {name} is none. Leave it out.")
    return here


@dataclass(frozen=True)
class _Beside:
    """What may be named beside a checkpoint that does not hold it."""

    vqvae: Path | None
    schedule: ScaleSchedule | None
    znorm: bool

    def checkpoint(self, path: Path, vqvae: Path | None = None) -> Checkpoint:
        """The file, with what was named, or else the VQVAE that was found."""
        return Checkpoint(path, self.vqvae or vqvae, self.schedule, znorm=self.znorm)

    def refuse(self, model: str, has_vqvae: str) -> None:
        """Refuse all of it beside a model that has its own.

        Raises:
            UsageError: there is something.
        """
        if self.vqvae:
            raise UsageError(f"--vqvae belongs to a checkpoint without one, and {model} {has_vqvae}. Leave it out.")
        if self.schedule:
            raise UsageError(
                f"--patch-nums belongs to a checkpoint that does not tell its token maps, and {model} has its own. "
                "Leave it out."
            )
        if self.znorm:
            raise UsageError(f"--znorm belongs to an official VQVAE, and {model} {has_vqvae}. Leave it out.")


def _named_here(name: str, beside: _Beside) -> NamedModel | None:
    path = Path(name)
    if name in SHIPPED_MODELS:
        beside.refuse(name, "has its own")
        return NamedModel(name, checkpoint=shipped_checkpoint(name))
    if (path / MANIFEST_FILE).exists():
        beside.refuse(f"{name} is a bundle, and", "holds one")
        return NamedModel(path.absolute().name, bundle=path)
    if path.is_dir():
        return NamedModel(path.absolute().name, checkpoint=_in_folder(path, beside))
    return NamedModel(path.stem, checkpoint=beside.checkpoint(path)) if path.exists() else None


def _in_folder(folder: Path, beside: _Beside) -> Checkpoint:
    """The checkpoint in a folder: one of ours, or one with its VQVAE beside it, or with the one that was named.

    Raises:
        UsageError: there is none, or several, or its VQVAE is missing.
    """
    try:
        files = sorted(entry.name for entry in folder.iterdir() if not entry.is_dir())
    except OSError as error:
        raise UsageError(f"{folder} cannot be read: {error.strerror or error}. Name another model.") from None
    found = models_among(files)
    if len(found) > 1:
        raise several(str(folder), found)
    if not found:
        raise UsageError(
            f"{folder} is a folder and no bundle: it holds no {MANIFEST_FILE}, and no {CHECKPOINT_FILE} either, nor "
            "one .pth file. Name another model."
        )
    [model] = found
    vqvae = None if beside.vqvae else vqvae_beside(str(folder), model, files)
    if model != CHECKPOINT_FILE and not (vqvae or beside.vqvae):
        raise UsageError(
            f"{folder} is a folder and no bundle: it holds {model}, and no VQVAE (vae*.pth) beside it. "
            f"Give one with --vqvae, or name {folder / model}, if that holds one."
        )
    return beside.checkpoint(folder / model, folder / vqvae if vqvae else None)


def _fetched(
    repository: Repository,
    beside: _Beside,
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
        own_vqvae=beside.vqvae is not None,
        shown=shown,
    )
    if found.bundle:
        beside.refuse(f"{repository.name} is a bundle, and", "holds one")
        return NamedModel(repository.model_name, bundle=found.bundle)
    assert found.checkpoint
    return NamedModel(repository.model_name, checkpoint=beside.checkpoint(found.checkpoint, found.vqvae))
