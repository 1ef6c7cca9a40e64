"""The errors that a user may meet. The command line prints their text and exits with their code."""


class ActVARError(Exception):
    """Something given to the project cannot be used: one sentence of what is wrong, one of what to do."""

    exit_code = 1


class UsageError(ActVARError):
    """An option or argument is wrong, before any file was touched."""

    exit_code = 2


class CheckpointError(ActVARError):
    """A checkpoint is not what it should be."""


class BundleError(ActVARError):
    """A bundle is incomplete, altered, or not for this use."""


class EngineError(ActVARError):
    """An engine's library is not there, or failed at its work."""


class DataError(ActVARError):
    """A folder of pictures or of their tokens is not what it should be."""
