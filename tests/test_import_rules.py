"""The direction of the arrows: what may import what, read from the source and tried in a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest
from import_tree import ROOT, Module, read_tree, within

OUTER = {"actvar.export", "actvar.runtime"}

# What a machine that only draws pictures has: pyproject's dependencies and an engine. Everything else, PyTorch and
# ONNX first of all, must not be needed to load the runtime.
RUNTIME_MAY_LOAD = {"numpy", "PIL", "rich", "safetensors", "typer", "onnxruntime", "tensorrt", "tensorrt_rtx", "cuda"}
LOADS_TORCH = {"safetensors.torch"}


def is_torch_backend(name: str) -> bool:
    """The one module of the runtime that is PyTorch's, loaded only when it is asked for."""
    return name.startswith("actvar.runtime.backends.torch")


def light_modules(tree: dict[str, Module]) -> list[str]:
    """The modules of the runtime that must load without PyTorch and ONNX."""
    return [name for name in tree if within(name, {"actvar.runtime"}) and not is_torch_backend(name)]


def arrows_out_of_the_model(tree: dict[str, Module]) -> list[str]:
    """Imports of export or runtime by the model's package, wherever in a module they stand."""
    return [
        f"{module.path}:{found.line} imports {found.name}"
        for module in tree.values()
        if not within(module.name, OUTER)
        for found in module.imports
        if within(found.name, OUTER)
    ]


def bare_imports(tree: dict[str, Module]) -> list[str]:
    """Imports of `export` and `runtime` by their folders' names, which only a checkout knows."""
    return [
        f"{module.path}:{found.line} imports {found.name}"
        for module in tree.values()
        for found in module.imports
        if within(found.name, {"export", "runtime"})
    ]


def what_loading_needs(tree: dict[str, Module], start: str) -> dict[str, str]:
    """Every outside package that loading `start` loads, and the chain of modules that leads to it.

    Loading a.b.c loads a and a.b before it; a name that is no module of the project's is an attribute of one.
    """
    chains, queue, needed = {start: start}, [start], {}
    while queue:
        here = queue.pop(0)
        for found in (f for f in tree[here].imports if f.at_load):
            chain = f"{chains[here]} -> {found.name}"
            parts = found.name.split(".")
            if parts[0] != "actvar":
                needed.setdefault("safetensors.torch" if within(found.name, LOADS_TORCH) else parts[0], chain)
            for loaded in (".".join(parts[:n]) for n in range(1, len(parts) + 1)):
                if loaded in tree and loaded not in chains:
                    chains[loaded] = chain
                    queue.append(loaded)
    return needed


def heavy_loads(tree: dict[str, Module]) -> list[str]:
    """Chains by which loading a module of the runtime loads a package that it must do without."""
    allowed = RUNTIME_MAY_LOAD | sys.stdlib_module_names
    needs = (what_loading_needs(tree, name) for name in light_modules(tree))
    return [chain for needed in needs for package, chain in needed.items() if package not in allowed]


def hiding_names(tree: dict[str, Module]) -> list[str]:
    """Modules named like one of the standard library or of a package that the project imports."""
    imported = {found.name.partition(".")[0] for module in tree.values() for found in module.imports}
    taken = (imported | RUNTIME_MAY_LOAD | sys.stdlib_module_names) - {"actvar", "export", "runtime"}
    return [str(module.path) for module in tree.values() if module.name.rpartition(".")[2] in taken]


@pytest.fixture(scope="module")
def tree() -> dict[str, Module]:
    """The project, read once; a reader that misses a folder would let every rule pass."""
    tree = read_tree()
    assert {"actvar", "actvar.config", "actvar.models.vqvae", "actvar.export", "actvar.runtime.cli"} <= tree.keys()
    return tree


def test_the_model_imports_neither_export_nor_runtime(tree):
    """The model and its training must stand alone: a trainer needs no ONNX and no engine."""
    assert arrows_out_of_the_model(tree) == []


def test_no_module_imports_a_package_by_its_folder(tree):
    """`import export` works from a checkout's root and nowhere else."""
    assert bare_imports(tree) == []


def test_loading_the_runtime_needs_no_torch_and_no_onnx(tree):
    """Drawing needs numpy and an engine; a module-level import anywhere behind the runtime would break that."""
    assert heavy_loads(tree) == []


