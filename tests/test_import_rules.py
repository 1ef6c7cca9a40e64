"""The direction of the arrows: what may import what, read from the source and tried in a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest
from import_tree import PACKAGES, ROOT, Import, Module, read_tree, within

ORDER = ("actvar", "plugins", "runtime", "export", "serve", "benchmarks", "cli")
"""The rooms: a module may import its own and those to the left, at once or late."""

DOOR = "actvar"
"""Hands on `Pipeline` from the room where it lies when somebody asks for it: the one exception, for one name."""

SCRIPTS = {"actvar.export.build_engines"}
"""Run as files, and imported by nobody: each is a door to the command line, wherever it lies."""

# What a machine that only draws pictures has: pyproject's dependencies and an engine. Everything else, PyTorch and
# ONNX first of all, must not be needed to load the runtime or the command line.
MAY_LOAD = {"numpy", "PIL", "rich", "safetensors", "typer", "onnxruntime", "tensorrt", "tensorrt_rtx", "cuda"}
LOADS_TORCH = {"safetensors.torch"}


def is_torch_backend(name: str) -> bool:
    """The one module of the runtime that is PyTorch's, loaded only when it is asked for."""
    return name.startswith("actvar.runtime.backends.torch")


def light_modules(tree: dict[str, Module]) -> list[str]:
    """The modules that must load without PyTorch and ONNX."""
    light = {"actvar.runtime", "actvar.cli", "actvar.export.front_door"}
    return [name for name in tree if within(name, light) and not is_torch_backend(name)]


def room(name: str) -> str:
    """The room that a module lies in."""
    inner = name.split(".")[1:2]
    return inner[0] if inner and inner[0] in ORDER else "actvar"


def arrows(tree: dict[str, Module]) -> list[tuple[Module, Import, str]]:
    """Every import of one of the project's modules by another, wherever it stands, with the module that it names."""
    found = []
    for module in tree.values():
        for imported in module.imports:
            name = imported.name
            while name not in tree and "." in name:
                name = name.rpartition(".")[0]
            if name in tree and name != module.name and module.name != DOOR:
                found.append((module, imported, name))
    return found


def arrows_upwards(tree: dict[str, Module]) -> list[str]:
    """Imports of a room by one to its left."""
    return [
        f"{module.path}:{imported.line} imports {imported.name}"
        for module, imported, name in arrows(tree)
        if module.name not in SCRIPTS and ORDER.index(room(name)) > ORDER.index(room(module.name))
    ]


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The names that reach themselves, those of one circle together."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        queue = [start]
        while queue:
            for name in edges.get(queue.pop(), set()) - seen:
                seen.add(name)
                queue.append(name)
        return seen

    reach = {name: reached(name) for name in edges}
    in_circles = [name for name in edges if name in reach[name]]
    return sorted({tuple(sorted(o for o in in_circles if o in reach[n] and n in reach[o])) for n in in_circles})


def between_files(tree: dict[str, Module]) -> dict[str, set[str]]:
    """Which module imports which; a package that is named on the way to a module of its own does not count."""
    edges: dict[str, set[str]] = {name: set() for name in tree}
    for module, imported, name in arrows(tree):
        if tree[name].path.name != "__init__.py" or imported.name == name:
            edges[module.name].add(name)
    return edges


def between_folders(tree: dict[str, Module]) -> dict[str, set[str]]:
    """The same for the folders of a room. A module beside them, in the room itself, stands for itself."""

    def folder(name: str) -> str:
        above = name if tree[name].path.name == "__init__.py" else name.rpartition(".")[0]
        return name if above == "actvar" or above.removeprefix("actvar.") in ORDER else above

    edges: dict[str, set[str]] = {folder(name): set() for name in tree}
    for start, ends in between_files(tree).items():
        if start not in SCRIPTS:
            edges[folder(start)] |= {folder(end) for end in ends} - {folder(start)}
    return edges


