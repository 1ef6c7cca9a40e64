"""`actvar-trt inspect`: what a bundle holds, and what drawing with it costs."""

from collections.abc import Iterator
from pathlib import Path

from actvar.bundle.manifest import PLANS_FOLDER, read_manifest, verify
from actvar.bundle.plans import BUILD_AGAIN, PlanManifest, read_plans
from actvar.bundle.report import BundleReport
from actvar.cli.options import BundleArgument, JsonOption
from actvar.files import read_verified
from actvar.reports import check_json_option, deliver

EXAMPLES = """Examples:

actvar-trt inspect bundles/d16

actvar-trt inspect bundles/actvar-d20-fp16 --json d20.json"""


def inspect(bundle: BundleArgument, *, json_file: JsonOption = None) -> None:
    """Show what a bundle holds: model, files, plans, rates, and the operations of every scale.

    Every file is held against its manifest first.
    """
    check_json_option(json_file)
    manifest = read_manifest(bundle)
    verify(bundle, manifest)
    report = BundleReport(bundle, manifest, list(_verified_plans(bundle)))
    deliver(report.parts(), report.to_json(), json_file)


def _verified_plans(bundle: Path) -> Iterator[PlanManifest]:
    """Of every plan folder."""
    for folder in sorted((bundle / PLANS_FOLDER).glob("*/")):
        plans = read_plans(folder)
        for spec in plans.plans.values():
            for entry in (spec.entry, spec.log):
                read_verified(folder / entry.file, entry, BUILD_AGAIN)
        yield plans
