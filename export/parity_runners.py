"""What polygraphy compares: a graph's function in the eager model, a graph in an engine, and a source of pictures.

Three adapters to polygraphy's runners. The engine is the runtime's own, sessions, options and guards included, so what
is compared is what draws; another backend behind the same protocol is compared without a change here.

Letters in shapes: B pictures, R = 2B rows, L tokens of a scale, E code width, H side of f_hat, V codes, d = 64.
"""

import time
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import torch
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata
from torch import Tensor

from actvar.bundle import GraphSpec, Shape, graph_names, scale_name
from actvar.config import Sampling
from actvar.export.graphs import LOGITS
from actvar.models.actvar import ActVAR
from actvar.models.kv_cache import KVCache
from actvar.models.var import Condition
from actvar.runtime.backends.protocol import Engine
from actvar.runtime.pipeline import Order, PictureSource
from actvar.sampling import guide, sample

TOKENS, PIXELS = "token_ids", "pixels"
Arrays = Mapping[str, np.ndarray]
Slot = tuple[str, Shape]  # type and shape of an input


class _Runner(BaseRunner):
    """A runner that is always ready: measures time, and leaves inputs and the run to its heirs."""

    def get_input_metadata_impl(self) -> TensorMetadata:
        metadata = TensorMetadata()
        for name, (dtype, shape) in self.inputs().items():
            metadata.add(name, np.dtype(dtype), tuple(None if isinstance(size, str) else size for size in shape))
        return metadata

    def infer_impl(self, feed_dict: Arrays) -> "OrderedDict[str, np.ndarray]":
        started = time.perf_counter()
        outputs = OrderedDict(self.run(feed_dict))
        self.inference_time = time.perf_counter() - started
        return outputs

    def inputs(self) -> dict[str, Slot]:
        """Of the run; dynamic dimensions by name."""
        raise NotImplementedError

    def run(self, inputs: Arrays) -> Arrays:
        """All outputs for these inputs."""
        raise NotImplementedError


class EagerGraphRunner(_Runner):
    """One graph's function, evaluated in fp32 by the modules of the model.

    Args:
        model: in evaluation mode, on the CPU.
        graph: one of `graph_names(model.config)`.
        spec: the graph's inputs; where it reads fp16, this reads fp32.
    """

    def __init__(self, model: ActVAR, graph: str, spec: GraphSpec):
        super().__init__(name="PyTorch")
        self._model, self._graph, self._spec = model, graph, spec

    def inputs(self) -> dict[str, Slot]:
        return {t.name: ("float32" if t.dtype == "float16" else t.dtype, t.shape) for t in self._spec.inputs}

    @torch.no_grad()
    def run(self, inputs: Arrays) -> Arrays:
        given = {name: torch.from_numpy(array) for name, array in inputs.items()}
        if self._graph == "condition":
            made = self._condition(given)
        elif self._graph == "decoder":
            made = {"image": (self._model.vqvae.decode(given["f_hat"]) + 1) / 2}
        else:
            made = self._scale(graph_names(self._model.config).index(self._graph) - 1, given)
        return {name: tensor.numpy() for name, tensor in made.items()}

    def _condition(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        class_ids_B = given["class_ids"]
        no_class_B = torch.full_like(class_ids_B, self._model.config.num_classes)
        made = self._model.var.condition(torch.cat((class_ids_B, no_class_B)))
        return {
            "modulation": made.modulation_DR6C,
            "head_modulation": made.head_modulation_R2C,
            "start": made.start_R1C,
        }

    def _scale(self, si: int, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        var, quantizer, schedule = self._model.var, self._model.vqvae.quantize, self._model.config.schedule
        modulation_DR6C, f_hat_BEHH = given["modulation"], given["f_hat"]
        nothing = modulation_DR6C.new_empty(0)  # where a graph has no such input: the scale does not read it either
        condition = Condition(modulation_DR6C, given["head_modulation"], given.get("start", nothing))
        past_D2RhPd = KVCache(self._model.config, modulation_DR6C.shape[1], modulation_DR6C).past
        if "past_kv" in given:
            past_D2RhPd = given["past_kv"][..., : self._model.config.cached_tokens[si], :]
        tokens_in_RLE = given["tokens_in"].repeat(2, 1, 1) if si else None
        logits_RLV, new_kv = var.infer(tokens_in_RLE, condition, past_D2RhPd, si)
        logits_BLV = guide(logits_RLV, float(given["cfg"]) * schedule.cfg_ramp(si))
        ids_BL = sample(logits_BLV, given["uniform"], int(given["top_k"]), float(given["top_p"]))
        next_f_hat_BEHH = f_hat_BEHH + quantizer.contribution(ids_BL, si)
        made = {LOGITS: logits_BLV, TOKENS: ids_BL, "next_f_hat": next_f_hat_BEHH}
        if si + 1 < len(schedule):
            made |= {"new_kv": new_kv, "next_tokens_in": quantizer.tokens_in(next_f_hat_BEHH, si + 1)}
        return made


class EngineGraphRunner(_Runner):
    """One graph in a loaded bundle."""

    def __init__(self, engine: Engine, graph: str):
        super().__init__(name="graphs")
        self._engine, self._graph = engine, graph

    def inputs(self) -> dict[str, Slot]:
        return {t.name: (t.dtype, t.shape) for t in self._engine.manifest.graphs[self._graph].inputs}

    def run(self, inputs: Arrays) -> Arrays:
        outputs = self._engine.run(self._graph, {name: self._engine.upload(array) for name, array in inputs.items()})
        return {name: self._engine.download(tensor) for name, tensor in outputs.items()}


class PictureRunner(_Runner):
    """Whole pictures from a source: of `class_ids` and `numbers` [B] the tokens of each scale, and uint8 pixels."""

    def __init__(self, name: str, source: PictureSource, sampling: Sampling, seed: int):
        super().__init__(name=name)
        self._source, self._sampling, self._seed = source, sampling, seed

    def inputs(self) -> dict[str, Slot]:
        return {name: ("int64", ("B",)) for name in ("class_ids", "numbers")}

    def run(self, inputs: Arrays) -> Arrays:
        orders = [Order(*map(int, pair)) for pair in zip(inputs["class_ids"], inputs["numbers"], strict=True)]
        pictures = list(self._source.draw(orders, self._sampling, self._seed))
        scales = range(len(self._source.model.schedule))
        tokens = {f"{scale_name(si)}/{TOKENS}": np.stack([p.token_ids[si] for p in pictures]) for si in scales}
        return {**tokens, PIXELS: np.stack([picture.pixels_HW3 for picture in pictures])}
