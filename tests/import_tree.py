"""Reads which module of the project imports what, from the source text: nothing is imported.

Knows where the packages lie and how Python resolves an import statement; the rules are in the tests that use it.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# The package-dir of pyproject.toml. The links in actvar/ lead to the same files and are not followed.
PACKAGES = {
    "actvar": "actvar",
    **{f"actvar.{room}": room for room in ("plugins", "runtime", "export", "serve", "benchmarks", "cli")},
}


@dataclass(frozen=True)
class Import:
    """One name that a module imports, absolute. `from a import b` counts as both `a` and `a.b`.

    `at_load` is false inside functions and under `if TYPE_CHECKING`: loading the module does not run it.
    """

    name: str
    line: int
    at_load: bool


@dataclass(frozen=True)
class Module:
    """One source file under the name that it installs as."""

    name: str
    path: Path
    imports: tuple[Import, ...]


def read_tree(root: Path = ROOT) -> dict[str, Module]:
    """Every module of the three packages by name."""
    tree = {}
    for package, folder in PACKAGES.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join((package, *(parts[:-1] if is_package else parts)))
            parent = name if is_package else name.rpartition(".")[0]
            source = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
            tree[name] = Module(name, path.relative_to(root), tuple(imports_of(source, parent)))
    return tree


def imports_of(node: ast.AST, parent: str, at_load: bool = True) -> Iterator[Import]:
    """The imports below a node; `parent` is the package that a relative import starts from."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, node.lineno, at_load)
    elif isinstance(node, ast.ImportFrom):
        origin = absolute(node, parent)
        yield Import(origin, node.lineno, at_load)
        for alias in node.names:
            yield Import(f"{origin}.{alias.name}", node.lineno, at_load)
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for child in node.body:
            yield from imports_of(child, parent, at_load=False)
        for child in node.orelse:
            yield from imports_of(child, parent, at_load)
    else:
        runs = at_load and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from imports_of(child, parent, runs)


def absolute(node: ast.ImportFrom, parent: str) -> str:
    """The module that `from ... import` names, with leading dots resolved."""
    if not node.level:
        return node.module or ""
    base = parent.split(".")[: len(parent.split(".")) - (node.level - 1)]
    return ".".join([*base, *([node.module] if node.module else [])])


def within(name: str, packages: set[str]) -> bool:
    """Whether a dotted name is one of the packages or lies in one."""
    return any(name == package or name.startswith(package + ".") for package in packages)
