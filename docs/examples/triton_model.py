"""A model of Triton Inference Server's Python backend that draws with a bundle: `model.py` of a model repository.

    models/actvar/config.pbtxt
    models/actvar/1/model.py        this file

The server's Python needs `pip install actvar-trt` with the extra of the backend. Triton's own TensorRT backend cannot
hold the weights that all engines of a bundle share, nor keep the KV cache between two of them: the chain is the model.

Letters in shapes: B pictures, H height and W width of a picture.
"""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from actvar.config import Sampling
from actvar.runtime.pictures import Order
from actvar.runtime.sources import open_engines, open_graphs


class TritonPythonModel:
    """class_id [B] int64 and number [B] int64 (with the seed it decides a picture) to picture [B, H, W, 3] uint8."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle that config.pbtxt names."""
        parameters = json.loads(args["model_config"])["parameters"]
        bundle = Path(parameters["bundle"]["string_value"])
        batch_size = int(parameters["batch_size"]["string_value"])
        on_gpu = parameters["backend"]["string_value"] == "tensorrt"
        self.source = open_engines(bundle, batch_size) if on_gpu else open_graphs(bundle, batch_size, threads=0)
        self.sampling: Sampling = self.source.model.sampling
        self.seed = int(parameters["seed"]["string_value"])

    def execute(self, requests: list) -> list:
        """Draw the pictures of all requests together, and give each request its own."""
        orders, counts = [], []
        for request in requests:
            class_ids, numbers = (
                pb_utils.get_input_tensor_by_name(request, name).as_numpy().ravel() for name in ("class_id", "number")
            )
            orders.extend(
                Order(int(class_id), int(number)) for class_id, number in zip(class_ids, numbers, strict=True)
            )
            counts.append(len(class_ids))
        pictures = iter(self.source.draw(orders, self.sampling, self.seed))
        responses = []
        for count in counts:
            pixels_BHW3 = np.stack([next(pictures).pixels_HW3 for _ in range(count)])
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("picture", pixels_BHW3)]))
        return responses
