"""What a GPU machine without a network needs, collected on one that has a network: the folder that is packed.

wheels/                   packages for its Python
wheels-onnxruntime-gpu/   ONNX Runtime's build with CUDA, if it was given
bundles/mini-fp32, -fp16  the model of the package; with plans that need no GPU to be built
bundles/d16-dense-fp16 .. graphs without weights
plugins/                  the plugin library, if there is one
source.json               the commit, and a hash of the code
"""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZIP_STORED, ZipFile

from actvar.benchmarks.checkout import ROOT, commit, git
from actvar.errors import ActVARError

WHEELS, WHEELS_ORT_GPU, BUNDLES, PLUGINS, SOURCE_FILE = (
    "wheels",
    "wheels-onnxruntime-gpu",
    "bundles",
    "plugins",
    "source.json",
)
CODE = ("actvar", "export", "runtime", "benchmarks", "tests")
JOBS = 2
LENT = "/tmp/gpu"  # on a lent machine: kept from one call to the next

# All that is imported there but PyTorch, which is there, and the project, which comes as a checkout.
PACKAGES = (
    *("numpy", "pillow", "rich", "safetensors", "typer"),
    *("onnx", "onnxruntime", "onnxscript", "onnx-ir", "onnx-graphsurgeon", "polygraphy"),
    *("cuda-bindings", "cuda-pathfinder", "tensorrt_rtx_cu13_bindings", "tensorrt_rtx_cu13_libs"),
    *("ml_dtypes", "protobuf", "flatbuffers", "packaging", "typing_extensions"),
    *("markdown-it-py", "mdurl", "Pygments", "shellingham", "annotated-doc"),
    *("pytest", "pluggy", "iniconfig"),
)
SDISTS = ("tensorrt-rtx", "tensorrt_rtx_cu13")  # pure Python that is not on PyPI as wheels
_GLIBC = (39, 38, 35, 34, 31, 28, 27, 24, 17, 12, 5)  # minor versions: pip takes each by its exact number
_PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in _GLIBC), "manylinux2014_x86_64", "manylinux1_x86_64")

Tell = Callable[[str], None]


def collect(folder: Path, python: str, there: Collection[str], own_wheels: Path | None, tell: Tell) -> None:
    """Fill a new folder.

    Args:
        folder: to be filled.
        python: version of the machine's Python, such as "3.12".
        there: packages that the machine has, and that need not be carried.
        own_wheels: a folder with more wheels, such as TensorRT's or onnxruntime-gpu's.
        tell: is given a line for each thing that is done.

    Raises:
        ActVARError: pip cannot get a package, or a bundle or a plan cannot be made.
        OSError: the folder cannot be written.
    """
    write_source(folder)
    _wheels(folder, python, {name.lower().replace("_", "-") for name in there}, own_wheels)
    tell(f"{len(list((folder / WHEELS).iterdir()))} wheels for Python {python}")
    _plugins(folder, tell)
    _bundles(folder / BUNDLES, tell)


# ---- the code


def write_source(folder: Path) -> None:
    """Note which code the folder belongs to."""
    content = {**commit(), "code": code_hash()}
    (folder / SOURCE_FILE).write_text(json.dumps(content) + "\n")


def source_of(work: Path) -> dict[str, object]:
    """The commit that is run; without git, what was prepared says it, if the code is still the same."""
    found = commit()
    if found["commit"]:
        return found
    prepared = json.loads((work / SOURCE_FILE).read_bytes())
    same = prepared["code"] == code_hash()
    return {"commit": prepared["commit"], "altered": prepared["altered"] or not same}


