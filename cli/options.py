"""Every option that two commands share: its name, what it means, and its group in the help.

A command names an option by its alias, or by a function where the help must say what exactly is written or counted.
Options that always come together are the fields of a dataclass, in `model_choice.py` and `source.py`; `signature.py`
spreads them out for typer.
"""

import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import typer

from actvar.bundle.contract import Precision
from actvar.cli.completion import complete_class, complete_model
from actvar.config import Decoder
from actvar.errors import UsageError
from actvar.runtime.backends.protocol import Device
from actvar.scales import whole_numbers

model_option = partial(typer.Option, rich_help_panel="Model")
drawing_option = partial(typer.Option, rich_help_panel="Drawing")
engine_option = partial(typer.Option, rich_help_panel="Engine")
training_option = partial(typer.Option, rich_help_panel="Training")
output_option = partial(typer.Option, rich_help_panel="Output")

# ---- which model

Preset: TypeAlias = Literal["mini", "d16", "d20", "d24", "d30", "d36"]
MAX_DEPTH = 64

_MODEL = model_option(
    "--model",
    metavar="NAME",
    autocompletion=complete_model,
    help="actvar-mini, var-mini, a Hub repository (user/repo), a bundle's folder, or a checkpoint's file "
    "(.safetensors, .pth).",
)
_CHECKPOINT = model_option(
    "--model",
    metavar="NAME",
    autocompletion=complete_model,
    help="actvar-mini, var-mini, a Hub repository (user/repo), or a checkpoint's file (.safetensors, .pth).",
)
ModelOption: TypeAlias = Annotated[str, _MODEL]
OptionalModelOption: TypeAlias = Annotated[str | None, _MODEL]
CheckpointOption: TypeAlias = Annotated[str, _CHECKPOINT]
OptionalCheckpointOption: TypeAlias = Annotated[str | None, _CHECKPOINT]


def vqvae_option(what: str, **more: Any) -> Any:
    """`--vqvae`: a file that holds one."""
    return model_option("--vqvae", metavar="FILE", help=what, **more)


def patch_nums_option(what: str, default: str) -> Any:
    """`--patch-nums`: sides of token maps."""
    return model_option("--patch-nums", metavar="1,2,4,…", show_default=default, help=what)


BundleArgument: TypeAlias = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A folder that `export` or `build` wrote.")
]
VqvaeOption: TypeAlias = Annotated[
    Path | None, vqvae_option("The VQVAE beside a checkpoint that holds none, as official VAR's.")
]
ZnormOption: TypeAlias = Annotated[
    bool, model_option("--znorm", help="Of an official VQVAE that was trained with using_znorm, as no file tells it.")
]
PatchNumsOption: TypeAlias = Annotated[
    str | None,
    patch_nums_option("Sides of a checkpoint's token maps, where its file does not tell them.", "the checkpoint's"),
]

GuidanceUntilOption: TypeAlias = Annotated[
    int | None,
    model_option(
        "--guidance-until",
        metavar="K",
        show_default="all scales",
        help="The last scale that is guided, as a model is exported; those after it take half the time.",
    ),
]

SmoothOption: TypeAlias = Annotated[
    bool,
    model_option(
        "--smooth",
        help="Mix codes as pictures are drawn, for a smoother look: not for scores, and a bundle of its own.",
    ),
]

# ---- in which precision


def precision_option(what: str, **more: Any) -> Any:
    """`--precision`: of numbers; a command's type says which it has."""
    return engine_option("--precision", help=what, **more)


def graph_precision_option(default: str) -> Any:
    """`--precision` of graphs, with all that there are."""
    words = (
        "Of the graphs: fp32; fp16 or bf16, for matrices; int8, or fp16-weights, which computes in fp32, for ONNX "
        "Runtime on a CPU."
    )
    return precision_option(words, metavar="PRECISION", show_default=default)


PrecisionOption: TypeAlias = Annotated[Precision | None, graph_precision_option("fp32, or the bundle's own")]
Fp16Option: TypeAlias = Annotated[bool, engine_option("--fp16", help="Short for --precision fp16.")]

# ---- which decoder


def decoder_option(what: str, default: str) -> Any:
    """`--decoder`: the VQVAE's own, or the small one that was learned from it."""
    return model_option("--decoder", show_default=default, help=what)


DecoderOption: TypeAlias = Annotated[
    Decoder | None,
    decoder_option("small takes the small decoder of a model that has one.", "full, or the bundle's"),
]

# ---- pictures that are there

data_option = partial(typer.Option, rich_help_panel="Data")

# ---- what is drawn

