"""Options that had other names, or took other values: what is said to whoever still types them."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spelling:
    """An option as it was, and what stands in its place in these commands; all of them lost it."""

    old: str
    new: str
    why: str
    commands: Sequence[str]


_NAMED = "it takes a shipped name, a bundle's folder or a checkpoint's file"
_FILE = "it takes a shipped name or a checkpoint's file"
_ONE_NAME = "precisions have one option"

OLD_SPELLINGS: tuple[Spelling, ...] = (
    Spelling("--checkpoint", "--model", _NAMED, ("generate", "evaluate", "build")),
    Spelling("--checkpoint", "--model", _FILE, ("explain", "export", "parity", "bind")),
    Spelling("--bundle", "--model", _NAMED, ("generate", "evaluate", "bench")),
    Spelling("--bundle", "--model", "it names a bundle that is there; --out is where one is to be written", ("build",)),
    Spelling("--bundle", "the argument BUNDLE", "actvar-trt bind BUNDLE --model CHECKPOINT", ("bind",)),
    *(
        Spelling(f"--{precision}", f"--precision {precision}", _ONE_NAME, commands)
        for precision, commands in (
            ("bf16", ("export", "build", "bench", "encode")),
            ("int8", ("export", "bench")),
            ("fp16-weights", ("export", "bench")),
        )
    ),
    Spelling("--batch", "--batch-size", "it is the pictures at a time", ("encode",)),
    Spelling("--batch", "--batch-size", "it is the pictures an update", ("study", "train stage1", "train stage2")),
    Spelling("--batch", "--batch-sizes", "they are the pictures at a time, such as 1,2,4", ("bench",)),
    Spelling("--batch", "--batch-range", "it is the fewest, best and most pictures, such as 1:8:64", ("build",)),
    Spelling("--batch", "--count", "it is a number of pictures", ("explain",)),
    Spelling("--pictures", "--count", "it is a number of pictures", ("parity", "study", "train var", "train mini")),
    Spelling("--picture", "--number", "it is which of the seed's pictures", ("explain",)),
    Spelling("--scales", "--cpu-graph", "--scales are numbers of scales", ("parity",)),
    Spelling("--scales", "--active-scales", "as in every other command", ("train mini",)),
    Spelling("--tokens", "--token-rates", "as in every other command", ("flops",)),
    Spelling("--expert-count", "--experts", "as in every other command", ("flops",)),
    Spelling("--tokens", "--tokens-dir", "it is the folder of stored tokens", ("train stage1", "train stage2")),
    Spelling("--learning-rate", "--lr", "an option has one name", ("train stage1", "train stage2")),
    Spelling("--tokens", "--token-counts", "they are numbers of tokens", ("bench kernels",)),
    Spelling("--active", "--active-experts", "they are numbers of experts", ("bench kernels",)),
)


def new_spelling(command: str, option: str) -> str | None:
    """What an option that a command has no more is now; None where it never was.

    Args:
        command: its words after the program's name, such as "train stage1".
        option: as it was typed, such as "--checkpoint".
    """
    for spelling in OLD_SPELLINGS:
        if spelling.old == option and command in spelling.commands:
            return f"{option} is now {spelling.new}: {spelling.why}"
    return None


NEW_MEANINGS = {"--experts": "--experts is their number, such as 16; rates are --expert-rates"}
"""Options that took other values, and what is said where they do not take one."""