def bare_imports(tree: dict[str, Module]) -> list[str]:
    """Imports of rooms by their folders' names, which only a checkout knows."""
    return [
        f"{module.path}:{found.line} imports {found.name}"
        for module in tree.values()
        for found in module.imports
        if within(found.name, set(ORDER) - {"actvar"})
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
    allowed = MAY_LOAD | sys.stdlib_module_names
    needs = (what_loading_needs(tree, name) for name in light_modules(tree))
    return [chain for needed in needs for package, chain in needed.items() if package not in allowed]


BINDINGS = {"actvar.plugins.torch", "actvar.serve.ray"}
"""Bear another package's name on purpose, as nothing in their rooms is run as a file."""


def hiding_names(tree: dict[str, Module]) -> list[str]:
    """Modules named like one of the standard library or of a package that the project imports."""
    imported = {found.name.partition(".")[0] for module in tree.values() for found in module.imports}
    taken = (imported | MAY_LOAD | sys.stdlib_module_names) - set(ORDER)
    return [
        str(module.path)
        for module in tree.values()
        if module.name.rpartition(".")[2] in taken and module.name not in BINDINGS
    ]


@pytest.fixture(scope="module")
def tree() -> dict[str, Module]:
    """The project, read once; a reader that misses a folder would let every rule pass."""
    tree = read_tree()
    assert {"actvar.models.vqvae", "actvar.cli.main", *(f"actvar.{room}" for room in ORDER[1:])} <= tree.keys()
    return tree


def test_imports_go_one_way(tree):
    """actvar <- plugins <- runtime <- export <- serve <- benchmarks <- cli: the runtime needs no exporter."""
    assert arrows_upwards(tree) == []


def test_the_door_hands_on_one_name_and_not_at_once(tree):
    """`import actvar` is the first line of everything, of the runtime's own modules, too."""
    named = {found.name for found in tree[DOOR].imports if within(found.name, {DOOR})}
    assert named == {"actvar.export.front_door", "actvar.export.front_door.Pipeline"}
    assert not any(found.at_load for found in tree[DOOR].imports if found.name in named)


def test_no_circle_between_files_or_folders(tree):
    """Whoever reads a file or a folder can stop at what it imports."""
    assert circles(between_files(tree)) == []
    assert circles(between_folders(tree)) == []


def test_no_module_imports_a_package_by_its_folder(tree):
    """`import export` works from a checkout's root and nowhere else."""
    assert bare_imports(tree) == []


def test_loading_the_runtime_needs_no_torch_and_no_onnx(tree):
    """Drawing needs numpy and an engine; a module-level import anywhere behind the runtime would break that."""
    assert heavy_loads(tree) == []


@pytest.mark.parametrize("name", ["export.onnx_export", "export.binder", "checkpoint.model", "checkpoint.networks"])
def test_loading_the_exporter_needs_no_torch(tree, name):
    """A checkpoint in safetensors becomes a bundle by numpy and ONNX alone."""
    assert "onnx" in what_loading_needs(tree, "actvar.export.onnx_export")
    assert what_loading_needs(tree, f"actvar.{name}").keys() - sys.stdlib_module_names <= MAY_LOAD | {
        "ml_dtypes",
        "onnx",
    }


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
    found = {"torch", "onnx", "matplotlib"} & sys.modules.keys()
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
from actvar.cli.main import main
sys.argv = ["actvar-trt", "--help"]
try:
    main()
except SystemExit as stop:
    if stop.code:
        raise
found = {"torch", "onnx", "matplotlib"} & sys.modules.keys()
if found:
    sys.exit(f"--help loads {sorted(found)}")
"""


def test_help_loads_neither_torch_nor_onnx_nor_matplotlib():
    """The command line builds its whole tree of commands for --help: none may drag its engine in."""
    done = run_python(HELP)
    assert done.returncode == 0, done.stderr
    assert "generate" in done.stdout


# ---- the checkers themselves, on small trees with one fault each


def plant(root: Path, files: dict[str, str]) -> dict[str, Module]:
    """Write a tree with every room and the given files, and read it."""
    for path, text in {**{f"{folder}/__init__.py": "" for folder in PACKAGES.values()}, **files}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return read_tree(root)


@pytest.mark.parametrize(
    "statement",
    [
        "import actvar.cli.main",
        "from actvar import runtime",
        "from .. import export",
        "def later():\n    from ..export import graphs",
    ],
)
def test_an_arrow_upwards_is_found(tmp_path, statement):
    """Absolute, relative, of the package or of a module in it, at once or later."""
    tree = plant(tmp_path, {"actvar/models/__init__.py": "", "actvar/models/var.py": statement})
    assert arrows_upwards(tree)


def test_export_may_import_both_others(tmp_path):
    """The rule must not read export's own imports as the model's."""
    tree = plant(tmp_path, {"export/graphs.py": "import actvar.models\nfrom actvar.runtime import pipeline"})
    assert arrows_upwards(tree) == bare_imports(tree) == []


def test_the_runtime_may_not_import_export(tmp_path):
    """Late, in the door of the runtime: how the two came to import each other."""
    source = "def later():\n    from actvar.export.onnx_export import export_bundle"
    tree = plant(tmp_path, {"runtime/sources.py": source, "export/onnx_export.py": ""})
    assert arrows_upwards(tree) == [
        f"{Path('runtime/sources.py')}:2 imports {name}"
        for name in ("actvar.export.onnx_export", "actvar.export.onnx_export.export_bundle")
    ]


def test_circles_are_found(tmp_path):
    """Of two files, late or not; and of two folders whose files make none."""
    tree = plant(
        tmp_path,
        {
            "actvar/data/__init__.py": "",
            "actvar/data/a.py": "from actvar.models import b",
            "actvar/data/c.py": "",
            "actvar/models/__init__.py": "",
            "actvar/models/b.py": "def later():\n    from actvar.data.c import x",
            "runtime/one.py": "import actvar.runtime.two",
            "runtime/two.py": "def later():\n    from actvar.runtime.one import x",
        },
    )
    assert circles(between_files(tree)) == [("actvar.runtime.one", "actvar.runtime.two")]
    assert ("actvar.data", "actvar.models") in circles(between_folders(tree))


def test_an_import_by_folder_is_found(tmp_path):
    """Also where the arrow itself would be allowed."""
    assert bare_imports(plant(tmp_path, {"export/parity.py": "from runtime.pipeline import GraphSource"}))


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
