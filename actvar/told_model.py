"""What a model says of itself before it is opened: a bundle by its manifest, a checkpoint of ours by its metadata.

Neither PyTorch nor an engine is needed; nothing is held against the tensors yet.
"""

import json

from safetensors import SafetensorError, safe_open

from actvar.bundle.manifest import read_manifest
from actvar.config import ModelConfig
from actvar.naming import NamedModel


def told_config(named: NamedModel) -> ModelConfig | None:
    """The configuration, or None where the file tells none: an official checkpoint, or no checkpoint at all.

    Raises:
        BundleError: the bundle's manifest cannot be used.
    """
    if named.bundle:
        return read_manifest(named.bundle).model
    assert named.checkpoint
    try:
        with safe_open(named.checkpoint.path, framework="numpy") as file:
            return ModelConfig.from_dict(json.loads((file.metadata() or {}).get("config", "")))
    except (SafetensorError, OSError, ValueError, ArithmeticError, RecursionError):
        return None