class_option = partial(drawing_option, "--class", metavar="CLASS", show_default=False, autocompletion=complete_class)
_CLASSES = (
    "A number, a name, part of a name, all, none, a range 0-9, or several with commas between; may be given often. See "
    "`actvar-trt classes`."
)
ClassesOption: TypeAlias = Annotated[list[str], class_option(help=_CLASSES)]
InTurnOption: TypeAlias = Annotated[list[str] | None, class_option(help=_CLASSES, show_default="all in turn")]


def _check_seed(seed: int) -> int:
    """The seed, of 64 bits at most; a range of its own would fill a line of the help."""
    if seed >= 2**64:
        raise UsageError(f"--seed must lie in 0..2^64-1, got {seed}.")
    return seed


def seed_option(what: str, panel: str = "Drawing", **more: Any) -> Any:
    """`--seed`: what decides whatever is random."""
    return typer.Option("--seed", min=0, rich_help_panel=panel, callback=_check_seed, help=what, **more)


SeedOption: TypeAlias = Annotated[int, seed_option("The same seed gives the same pictures.")]


def count_option(what: str, least: int = 1, panel: str = "Drawing", **more: Any) -> Any:
    """`--count`: a number of pictures."""
    return typer.Option("--count", min=least, rich_help_panel=panel, help=what, **more)


# ---- what runs it

GraphBackend: TypeAlias = Annotated[
    Literal["onnxruntime", "tensorrt"],
    engine_option(
        "--backend",
        metavar="BACKEND",
        help="What runs the graphs: onnxruntime, or tensorrt, with engines that are built from them.",
    ),
]
DeviceOption: TypeAlias = Annotated[
    Device | None,
    engine_option(
        "--device", show_default="cpu; cuda for tensorrt", help="Where the graphs run; cuda is the first NVIDIA GPU."
    ),
]
TorchDeviceOption: TypeAlias = Annotated[
    str, engine_option("--device", metavar="DEVICE", help="cpu, cuda, or one GPU of several, such as cuda:1.")
]
ThreadsOption: TypeAlias = Annotated[
    int, engine_option("--threads", min=0, max=1024, help="CPU threads; 0 is one for each core.")
]


def batch_size_option(what: str, panel: str = "Engine", **more: Any) -> Any:
    """`--batch-size`: pictures at a time."""
    return typer.Option("--batch-size", min=1, rich_help_panel=panel, help=what, **more)


# ---- what comes out


def out_option(what: str, **more: Any) -> Any:
    """`--out`: where output goes."""
    return output_option("--out", help=what, **more)


JsonOption: TypeAlias = Annotated[
    Path | None,
    output_option(
        "--json", metavar="FILE", help="Write it as JSON, too. - is stdout, where nothing else is printed then."
    ),
]

# ---- work that has parts

ShardOption: TypeAlias = Annotated[
    str | None, output_option("--shard", metavar="I/N", help="Do the I-th of N parts, from 0: one for each process.")
]


# ---- what options come to


def chosen_precision(precision: Precision | None, fp16: bool) -> Precision | None:
    """The precision that `--precision` and `--fp16` name; None where neither is given.

    Raises:
        UsageError: they name two.
    """
    if fp16 and precision not in (None, "fp16"):
        raise UsageError(f"--fp16 and --precision {precision} exclude each other. Give one of them.")
    return "fp16" if fp16 else precision


def chosen_shard(text: str) -> tuple[int, int]:
    """I and N of `--shard I/N`.

    Raises:
        UsageError: it is something else.
    """
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    index, shards = (int(found[1]), int(found[2])) if found else (0, 0)
    if not index < shards:
        raise UsageError(f"--shard must be I/N with I from 0 to N-1, such as 0/4; got {text!r}.")
    return index, shards


def make_out_folder(folder: Path) -> None:
    """Make the folder of `--out`: before hours of work, rather than after them.

    Raises:
        UsageError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {folder} cannot be a folder: {error.strerror}. Name another.") from None


def integers(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers with commas between; see `whole_numbers`.

    Raises:
        UsageError: the text is something else.
    """
    found = whole_numbers(text)
    if found is None:
        raise UsageError(f"{option} must be whole numbers with commas between, such as 9,10; got {text!r}.")
    return found


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Numbers with commas between; errors are those of `integers`."""
    try:
        return tuple(float(part) for part in text.replace("_", "?").split(","))  # Python reads 0.5_0 as 0.5
    except ValueError:
        raise UsageError(f"{option} must be numbers with commas between, such as 0.75,0.5; got {text!r}.") from None
