"""Models in repositories of the Hugging Face Hub: what a name means there, and which files a model needs.

Of a repository a bundle is taken, manifest.json and the files that it lists, and plans only where they are wanted; else
a checkpoint, by the rules of `actvar.checkpoint.folder`. Of several one must be named: user/repo/var_d20.pth.

huggingface_hub is an extra, and imported when a repository is named. It keeps a cache of its own, a folder of links
(see `actvar.files.opened`), and what is in it is no more trusted than any other file.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path, PurePosixPath

from actvar.bundle.manifest import MANIFEST_FILE, PLANS_FOLDER, read_manifest
from actvar.checkpoint.folder import (
    CHECKPOINT_FILE,
    SUFFIXES,
    is_model_file,
    listed,
    models_among,
    several,
    shards_of,
    vqvae_beside,
)
from actvar.errors import ActVARError, UsageError, needs
from actvar.files import opened

CONFIG_FILE = "config.json"
"""What the Hub knows a model by."""

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_SECONDS = 10.0  # that the Hub has to answer in


@dataclass(frozen=True)
class Repository:
    """A repository, "user/repo", and the file in it that was named, if one was."""

    name: str
    file: str = ""

    @property
    def model_name(self) -> str:
        """What a person would call the model."""
        return PurePosixPath(self.file).stem if self.file else self.name.partition("/")[2]


@dataclass(frozen=True)
class Fetched:
    """What is in the cache now: a bundle's folder, or a checkpoint's file and its VQVAE's, where that is another."""

    bundle: Path | None = None
    checkpoint: Path | None = None
    vqvae: Path | None = None


def repository_of(name: str) -> Repository | None:
    """The repository that a name has the form of; None for what can only be a path, or a word."""
    parts = name.split("/")
    if len(parts) < 2 or not all(_PART.fullmatch(part) for part in parts):
        return None
    if len(parts) == 2 and parts[1].endswith(SUFFIXES):
        return None
    return Repository("/".join(parts[:2]), "/".join(parts[2:]))


def fetch(
    repository: Repository,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    with_plans: bool = False,
    own_vqvae: bool = False,
    shown: bool = True,
) -> Fetched:
    """The files of a model, fetched where they are not in the Hub's cache yet.

    Args:
        repository: where the model is.
        revision: a branch, a tag or a commit; the main branch if left out.
        local_files_only: take what was fetched before, and ask nobody.
        with_plans: fetch a bundle's plans, too.
        own_vqvae: whoever asks has a VQVAE already.
        shown: whether bars may be shown while files are fetched.

    Raises:
        UsageError: the repository holds no model, or several, or not the file that was named.
        BundleError: what it holds is not what it should be.
        ActVARError: it cannot be fetched; or huggingface_hub is not installed.
    """
    with needs("hub", f"to fetch {repository.name} from the Hub (no file or folder here is called so)"):
        import huggingface_hub  # noqa: F401
    with _quiet(not shown):
        snapshot = _look_up(repository, revision, local_files_only)
        if not repository.file and MANIFEST_FILE in snapshot.files:
            return Fetched(bundle=_bundle(snapshot, with_plans))
        file = _named(snapshot, repository.file) if repository.file else _only_model(snapshot)
        vqvae = None if own_vqvae else vqvae_beside(snapshot.repository, file, snapshot.files)
        wanted = [file, *shards_of(file, snapshot.files), *([vqvae] if vqvae else [])]
        folder = snapshot.fetch(wanted, also=[CONFIG_FILE])
    for name in wanted:
        with opened(folder / name):  # a link that leads out of the cache is refused
            pass
    return Fetched(checkpoint=folder / file, vqvae=folder / vqvae if vqvae else None)


# ---- which files


def _bundle(snapshot: "_Snapshot", with_plans: bool) -> Path:
    """A bundle, whose manifest says what else it needs."""
    folder = snapshot.fetch([MANIFEST_FILE], also=[CONFIG_FILE])
    manifest = read_manifest(folder)
    plans = [file for file in snapshot.files if file.startswith(f"{PLANS_FOLDER}/")] if with_plans else []
    same_commit = replace(snapshot, revision=folder.name)  # whatever the branch is by now
    return same_commit.fetch([*(entry.file for entry in manifest.files), *plans])


