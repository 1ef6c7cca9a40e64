"""The recipe of the image: what goes into it is enough to install from, and what comes out runs as a user of its own.

Nothing here builds an image. What lints it: `npx dockerfile-utils lint Dockerfile`.
"""

import json
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

import pytest
from import_tree import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LINES = (
    re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ").splitlines()
)
INSTRUCTIONS = [tuple(line.split(None, 1)) for line in LINES if line.strip()]


def given(instruction: str) -> list[str]:
    return [rest for name, rest in INSTRUCTIONS if name == instruction]


def is_left_out(path: PurePosixPath, patterns: list[str]) -> bool:
    """By .dockerignore: the last pattern counts that fits the path, or a folder that it lies in."""
    left_out = False
    places = [path, *path.parents][:-1]
    for pattern in patterns:
        wanted = pattern.removeprefix("!")
        anywhere = wanted.removeprefix("**/")
        fits = any(fnmatch(p.name, anywhere) if anywhere != wanted else fnmatch(str(p), wanted) for p in places)
        left_out = (not pattern.startswith("!")) if fits or wanted == "*" else left_out
    return left_out


def test_what_goes_in_is_all_that_an_installation_needs(tmp_path: Path):
    """A wheel made of it holds every module and every asset of the checkout, and the image gets no more than that."""
    pytest.importorskip("setuptools", minversion="77", reason="needs the setuptools that pyproject.toml asks for")
    patterns = [x for x in (ROOT / ".dockerignore").read_text().splitlines() if x and not x.startswith("#")]
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("needs the checkout's own list of files")
    files = [PurePosixPath(line) for line in listed.stdout.splitlines()]
    sent = [path for path in files if not is_left_out(path, patterns)]
    assert not [path for path in sent if path.parts[0] in ("tests", "docs", ".ci") or "results" in path.parts]
    for path in sent:
        (tmp_path / "context" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / "context" / path, follow_symlinks=False)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*pip, "--no-index", "-w", tmp_path, tmp_path / "context"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    held = {name.removeprefix("actvar/") for name in ZipFile(wheel).namelist()}
    rooms = ("actvar", "benchmarks", "cli", "export", "plugins", "runtime", "serve")
    modules = {path for path in files if path.suffix == ".py" and path.parts[0] in rooms}
    wanted = {str(path).removeprefix("actvar/") for path in modules | {p for p in files if "assets" in p.parts}}
    assert not {name for name in wanted if "kernels/" not in name} - held


def test_the_image_runs_as_a_user_of_its_own_and_keeps_no_cache():
    """Its last stage has a number for a user, which orchestrators can check, and a port that this user may take."""
    bases = [base.split() for base in given("FROM")]
    stages = {base[2] for base in bases if len(base) == 3}
    assert all(":" in base[0] or base[0] in stages or base[0] == "${VARIANT}" for base in bases), (
        "a base has its release"
    )
    assert INSTRUCTIONS[-1][0] == "CMD" and bases[-1] == ["python"]
    assert given("USER") == ["10001:10001"] and int(given("EXPOSE")[0]) > 1023
    for run in given("RUN"):
        assert ("apt-get" in run) == ("rm -rf /var/lib/apt/lists/*" in run) and ("pip install" in run) <= (
            "--no-cache-dir" in run
        )
    assert [json.loads(given(name)[0]) for name in ("ENTRYPOINT", "CMD")] == [
        ["actvar-trt"],
        ["serve", "--host", "0.0.0.0"],
    ]
    check = json.loads(given("HEALTHCHECK")[0].partition("CMD ")[2])
    compile(check[2], "HEALTHCHECK", "exec")


def test_each_variant_installs_extras_that_there_are():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = [text.partition("=")[2].split(",") for text in given("ENV") if text.startswith("ACTVAR_EXTRAS")]
    assert len(named) == 2 and all({*extras} >= {*each} >= {"serve"} for each in named)
