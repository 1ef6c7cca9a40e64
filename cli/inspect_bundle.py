"""`actvar-trt inspect`: what a bundle holds, and what drawing with it costs."""

from actvar.bundle.report import bundle_report
from actvar.cli.options import BundleArgument, JsonOption
from actvar.reports import check_json_option, deliver

EXAMPLES = """Examples:

actvar-trt inspect bundles/d16

actvar-trt inspect bundles/actvar-d20-fp16 --json d20.json"""


def inspect(bundle: BundleArgument, *, json_file: JsonOption = None) -> None:
    """Show what a bundle holds: model, files, plans, rates, and the operations of every scale.

    Every file is held against its manifest first.
    """
    check_json_option(json_file)
    report = bundle_report(bundle)
    deliver(report.parts(), report.to_json(), json_file)
