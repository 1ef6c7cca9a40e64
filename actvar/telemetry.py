"""What the libraries below would tell others, switched off: nothing here contacts a host that nobody asked for.

By each library's own variable, and only where the user has not set it: whoever sets one, decides. The doors of the
project call `switch_off` before they import a library: the command line, the Python API, and whatever opens an engine.
"""

import os

OFF = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime from 1.29 keeps a device id in the user's cache, and a queue of events
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Variable and value, of every library that the project may load and that reports on its use. PyTorch and accelerate
report nothing by themselves."""


def switch_off() -> None:
    """Set what is not set yet, for this process and those that it starts."""
    for name, value in OFF.items():
        os.environ.setdefault(name, value)