def code_hash() -> str:
    """SHA-256 of all Python files of the project."""
    digest = hashlib.sha256()
    for path in sorted(path for part in CODE for path in (ROOT / part).rglob("*.py")):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def bytes_of_tree(without: Path) -> int | None:
    """How much of the checkout travels with every call: what git does not ignore. None without git."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if not listed:
        return None
    paths = [ROOT / name for name in listed.split("\0") if name]
    return sum(path.lstat().st_size for path in paths if path.is_file() and without not in path.parents)


# ---- packages


def _wheels(folder: Path, python: str, there: Collection[str], own_wheels: Path | None) -> None:
    wanted = [name for name in PACKAGES if name.lower().replace("_", "-") not in there]
    platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    target = ["--python-version", python, "--implementation", "cp", "--only-binary=:all:", *platforms]
    with TemporaryDirectory(dir=folder) as scratch:
        _pip("download", "--no-deps", *target, "-d", scratch, *wanted)
        _pip("wheel", "--no-deps", "-w", scratch, *SDISTS)
        for wheel in sorted((*Path(scratch).glob("*.whl"), *(own_wheels.glob("*.whl") if own_wheels else ()))):
            part = WHEELS_ORT_GPU if wheel.name.startswith("onnxruntime_gpu") else WHEELS
            (folder / part).mkdir(exist_ok=True)
            _stored(wheel, folder / part / wheel.name)


def _pip(command: str, *arguments: str) -> None:
    constraints = ["-c", str(ROOT / "constraints.txt")]
    done = subprocess.run(
        [sys.executable, "-m", "pip", command, "-q", *constraints, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-3:]
        raise ActVARError(f"pip {command} failed: {' '.join(said)}. Look for the package, or name it with --there.")


def _stored(wheel: Path, target: Path) -> None:
    """The same wheel uncompressed: the archive around it compresses better than wheels do."""
    with ZipFile(wheel) as source, ZipFile(target, "w", ZIP_STORED) as copy:
        for item in source.infolist():
            content = source.read(item)
            item.compress_type = ZIP_STORED
            copy.writestr(item, content)


# ---- bundles, plans, plugins


def _plugins(folder: Path, tell: Tell) -> None:
    from actvar.plugins.library import plugin_library

    library = plugin_library()
    if library:
        (folder / PLUGINS).mkdir()
        shutil.copyfile(library, folder / PLUGINS / library.name)
    tell(f"the plugin library {library}" if library else "no plugin library: there is none here, plans use bodies")


def _bundles(folder: Path, tell: Tell) -> None:
    from actvar.benchmarks.gpu.steps import ACTIVE, DENSE
    from actvar.benchmarks.gpu.steps import PRESETS as TIMED
    from actvar.benchmarks.gpu.ways import AHEAD, OPTIONS, WAYS
    from actvar.checkpoint.files import shipped_checkpoint
    from actvar.checkpoint.model import load_model
    from actvar.config import PRESETS, Activation
    from actvar.export.onnx_export import export_bundle, export_graphs
    from actvar.export.plans.builder import build_plans

    mini = shipped_checkpoint("actvar-mini")
    model = load_model(mini.path, mini.vqvae)
    for precision in ("fp32", "fp16"):
        export_bundle(model, folder / f"mini-{precision}", precision, f"checkpoint {mini.path.name}")
    tell("mini bundles in fp32 and fp16")
    for name in AHEAD:
        target = WAYS[name].target()
        build_plans(folder / "mini-fp16", target, OPTIONS, jobs=JOBS)
        tell(f"plans of mini-fp16 for {', '.join(target.gpus)}")
    for preset in TIMED:
        for who, activation in ((DENSE, None), (ACTIVE, Activation())):
            config = replace(PRESETS[preset], activation=activation)
            export_graphs(config, folder / f"{preset}-{who}-fp16", "fp16", f"preset {preset}, no weights")
            tell(f"graphs of {preset}, {who}")


def calls(pieces: Sequence[str], manifest: str, folder: Path) -> Iterator[str]:
    """What to call, one at once after the other, to bring the pieces to a lent machine and run everything there."""
    if not folder.resolve().is_relative_to(ROOT):
        yield f"{folder} lies outside of the checkout, which alone travels. Prepare a folder inside, such as .gpu."
        return
    inside = folder.resolve().relative_to(ROOT)
    yield f"first, here: echo /{inside}/ >> .git/info/exclude"
    for number, piece in enumerate(pieces, 1):
        carry = json.dumps([f"{inside}/{piece}", *([f"{inside}/{manifest}"] if number == 1 else [])])
        command = f"mkdir -p {LENT} && cp {inside}/p* {LENT}/"
        if number == len(pieces):
            command += f" && python3 benchmarks/gpu_evidence.py --run {LENT} --out $OUT --deadline 540"
        yield f"run(timeout_s=600, carry={carry}, command={json.dumps(command)})"