def test_no_module_hides_another(tree):
    """`python export/build_engines.py` puts export/ first on the path: export/onnx.py would be what `onnx` finds."""
    assert hiding_names(tree) == []


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter from the project's root."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


LOAD_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    found = {"torch", "onnx"} & sys.modules.keys()
    if found:
        sys.exit(f"loading {name} loads {sorted(found)}")
"""


def test_every_runtime_module_loads_without_torch_and_onnx(tree):
    """What the source cannot show: an import made by a dependency, or by a string."""
    modules = light_modules(tree)
    assert len(modules) > 3
    done = run_python(LOAD_ALL, *modules)
    assert done.returncode == 0, done.stderr


HELP = """
import sys
from actvar.runtime.cli import main
sys.argv = ["actvar-trt", "--help"]
try:
    main()
except SystemExit as stop:
    if stop.code:
        raise
found = {"torch", "onnx"} & sys.modules.keys()
if found:
    sys.exit(f"--help loads {sorted(found)}")
"""


def test_help_loads_neither_torch_nor_onnx():
    """The command line builds its whole tree of commands for --help: none may drag its engine in."""
    done = run_python(HELP)
    assert done.returncode == 0, done.stderr
    assert "generate" in done.stdout


# ---- the checkers themselves, on small trees with one fault each


def plant(root: Path, files: dict[str, str]) -> dict[str, Module]:
    """Write a tree with the three packages and the given files, and read it."""
    for path, text in {"actvar/__init__.py": "", "export/__init__.py": "", "runtime/__init__.py": "", **files}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return read_tree(root)


@pytest.mark.parametrize(
    "statement",
    [
        "import actvar.runtime.cli",
        "from actvar import runtime",
        "from .. import export",
        "def later():\n    from ..export import graphs",
    ],
)
def test_an_arrow_out_of_the_model_is_found(tmp_path, statement):
    """Absolute, relative, of the package or of a module in it, at once or later."""
    tree = plant(tmp_path, {"actvar/models/__init__.py": "", "actvar/models/var.py": statement})
    assert arrows_out_of_the_model(tree)


def test_export_may_import_both_others(tmp_path):
    """The rule must not read export's own imports as the model's."""
    tree = plant(tmp_path, {"export/graphs.py": "import actvar.models\nfrom actvar.runtime import pipeline"})
    assert arrows_out_of_the_model(tree) == bare_imports(tree) == []


def test_an_import_by_folder_is_found(tmp_path):
    """Also where the arrow itself would be allowed."""
    assert bare_imports(plant(tmp_path, {"export/parity.py": "from runtime.pipeline import Pipeline"}))


@pytest.mark.parametrize(
    ("statement", "package"),
    [
        ("import onnx", "onnx"),
        ("from safetensors.torch import load_file", "safetensors.torch"),
        ("try:\n    import torch.nn as nn\nexcept ImportError:\n    nn = None", "torch"),
        ("from .helper import x", "torch"),
        ("from actvar import deep", "torch"),
        ("import actvar.deep.below", "torch"),
    ],
)
def test_a_heavy_load_is_found(tmp_path, statement, package):
    """Direct, guarded by try, through a neighbour, and through a parent package's __init__."""
    tree = plant(
        tmp_path,
        {
            "runtime/pipeline.py": statement,
            "runtime/helper.py": "from actvar.deep.below import x",
            "actvar/deep/__init__.py": "import torch",
            "actvar/deep/below.py": "x = 1",
        },
    )
    chains = [chain for chain in heavy_loads(tree) if chain.startswith("actvar.runtime.pipeline")]
    assert chains and chains[0].endswith((package, f"{package}.nn", f"{package}.load_file"))


def test_what_loading_does_not_run_is_allowed(tmp_path):
    """Imports in a function or for the type checker alone, and the torch backend's own."""
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\ndef later():\n    import onnx"
    tree = plant(
        tmp_path,
        {
            "runtime/pipeline.py": source,
            "runtime/backends/__init__.py": "",
            "runtime/backends/torch_backend.py": "import torch",
        },
    )
    assert heavy_loads(tree) == []


@pytest.mark.parametrize("path", ["export/onnx.py", "actvar/models/select.py", "runtime/numpy/__init__.py"])
def test_a_hiding_name_is_found(tmp_path, path):
    """A dependency's name, a standard module's name, and a folder's."""
    assert hiding_names(plant(tmp_path, {path: "", "export/graphs.py": "import onnx"})) == [path]
