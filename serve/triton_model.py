"""The model of Triton's Python backend that draws with a bundle: what a repository's `model.py` imports.

Triton's own TensorRT backend cannot hold the weights that all engines of a bundle share, nor keep the KV cache between
two of them: the whole chain is one model. Triton puts requests together into batches; a picture does not depend on
which others are in its own, so no request's pictures change by a byte.

Letters in shapes: B pictures of a request, H height and W width of a picture.
"""

import ctypes
import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from actvar.arguments import chosen_sampling
from actvar.config import Sampling
from actvar.errors import ActVARError, UsageError
from actvar.runtime.pictures import Order, SeededOrder, require_orders
from actvar.runtime.sources import open_bundle

IDENTITY = ("class_id", "seed", "number")
CHOICES = ("guidance_scale", "top_k", "top_p")

_TAKEN = ctypes.create_string_buffer(b"used_dltensor")

Asked = tuple[list[Order], list[Sampling]]
"""Of one request: its pictures, and how each is drawn."""


class TritonPythonModel:
    """class_id [B, 1], seed and number, to picture [B, H, W, 3] uint8; see `config.pbtxt`."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle that config.pbtxt names, on this instance's device."""
        self._triton: Any = import_module("triton_python_backend_utils")  # only the server has it
        config = json.loads(args["model_config"])
        given = {name: value["string_value"] for name, value in config["parameters"].items()}
        if args["model_instance_kind"] == "GPU":  # an instance is a process, and sees one GPU
            os.environ["CUDA_VISIBLE_DEVICES"] = args["model_instance_device_id"]
        device: Any = given["device"]
        backend: Any = given["backend"]
        batch, threads = int(config["max_batch_size"]), int(given["threads"])
        self._source = open_bundle(Path(given["bundle"]), backend, device, batch, threads)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Draw the pictures of all requests together, and give each request its own, or what is wrong with it."""
        triton = self._triton
        asked = [self._asked(request) for request in requests]
        waiting: dict[Sampling, list[tuple[int, Order]]] = {}
        drawn: list[list[np.ndarray]] = [[] for _ in requests]
        for place, each in enumerate(asked):
            for order, sampling in zip(*each, strict=True) if isinstance(each, tuple) else ():
                waiting.setdefault(sampling, []).append((place, order))
        try:
            for sampling, orders in waiting.items():
                pictures = self._source.draw((order for _, order in orders), sampling)
                for (place, _), picture in zip(orders, pictures, strict=True):
                    drawn[place].append(picture.pixels_HW3)
        except ActVARError as error:
            asked = [each if isinstance(each, str) else str(error) for each in asked]
        return [
            triton.InferenceResponse([], triton.TritonError(each))
            if isinstance(each, str)
            else triton.InferenceResponse([self._tensor(np.stack(pictures))])
            for each, pictures in zip(asked, drawn, strict=True)
        ]

    def _asked(self, request: Any) -> Asked | str:
        """What a request asks for, or what is wrong with it."""
        model = self._source.model
        given = {name: self._values(request, name) for name in (*IDENTITY, *CHOICES)}
        class_ids = given["class_id"] or []
        counts = {name: len(values) for name, values in given.items() if values is not None}
        if any(count != len(class_ids) for count in counts.values()):
            return f"All inputs must have one value for each picture, got {counts}."
        zeros = [0] * len(class_ids)
        seeds, numbers = (given[name] or zeros for name in ("seed", "number"))
        orders: list[Order] = [SeededOrder(*each) for each in zip(class_ids, numbers, seeds, strict=True)]
        try:
            require_orders(model, orders, 0)
            rows = [[(given[name] or [None] * len(orders))[i] for name in CHOICES] for i in range(len(orders))]
            return orders, [chosen_sampling(model, *row) for row in rows]
        except UsageError as error:
            return str(error)

    def _tensor(self, pictures_BHW3: np.ndarray) -> Any:
        """The output. Triton marks what it has taken by a name that numpy does not know.

        numpy would print a traceback for each request then: the name that it knows is put in its place.
        """
        capsule: Any = pictures_BHW3.__dlpack__()
        tensor = self._triton.Tensor.from_dlpack("picture", capsule)
        ctypes.pythonapi.PyCapsule_SetName(ctypes.py_object(capsule), _TAKEN)
        return tensor

    def _values(self, request: Any, name: str) -> list[Any] | None:
        """An input's values; None where it was left out. Triton's own `as_numpy` is wrong with numpy 2."""
        tensor = self._triton.get_input_tensor_by_name(request, name)
        return None if tensor is None else np.from_dlpack(tensor).ravel().tolist()
