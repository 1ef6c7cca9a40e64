"""`actvar-trt`, the console command: its commands, and how errors leave it.

Each command imports what it needs when it runs, so that `--help` is quick and drawing needs neither PyTorch nor ONNX.
Exit codes: 0; 1 for what cannot be done; 2 for a wrong option; 130 for Ctrl-C, 143 for SIGTERM.
"""

import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from actvar import __version__
from actvar.cli import (
    bench,
    bench_kernels,
    bind,
    build,
    classes,
    doctor,
    edit,
    encode,
    evaluate,
    explain,
    export_bundle,
    flops,
    generate,
    inspect_bundle,
    parity,
    sample,
    serve,
    study,
    train,
    train_decoder,
    train_own,
    train_stages,
    triton,
)
from actvar.cli.old_spellings import NEW_MEANINGS, new_spelling
from actvar.cli.places import lend_the_cache
from actvar.cli.signature import spread
from actvar.errors import ActVARError, shown
from actvar.telemetry import switch_off

NAME = "actvar-trt"
INTERRUPTED, TERMINATED = 130, 143
_USAGE_ERROR: Any = typer.BadParameter.__bases__[0]  # of typer's own parser; it exports only the derived class


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{NAME} {__version__}")
        raise typer.Exit


def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Draw pictures with VAR and ActVAR through ONNX graphs, one for each scale."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _app() -> typer.Typer:
    """All commands, in groups; --help shows them in this order."""
    app = typer.Typer(
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog="First picture: actvar-trt generate --class 88",
    )
    app.callback(invoke_without_command=True)(_options)
    _add(app, "Draw", generate.generate, generate.EXAMPLES)
    _add(app, "Draw", edit.edit, edit.EXAMPLES)
    _add(app, "Draw", sample.sample, sample.EXAMPLES)
    _add(app, "Draw", explain.explain, explain.EXAMPLES)
    _add(app, "Draw", classes.classes, classes.EXAMPLES)
    _add(app, "Draw", doctor.doctor, doctor.EXAMPLES)
    _add(app, "Deploy", export_bundle.export, export_bundle.EXAMPLES)
    _add(app, "Deploy", build.build, build.EXAMPLES)
    _add(app, "Deploy", bind.bind, bind.EXAMPLES)
    _add(app, "Deploy", inspect_bundle.inspect, inspect_bundle.EXAMPLES)
    _add(app, "Deploy", parity.parity, parity.EXAMPLES)
    _add(app, "Deploy", serve.serve, serve.EXAMPLES)
    _add(app, "Deploy", triton.triton, triton.EXAMPLES)
    _add(app, "Train", encode.encode, encode.EXAMPLES)
    _add(app, "Measure", evaluate.evaluate, evaluate.EXAMPLES)
    _add(app, "Measure", flops.flops, flops.EXAMPLES)
    _add(app, "Measure", study.study, study.EXAMPLES)

    training = typer.Typer(no_args_is_help=True, help=train.HELP, epilog=train.EXAMPLES)
    _add(training, train.ANY, train_stages.stage1, train_stages.STAGE1_EXAMPLES)
    _add(training, train.ANY, train_stages.stage2, train_stages.STAGE2_EXAMPLES)
    _add(training, train.ANY, train_decoder.decoder, train_decoder.EXAMPLES)
    _add(training, train.NOTHING, train.mini, train.MINI_EXAMPLES)
    _add(training, train.NOTHING, train_own.vqvae, train_own.VQVAE_EXAMPLES)
    _add(training, train.NOTHING, train_own.var, train_own.VAR_EXAMPLES)
    app.add_typer(training, name="train", rich_help_panel="Train")

    benching = typer.Typer()
    benching.callback(invoke_without_command=True, **_words(bench.bench, bench.EXAMPLES))(spread(bench.bench))
    _add(benching, "Commands", bench_kernels.kernels, bench_kernels.EXAMPLES)
    app.add_typer(benching, name="bench", rich_help_panel="Measure")
    return app


def _add(app: typer.Typer, panel: str, command: Callable[..., None], examples: str) -> None:
    app.command(rich_help_panel=panel, **_words(command, examples))(spread(command))


