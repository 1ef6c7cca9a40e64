"""What pyproject.toml cannot say: a wheel that carries the compiled library, made when ACTVAR_WHEEL_LIBRARIES names a
folder with one, as `make wheel` does. Without it the wheel holds Python alone and installs anywhere.

The library is linked to no Python and no other package, so such a wheel fits every Python 3 on its platform.
"""

import os
import shutil
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

VARIABLE = "ACTVAR_WHEEL_LIBRARIES"
# The first that is there is carried: the plugin library holds the kernels too.
NAMES = ("libactvar_plugins.so", "libactvar_kernels.so")


def library() -> Path | None:
    """The library to carry, or None for a wheel of Python alone."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        return None
    found = [path for path in (Path(folder, name) for name in NAMES) if path.is_file()]
    if not found:
        raise SystemExit(
            f"{VARIABLE} names {folder}, which has neither {' nor '.join(NAMES)}. Build them, or unset it."
        )
    return found[0]


class WithLibrary(Distribution):
    """Tells setuptools whether there is compiled code."""

    def has_ext_modules(self) -> bool:
        return library() is not None


class BuildPy(build_py):
    """Puts the library where `actvar.plugins.library` looks for it."""

    def run(self) -> None:
        super().run()
        target = Path(self.build_lib, "actvar", "lib")
        shutil.rmtree(target, ignore_errors=True)  # an earlier build's, which this wheel would carry too
        if carried := library():
            target.mkdir(parents=True)
            shutil.copyfile(carried, target / carried.name)


class BdistWheel(bdist_wheel):
    """Names the platform, and no version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        *_, platform = super().get_tag()
        return "py3", "none", platform


setup(distclass=WithLibrary, cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel})
