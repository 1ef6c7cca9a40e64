"""`actvar-trt flops`: operations of one picture by scale and part, dense and active; or those of the paper's tables."""

from dataclasses import replace
from typing import Annotated

from actvar.cli.model_choice import Rates, Size, guided_until
from actvar.cli.options import GuidanceUntilOption, JsonOption, decoder_option, model_option
from actvar.config import Decoder
from actvar.errors import UsageError
from actvar.evaluation.flops_report import FlopsReport, PaperReport
from actvar.evaluation.paper_savings import PAPER_ROWS
from actvar.reports import check_json_option, deliver

EXAMPLES = """Examples:

actvar-trt flops --depth 20

actvar-trt flops --depth 20 --token-rates 0.75,0.5 --expert-rates 0.75 --json flops.json

actvar-trt flops --preset mini --token-rates 0.5 --expert-rates 1

actvar-trt flops --depth 16 --guidance-free --expert-choice static --decoder small

actvar-trt flops --paper"""

_DEFAULT_DEPTH = 20


def flops(
    *,
    size: Size,
    rates: Rates,
    guidance_until: GuidanceUntilOption = None,
    decoder: Annotated[Decoder, decoder_option("small counts a small one of standard size.", "full")] = "full",
    paper: Annotated[
        bool, model_option(help="In place of a model: all rows of the paper's Tables 1, 2, 3 and 6.")
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Count the operations of one picture, by scale and part, of an ActVAR and of its dense model.

    Counted from the shapes alone: nothing is loaded and nothing is drawn. Without --preset or --depth it is d20.
    """
    check_json_option(json_file)
    report: FlopsReport | PaperReport
    if paper:
        if size != Size() or rates.are_given or guidance_until is not None or decoder != "full":
            raise UsageError("--paper counts the paper's own models and rates. Leave the other options out.")
        report = PaperReport(PAPER_ROWS)
    else:
        size = size if size.is_given else replace(size, depth=_DEFAULT_DEPTH)
        size.refuse_beside(None, None, rates)
        model = guided_until(size.model(rates, decoder)[1], guidance_until)
        other = model.activation.other_choices if model.activation else ""
        name = f"{'VAR' if size.dense else 'ActVAR'}-{size.name}"
        report = FlopsReport(f"{name} ({other})" if other else name, model)
    deliver(report.tables(), report.to_json(), json_file)
