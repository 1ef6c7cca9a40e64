"""What the messages about checkpoints share, whatever the format: each says what a file is, and what to do."""

import errno
from pathlib import Path

from actvar.errors import CheckpointError, shown

_NO_MEMORY = ("allocate memory", "not enough memory", "bad_alloc", "std::bad_alloc")


def odd_tensor(path: Path, name: str, found: str) -> CheckpointError:
    """The error for a tensor that is not a plain one."""
    return CheckpointError(
        f"{shown(path)}: {shown(name)}: expected a dense tensor with all its values, found {found}. "
        "Write the checkpoint again with plain tensors."
    )


def no_checkpoint(path: Path, what: str, advice: str) -> CheckpointError:
    """The error for a file that is something else; `what` completes "it …"."""
    return CheckpointError(f"{shown(path)} cannot be read as a checkpoint: it {what}. {advice}")


def damaged(path: Path, error: Exception) -> CheckpointError:
    """The error for what a library could not read."""
    return CheckpointError(
        f"{shown(path)} cannot be read as a checkpoint ({first_line(error)}): it is cut short, damaged, or something "
        "else. Fetch it again, or name a .safetensors or .pth file."
    )


def unreadable(path: Path, error: OSError | ValueError) -> CheckpointError:
    """The error for what the operating system refuses, or for a path that is none."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    return CheckpointError(f"{shown(path)} cannot be read: {reason}. Check its name and permissions.")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python's, PyTorch's or the system's means that memory was refused."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in _NO_MEMORY)


def too_little_memory(path: Path) -> CheckpointError:
    """The error for a file that is not at fault."""
    return CheckpointError(
        f"{shown(path)} cannot be read: there is not enough memory for it. "
        "Free some, raise the limit (ulimit -v, or the container's), or take a smaller model."
    )


def first_line(error: Exception) -> str:
    """What an error says, in a few words: its first sentence, or its kind."""
    text = (str(error).splitlines() or [""])[0].partition(". ")[0].strip(" .")
    return shown(text, 120) or type(error).__name__
