"""Pictures behind a port: `create_app` makes an HTTP server's app of a pipeline, in the words of OpenAI's API.

    from actvar import Pipeline
    from actvar.serve import create_app

    app = create_app(Pipeline.from_pretrained("actvar-mini", batch_size=8))

Importing this package imports no web framework: `create_app` is loaded when it is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actvar.serve.app import create_app

__all__ = ["create_app"]


def __getattr__(name: str) -> Any:
    """The door, and what it needs."""
    if name == "create_app":
        from actvar.serve.app import create_app

        return create_app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