def _named(snapshot: "_Snapshot", file: str) -> str:
    if not is_model_file(file):
        raise UsageError(f"{file} of {snapshot.repository} is no checkpoint. Name a .safetensors or a .pth file.")
    if file not in snapshot.files:
        raise snapshot.lacks(file)
    return file


def _only_model(snapshot: "_Snapshot") -> str:
    name, found = snapshot.repository, models_among(snapshot.files)
    if len(found) > 1:
        raise several(name, found)
    if found:
        return found[0]
    raise UsageError(
        f"{name} holds no model: no {MANIFEST_FILE} of a bundle, no {CHECKPOINT_FILE} and no .pth file, but "
        f"{listed(snapshot.files) or 'nothing'}. Name another repository, or a file of this one."
    )


# ---- from where


@dataclass(frozen=True)
class _Snapshot:
    """A repository at a revision: the files that it has, or those that are in the cache where nobody can be asked.

    `alone` says why nobody can; empty where the Hub has answered.
    """

    repository: str
    revision: str | None
    files: tuple[str, ...]
    alone: str

    def fetch(self, files: Iterable[str], also: Iterable[str] = ()) -> Path:
        """The folder of the revision's commit, with these files in it, and with those of `also` that there are."""
        from huggingface_hub import snapshot_download

        wanted = tuple(files)
        for file in wanted:
            if file not in self.files:
                raise self.lacks(file)
        patterns = [escape(file) for file in (*wanted, *(file for file in also if file in self.files))]
        with _in_our_words(self.repository, self.revision, self.alone):
            return Path(
                snapshot_download(
                    self.repository,
                    revision=self.revision,
                    local_files_only=bool(self.alone),
                    allow_patterns=patterns,
                    library_name="actvar-trt",
                )
            )

    def lacks(self, file: str) -> ActVARError:
        """That it has not a file which it should have."""
        if self.alone:
            return _not_here(f"{file} of {self.repository}", self.alone)
        return UsageError(f"{self.repository} holds no {file}, but {listed(self.files) or 'nothing'}. Name another.")


def _look_up(repository: Repository, revision: str | None, local_files_only: bool) -> _Snapshot:
    """What a revision holds, as the Hub has it, or where that does not answer as the cache has it."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    name, alone = repository.name, "local_files_only asks for what is here alone"
    if not local_files_only:
        with _in_our_words(name, revision, ""):
            try:
                info = HfApi(library_name="actvar-trt").model_info(name, revision=revision, timeout=_SECONDS)
                files = tuple(sibling.rfilename for sibling in info.siblings or ())
                return _Snapshot(name, revision, files, "")
            except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError):
                raise
            except Exception as error:  # of a connection: what they are derived from changes with each release
                alone = f"the Hub does not answer ({_first_line(error)})"
    with _in_our_words(name, revision, alone):
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=[]))
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return _Snapshot(name, revision, tuple(sorted(found)), alone)


@contextmanager
def _in_our_words(repository: str, revision: str | None, alone: str) -> Iterator[None]:
    """Errors of huggingface_hub's as ours."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        page = f"https://huggingface.co/{repository}"
        raise ActVARError(
            f"{repository} is given to those who have agreed to its terms. Agree at {page}, and log in: hf auth login."
        ) from None
    except RepositoryNotFoundError:
        raise UsageError(
            f"No file or folder here is called {repository}, and the Hub has no repository of that name that you may "
            "read. Check the name; for a private one log in: hf auth login."
        ) from None
    except RevisionNotFoundError:
        raise UsageError(f"{repository} has no revision {revision}. Name a branch, a tag or a commit of it.") from None
    except HFValidationError as error:
        raise UsageError(f"{repository} is no name of a repository: {_first_line(error)}.") from None
    except LocalEntryNotFoundError:
        at = f", revision {revision}," if revision else ""
        raise _not_here(f"{repository}{at}", alone or "the Hub does not answer") from None
    except Exception as error:  # see above
        raise ActVARError(f"{repository} cannot be fetched from the Hub: {_first_line(error)}. Try again.") from None


def _not_here(what: str, why: str) -> ActVARError:
    return ActVARError(
        f"{what} is not in the Hub's cache on this machine, and {why}. "
        "Fetch it once with a connection, or check the name."
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")[:200]


@contextmanager
def _quiet(wanted: bool) -> Iterator[None]:
    """Without huggingface_hub's own bars while the block runs, if it is wanted."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if not wanted or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
