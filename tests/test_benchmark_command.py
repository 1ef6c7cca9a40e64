"""How the commands of `benchmarks/` end."""

import pytest

from actvar.benchmarks.command import end_with
from actvar.errors import BundleError, UsageError


@pytest.mark.parametrize(("error", "code"), [(BundleError("no such bundle"), 1), (UsageError("--count is 0"), 2)])
def test_a_users_mistake_is_a_message_and_an_exit_code(error, code, capsys):
    """As on the command line of `actvar-trt`."""

    def main() -> int:
        raise error

    with pytest.raises(SystemExit) as left:
        end_with(main)
    assert left.value.code == code
    assert capsys.readouterr().err == f"Error: {error}\n"


@pytest.mark.parametrize("answer", [None, 0, 3])
def test_what_a_command_returns_is_its_exit_code(answer):
    """None is success."""
    with pytest.raises(SystemExit) as left:
        end_with(lambda: answer)
    assert left.value.code == answer
