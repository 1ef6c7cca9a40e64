"""The decoder's convolutions in int8, for ONNX Runtime on a CPU: by its own quantisation tools, with measured ranges.

A convolution reads and writes uint8, by scales that are fixed in the graph: those of the values that the model itself
makes when it draws a few pictures. So no picture feels which others are decoded with it. Weights have 7 bits and a
sign, for the reason given in `int8.py`. Norms, attention's product and the sums of the residual blocks stay fp32, as do
the first convolution, which reads f_hat, and the last, which writes the pixels.

Two cores with AVX2, fp32's time by this one's: 1.9 for 160 channels at 256 x 256, 1.7 for 320 at 64 x 64, 1.9 for 640
at 16 x 16.

Letters in shapes: N pictures, E code width, H side of f_hat.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from actvar.bundle.contract import TensorSpec
from actvar.bundle.manifest import StoredTensor
from actvar.export.graphs.builder import external_tensor
from actvar.export.graphs.bundle import build_graph
from actvar.export.graphs.decoder import EDGES
from actvar.export.graphs.weights_file import WeightsFile
from actvar.files import scratch_folder
from actvar.generation import generate
from actvar.models.actvar import ActVAR

CALIBRATION_PICTURES = 16
CALIBRATION_SEED = 2**63
"""Far from the seeds that people draw with."""

_BATCH = 4


@dataclass(frozen=True)
class Int8Graph:
    """The decoder's graph, as `GraphBuilder` has it once it is written."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: Mapping[str, StoredTensor]
    _model: onnx.ModelProto

    def build(self) -> onnx.ModelProto:
        """The model."""
        return self._model


@dataclass(frozen=True)
class Int8Decoder:
    """The decoder in int8, its weights still apart from any file.

    Attributes:
        weights: what the weights file is to hold of it, by name.
    """

    weights: Mapping[str, np.ndarray]
    _inputs: tuple[TensorSpec, ...]
    _outputs: tuple[TensorSpec, ...]
    _model: onnx.ModelProto

    def placed(self, stored: Mapping[str, StoredTensor]) -> Int8Graph:
        """The graph that reads its weights where the weights file holds them."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        for tensor in model.graph.initializer:
            if tensor.name in self.weights:
                tensor.CopyFrom(external_tensor(tensor.name, stored[tensor.name]))
        return Int8Graph(self._inputs, self._outputs, {name: stored[name] for name in self.weights}, model)


def int8_decoder(model: ActVAR, progress: Callable[[float], None] | None = None) -> Int8Decoder:
    """Quantise a model's decoder by pictures that the model draws, always the same ones.

    Args:
        model: in evaluation mode.
        progress: told the share of the pictures that are drawn.
    """
    file = WeightsFile.of(model.config, "fp32")
    builder = build_graph("decoder", model.config, file.layout.tensors, "fp32")
    fp32 = builder.build()
    for tensor in fp32.graph.initializer:
        if tensor.name in builder.weights:
            array = file.tensor(tensor.name, model.read).reshape(builder.weights[tensor.name].shape)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    f_hats = list(_calibration_f_hats(model, progress or (lambda share: None)))
    quantized = _quantized(fp32, f_hats)
    constants = {tensor.name for tensor in fp32.graph.initializer} - builder.weights.keys()
    weights = {
        tensor.name: numpy_helper.to_array(tensor).copy()
        for tensor in quantized.graph.initializer
        if tensor.dims and tensor.name not in constants
    }
    return Int8Decoder(weights, tuple(builder.inputs), tuple(builder.outputs), quantized)


def _calibration_f_hats(model: ActVAR, progress: Callable[[float], None]) -> Iterator[np.ndarray]:
    """What the decoder will be given, [N, E, H, H] at a time: pictures of classes all over, drawn in fp32."""
    classes = model.config.num_classes
    for first in range(0, CALIBRATION_PICTURES, _BATCH):
        numbers = range(first, first + _BATCH)
        class_ids = [number * classes // CALIBRATION_PICTURES for number in numbers]
        yield generate(model, class_ids, model.config.sampling, CALIBRATION_SEED, numbers).f_hats[-1].cpu().numpy()
        progress((first + _BATCH) / CALIBRATION_PICTURES)


def _quantized(fp32: onnx.ModelProto, f_hats: list[np.ndarray]) -> onnx.ModelProto:
    with scratch_folder("int8") as scratch, _quiet():
        path = scratch / "decoder.onnx"
        quantize_static(
            fp32,
            path,
            _Pictures(iter(f_hats)),
            quant_format=QuantFormat.QOperator,
            op_types_to_quantize=["Conv", "Relu"],  # a ReLU behind a convolution becomes the end of its range
            nodes_to_exclude=list(EDGES),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
        return onnx.load(path)


@dataclass(frozen=True)
class _Pictures(CalibrationDataReader):
    f_hats: Iterator[np.ndarray]

    def get_next(self) -> dict[str, np.ndarray] | None:
        """What the tools ask for, until there is no more."""
        f_hat = next(self.f_hats, None)
        return None if f_hat is None else {"f_hat": f_hat}


@contextmanager
def _quiet() -> Iterator[None]:
    """The tools recommend preparations for graphs of other exporters, through the root logger."""
    logger = logging.getLogger()
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled
