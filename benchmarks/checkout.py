"""The checkout that a benchmark runs from, as git knows it."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def git(*arguments: str) -> str:
    """What git says in the checkout; nothing if there is no git, or it fails."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def commit() -> dict[str, object]:
    """Its commit, and whether it differs from that; the commit is empty without git."""
    return {"commit": git("rev-parse", "HEAD"), "altered": bool(git("status", "--porcelain"))}
