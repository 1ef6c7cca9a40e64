"""A Hugging Face Hub cache made by hand, as huggingface_hub leaves one: blobs, links to them, and refs.

What it is like was read off a real one and off the library's own description of it. Nothing is fetched.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubCache:
    """The folder that HF_HUB_CACHE names."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def repository(self, name: str) -> Path:
        """The cache folder of one repository."""
        return self.folder / f"models--{name.replace('/', '--')}"

    def snapshot(self, name: str, commit: str = COMMIT) -> Path:
        """The folder of links of one of its commits."""
        return self.repository(name) / "snapshots" / commit

    def add(
        self, name: str, files: Path | Iterable[Path], commit: str = COMMIT, refs: Iterable[str] = ("main",)
    ) -> Path:
        """Put files, or a folder of files and folders, into a snapshot, which branches or tags may point to."""
        repository, snapshot = self.repository(name), self.snapshot(name, commit)
        (repository / "blobs").mkdir(parents=True, exist_ok=True)
        snapshot.mkdir(parents=True, exist_ok=True)
        if isinstance(files, Path):
            placed = {path.relative_to(files): path for path in files.rglob("*") if path.is_file()}
        else:
            placed = {Path(path.name): path for path in files}
        for place, path in placed.items():
            blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
            if not blob.exists():
                shutil.copyfile(path, blob)
            link = snapshot / place
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
        for ref in refs:
            (repository / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
            (repository / "refs" / ref).write_text(commit)
        return snapshot
