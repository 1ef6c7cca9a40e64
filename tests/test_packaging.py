"""What an installation gets: every package, its data, and every dependency that it imports."""

import sys
from importlib import metadata
from pathlib import Path

import pytest
from import_tree import PACKAGES, ROOT, Module, read_tree, within
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it on Python 3.10

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def declared(*extras: str) -> set[str]:
    """The distributions that the project's dependencies and these extras name."""
    lines = list(PYPROJECT["project"]["dependencies"])
    for extra in extras:
        lines += PYPROJECT["project"]["optional-dependencies"][extra]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def undeclared(modules: list[Module], allowed: set[str]) -> list[str]:
    """Imports, anywhere in the modules, of what none of the allowed distributions provides.

    An engine that is not installed here counts as provided by the distribution of its own name.
    """
    providers = metadata.packages_distributions()
    found = []
    for module in modules:
        for name in {f.name.partition(".")[0] for f in module.imports} - sys.stdlib_module_names - {"actvar"}:
            if not {canonicalize_name(provider) for provider in providers.get(name, (name,))} & allowed:
                found.append(f"{module.path} imports {name}")
    return found


def test_every_package_is_listed():
    """A package that pyproject.toml does not name works in a checkout and is missing from the wheel."""
    folders = {
        ".".join((package, *path.parent.relative_to(ROOT / folder).parts))
        for package, folder in PACKAGES.items()
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == folders


def test_every_module_lies_in_a_package():
    """A folder without __init__.py is importable from a checkout, and not packaged."""
    sources = [path for folder in PACKAGES.values() for path in (ROOT / folder).rglob("*.py")]
    assert sources and all((path.parent / "__init__.py").exists() for path in sources)


def test_the_data_of_the_package_matches_its_patterns():
    """Assets and the typing marker: a pattern that matches nothing ships nothing, and a file outside them is lost."""
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["actvar"]
    matched = {path for pattern in patterns for path in (ROOT / "actvar").glob(pattern)}
    assets = ROOT / "actvar" / "assets"
    assert matched == {ROOT / "actvar" / "py.typed", *(path for path in assets.rglob("*") if path.is_file())}
    assert any(path.suffix == ".safetensors" for path in matched)


@pytest.mark.parametrize(
    ("package", "extras"),
    [
        ("actvar.runtime", ("cpu", "gpu", "tensorrt-rtx")),
        ("actvar.export", ("cpu", "export")),
        ("actvar.serve", ("cpu", "ray", "serve")),
        ("actvar", ("train", "evaluate", "hub", "plot")),
    ],
)
def test_what_is_imported_is_declared(package, extras):
    """Each part with the extra that a user installs for it; the environment of the tests would hide a lack.

    The torch backend of the runtime is the export extra's, where the oracle it compares with lives.
    """
    others = set(PACKAGES) - {package, "actvar"}
    modules = [
        module
        for module in read_tree().values()
        if within(module.name, {package})
        and not within(module.name, others)
        and not module.name.startswith("actvar.runtime.backends.torch")
    ]
    assert len(modules) > 1
    assert undeclared(modules, declared(*extras)) == []


def test_an_undeclared_import_is_found(tmp_path):
    """The check itself: pytest is installed here and is no dependency of the runtime."""
    for folder in PACKAGES.values():
        (tmp_path / folder).mkdir()
    (tmp_path / "runtime" / "cli.py").write_text("import typer\ndef later():\n    import pytest")
    modules = list(read_tree(tmp_path).values())
    assert undeclared(modules, declared()) == [f"{Path('runtime/cli.py')} imports pytest"]
