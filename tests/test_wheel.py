"""The wheel that carries the compiled library, the one that does not, and where an installed library is looked for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from import_tree import PACKAGES, ROOT
from plugin_build import kernel_library_path, plugin_library_path

from actvar.errors import UsageError
from actvar.plugins import library as plugin_library
from actvar.plugins.library import KERNELS_FILE, LIBRARY_FILE, PLUGIN_VARIABLE, kernel_library

VARIABLE = "ACTVAR_WHEEL_LIBRARIES"
FIND = """
from actvar.plugins.kernel_calls import open_kernels
from actvar.plugins.library import kernel_library, plugin_library
open_kernels()
print(plugin_library(), kernel_library())
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """The project without its models, in a folder where builds leave their traces."""
    tree = tmp_path_factory.mktemp("project")
    ignored = shutil.ignore_patterns("__pycache__", "*.safetensors", "lib")
    for folder in PACKAGES.values():
        if "/" not in folder:
            shutil.copytree(ROOT / folder, tree / folder, symlinks=True, ignore=ignored)
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree)
    return tree


def build(tree: Path, libraries: str | None) -> subprocess.CompletedProcess[str]:
    """`pip wheel`, with the setuptools at hand, into tree/dist."""
    pytest.importorskip("setuptools", minversion="77", reason="needs the setuptools that pyproject.toml asks for")
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment |= {VARIABLE: libraries} if libraries is not None else {}
    shutil.rmtree(tree / "dist", ignore_errors=True)
    command = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tree / "dist"), str(tree)]
    return pip(*command, environment=environment)


def pip(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Its output is returned."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def the_wheel(tree: Path, done: subprocess.CompletedProcess[str]) -> Path:
    """That was built."""
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tree / "dist").iterdir()
    return wheel


@pytest.mark.slow
def test_a_wheel_carries_the_library_and_an_installation_finds_it(tree, tmp_path):
    """For one platform and every Python. The next plain wheel from the same folder carries none and fits anywhere."""
    library = plugin_library_path()
    wheel = the_wheel(tree, build(tree, str(library.parent)))
    assert wheel.name.endswith(f"-py3-none-linux_{os.uname().machine}.whl")
    with ZipFile(wheel) as content:
        libraries = [name for name in content.namelist() if name.endswith(".so")]
        assert libraries == [f"actvar/lib/{LIBRARY_FILE}"]
        assert content.read(libraries[0]) == library.read_bytes()
    installed = pip("install", "--no-deps", "--no-index", "--target", str(tmp_path), str(wheel))
    assert installed.returncode == 0, installed.stderr
    environment = {name: value for name, value in os.environ.items() if name != PLUGIN_VARIABLE}
    environment["PYTHONPATH"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", FIND], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = str(tmp_path.resolve() / "actvar" / "lib" / LIBRARY_FILE)
    assert done.stdout.split() == [found, found]

    plain = the_wheel(tree, build(tree, None))
    assert plain.name.endswith("-py3-none-any.whl")
    with ZipFile(plain) as content:
        assert not [name for name in content.namelist() if name.endswith(".so")]


@pytest.mark.slow
def test_a_wheel_that_should_carry_a_library_and_has_none_is_not_built(tree, tmp_path):
    """A plain wheel under a platform's name would hide that nothing was compiled."""
    done = build(tree, str(tmp_path))
    assert done.returncode != 0
    assert f"{VARIABLE} names {tmp_path}, which has neither" in done.stdout + done.stderr


@pytest.mark.slow
def test_the_kernels_alone_are_carried_where_no_plugins_were_built(tree, tmp_path):
    """Without TensorRT's headers the PyTorch operators still work from a wheel."""
    shutil.copy(kernel_library_path(), tmp_path)
    with ZipFile(the_wheel(tree, build(tree, str(tmp_path)))) as content:
        assert [name for name in content.namelist() if name.endswith(".so")] == [f"actvar/lib/{KERNELS_FILE}"]


@pytest.mark.parametrize(
    ("there", "named", "found"),
    [
        ((LIBRARY_FILE, KERNELS_FILE), LIBRARY_FILE, KERNELS_FILE),
        ((LIBRARY_FILE,), LIBRARY_FILE, LIBRARY_FILE),
        (("other.so",), "other.so", "other.so"),
        ((LIBRARY_FILE,), "", None),
    ],
)
def test_kernels_are_found_beside_or_in_the_named_plugin_library(tmp_path, monkeypatch, there, named, found):
    """One variable says where both are; empty, it says to do without."""
    for name in there:
        (tmp_path / name).touch()
    monkeypatch.setenv(PLUGIN_VARIABLE, str(tmp_path / named) if named else "")
    assert kernel_library() == (tmp_path / found if found else None)


def test_a_name_of_no_file_is_said(tmp_path, monkeypatch):
    """Falling back to another library would hide a slip of the pen."""
    monkeypatch.setenv(PLUGIN_VARIABLE, str(tmp_path / "none.so"))
    with pytest.raises(UsageError, match="which is no file"):
        kernel_library()


@pytest.mark.parametrize("places", [("lib", "build/plugins"), ("build/plugins", "build"), ("build",)])
def test_the_first_place_that_has_a_library_counts(tmp_path, monkeypatch, places):
    """Installed, then of a build of the whole, then of a build of plugins/ alone."""
    monkeypatch.delenv(PLUGIN_VARIABLE, raising=False)
    package = tmp_path / "actvar"
    monkeypatch.setattr(plugin_library.actvar, "__file__", str(package / "__init__.py"))
    files = [(package if place == "lib" else tmp_path) / place / KERNELS_FILE for place in places]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert kernel_library() == files[0]
    assert plugin_library.plugin_library() is None
