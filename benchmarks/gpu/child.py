"""The process of one case: runs it if all that it needs is here, and leaves its answer as far as it has come.

    python -m actvar.benchmarks.gpu.child STEP CASE --answer FILE --bundles FOLDER --scratch FOLDER --out FOLDER

Every step is a function of a case, its places and its report, imported once its packages were found.
"""

import argparse
import traceback
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from actvar.benchmarks.gpu.case import Places, Report, Skipped
from actvar.benchmarks.gpu.step_runner import DONE, FAILED, SKIPPED, Case
from actvar.benchmarks.gpu.steps import STEPS
from actvar.errors import ActVARError
from actvar.runtime.machine import first_gpu


def main() -> None:
    """Run the case that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step")
    parser.add_argument("case")
    parser.add_argument("--answer", type=Path, required=True)
    parser.add_argument("--bundles", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--official-var", type=Path)
    given = parser.parse_args()
    report, places = Report(given.answer), Places(given.bundles, given.scratch, given.out, given.official_var)
    try:
        (step,) = (step for step in STEPS if step.name == given.step)
        (case,) = (case for case in step.cases if case.name == given.case)
        require(case, places)
        module, _, function = (step.code or f"{step.name}:run").partition(":")
        getattr(import_module(f"actvar.benchmarks.gpu.{module}"), function)(case.name, places, report)
        report.end(DONE)
    except Skipped as skipped:
        report.end(SKIPPED, reason=str(skipped))
    except ActVARError as error:
        report.end(FAILED, error=str(error))
    except Exception:  # of any library: the answer is what it said
        report.end(FAILED, error=traceback.format_exc(limit=-8))


def require(case: Case, places: Places) -> None:
    """Go on only where everything is that a case needs.

    Raises:
        Skipped: something is missing; all of it is named.
    """
    missing = ["NVIDIA GPU"] if case.gpu and first_gpu() is None else []
    missing += [f"package {package}" for package in case.packages if not _is_there(package)]
    missing += [f"bundle {bundle}" for bundle in case.bundles if not places.bundle(bundle).is_dir()]
    if missing:
        raise Skipped(f"There is no {', no '.join(missing)}.")


def _is_there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


if __name__ == "__main__":
    main()