def _words(command: Callable[..., None], examples: str) -> dict[str, Any]:
    """What the help says, each paragraph on a line of its own: it is folded to fit the terminal."""
    texts = {"help": command.__doc__ or "", "epilog": examples}
    return {what: "\n\n".join(" ".join(part.split()) for part in text.split("\n\n")) for what, text in texts.items()}


app = _app()


def main() -> None:
    """Run the command line and leave the process with its exit code; a user's mistake is a message, not a traceback."""
    switch_off()
    lend_the_cache()
    _print_what_can_be_printed()
    stopped = _terminate_as_ctrl_c_does()
    command = typer.main.get_command(app)
    try:
        code = command.main(prog_name=NAME, standalone_mode=False) or 0
        if code == INTERRUPTED:  # typer 0.29 makes this of Ctrl-C, earlier ones an Abort
            raise KeyboardInterrupt
        sys.stdout.flush()  # what was printed, is; after this nobody would say that it is not
    except (KeyboardInterrupt, typer.Abort):
        code = _fail("Stopped; nothing half-written was left.", INTERRUPTED)
    except OSError as error:
        code = _fail(_refused_by_the_system(error), 1)
    except ActVARError as error:
        code = _fail(str(error), error.exit_code)
    except MemoryError:
        code = _fail("There is not enough memory. Take a smaller --batch-size, or a smaller model.", 1)
    except _USAGE_ERROR as error:
        path = error.ctx.command_path if error.ctx else NAME
        wrong = _what_is_wrong(error, path).rstrip(".")  # nothing, where the help was shown for want of arguments
        code = _fail(f"{wrong}. See `{path} --help`.", error.exit_code) if wrong else error.exit_code
    except BaseException:
        if not stopped:
            raise
    if stopped:  # whatever a library has made of it on the way
        code = _fail("Stopped by SIGTERM; nothing half-written was left.", TERMINATED)
    sys.exit(code)


class Terminated(BaseException):
    """The process was asked to end: as Ctrl-C does, it cleans up first."""


def _terminate_as_ctrl_c_does() -> list[int]:
    """Let SIGTERM raise, where the command is: returns what the signal will be put into."""
    stopped: list[int] = []

    def stop(number: int, _: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whoever asks again gets it at once
        stopped.append(number)
        raise Terminated

    signal.signal(signal.SIGTERM, stop)
    return stopped


def _print_what_can_be_printed() -> None:
    """A sign that the output's encoding lacks becomes a question mark, and ends nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _refused_by_the_system(error: OSError) -> str:
    """What the system refused that nobody foresaw, and what may help."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is None and error.errno in (errno.ENOSPC, errno.EPIPE, errno.EIO, errno.EBADF):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would say it once more, as it ends
        return f"What this command prints cannot be written: {reason}. Print it elsewhere."
    if error.filename is None and error.errno == errno.ENOENT:  # `tempfile` says so, and names all that it has tried
        return f"{reason}. Set TMPDIR to a folder that can be written."
    named = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    help_of = {
        errno.EACCES: "Check its permissions, or name another",
        errno.EPERM: "Check its permissions, or name another",
        errno.ENAMETOOLONG: "Give it a shorter name",
        errno.ENOSPC: f"Make room, or set TMPDIR to a folder with room (now {os.environ.get('TMPDIR', '/tmp')})",
        errno.EROFS: "Name a place that can be written",
    }
    return f"{named}{reason}. {help_of.get(error.errno or 0, 'Name another, or see to what the system says')}."


def _what_is_wrong(error: Any, path: str) -> str:
    """The parser's message, or what an option that was typed is called now."""
    said = str(error.format_message())
    if option := getattr(error, "option_name", None):  # there is no such option
        return new_spelling(path.removeprefix(NAME).strip(), option) or said
    if parameter := getattr(error, "param", None):  # it does not take this value
        return NEW_MEANINGS.get(parameter.opts[0], said)
    return said


def _fail(message: str, code: int) -> int:
    typer.secho("Error: ", fg=typer.colors.RED, bold=True, err=True, nl=False)
    typer.echo("\n".join(shown(line, 4000) for line in message.splitlines()), err=True)
    return code
