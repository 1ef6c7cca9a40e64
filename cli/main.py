"""`actvar-trt`, the console command: its commands, and how errors leave it.

Each command imports what it needs when it runs, so that `--help` is quick and drawing needs neither PyTorch nor ONNX.
Exit codes: 0; 1 for what cannot be done; 2 for a wrong option; 130 for Ctrl-C.
"""

import sys
from typing import Annotated, Any

import typer

from actvar import __version__
from actvar.cli import (
    bench,
    bench_kernels,
    bind,
    build,
    doctor,
    encode,
    evaluate,
    explain,
    export_bundle,
    flops,
    generate,
    inspect_bundle,
    parity,
    study,
)
from actvar.cli.train import app as train_app
from actvar.errors import ActVARError
from actvar.telemetry import switch_off

NAME = "actvar-trt"
INTERRUPTED = 130
_USAGE_ERROR: Any = typer.BadParameter.__bases__[0]  # of typer's own parser; it exports only the derived class

app = typer.Typer(
    rich_markup_mode="rich",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="First picture: actvar-trt generate --class 88",
)
app.command(epilog=generate.EXAMPLES)(generate.generate)
app.command(epilog=export_bundle.EXAMPLES)(export_bundle.export)
app.command(epilog=build.EXAMPLES)(build.build)
app.command(epilog=bind.EXAMPLES)(bind.bind)
app.command(epilog=inspect_bundle.EXAMPLES)(inspect_bundle.inspect)
app.command(epilog=parity.EXAMPLES)(parity.parity)
app.command(epilog=explain.EXAMPLES)(explain.explain)
app.command(epilog=flops.EXAMPLES)(flops.flops)
app.command(epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command(epilog=study.EXAMPLES)(study.study)
bench_app = typer.Typer()
bench_app.callback(invoke_without_command=True, epilog=bench.EXAMPLES)(bench.bench)
bench_app.command(epilog=bench_kernels.EXAMPLES)(bench_kernels.kernels)
app.add_typer(bench_app, name="bench")
app.command(epilog=doctor.EXAMPLES)(doctor.doctor)
app.command(epilog=encode.EXAMPLES)(encode.encode)
app.add_typer(train_app, name="train")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{NAME} {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Draw pictures with VAR and ActVAR through ONNX graphs, one for each scale."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command line and leave the process with its exit code; a user's mistake is a message, not a traceback."""
    switch_off()
    command = typer.main.get_command(app)
    try:
        code = command.main(prog_name=NAME, standalone_mode=False) or 0
        if code == INTERRUPTED:  # typer 0.29 makes this of Ctrl-C, earlier ones an Abort
            raise KeyboardInterrupt
    except (KeyboardInterrupt, typer.Abort):
        code = _fail("Stopped; nothing half-written was left.", INTERRUPTED)
    except ActVARError as error:
        code = _fail(str(error), error.exit_code)
    except MemoryError:
        code = _fail("There is not enough memory. Take a smaller --batch-size, or a smaller model.", 1)
    except _USAGE_ERROR as error:
        path = error.ctx.command_path if error.ctx else NAME
        code = _fail(f"{error.format_message().rstrip('.')}. See `{path} --help`.", error.exit_code)
    sys.exit(code)


def _fail(message: str, code: int) -> int:
    typer.secho("Error: ", fg=typer.colors.RED, bold=True, err=True, nl=False)
    typer.echo(message, err=True)
    return code
