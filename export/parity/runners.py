"""What polygraphy compares: a graph's function in the eager model, a graph in an engine, and a source of pictures.

Three adapters to polygraphy's runners. The engine is the runtime's own, sessions, options and guards included, so what
is compared is what draws; another backend behind the same protocol is compared without a change here.

Letters in shapes: B pictures, R = 2B rows, D depth, h heads, P tokens cached, L tokens of a scale, K kept, A active
experts, C width, E code width, H side of f_hat, V codes, d = 64.
"""

import time
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata
from torch import Tensor

from actvar.bundle.contract import Shape, graph_names, scale_name
from actvar.bundle.manifest import GraphSpec
from actvar.config import HEAD_WIDTH, Sampling
from actvar.export.graphs.scale import EXPERTS, HIDDEN, KEPT, LOGITS
from actvar.export.parity.recording import stacked
from actvar.models.actvar import ActVAR
from actvar.models.selection import Selection
from actvar.models.var import Condition
from actvar.runtime.backends import protocol
from actvar.runtime.pictures import Order, PictureSource
from actvar.sampling import guide, sample

PYTORCH, GRAPHS = "PyTorch", "graphs"
TOKENS, PIXELS = "token_ids", "pixels"
CHOICES = (KEPT, EXPERTS, TOKENS)
FREE, FORCED = "_free", "_forced"
"""Ends the name of what the reference gives at its own selections, where the name alone is at the other side's, and the
other way round: all but the drawn tokens are compared at the other side's."""

Arrays = Mapping[str, np.ndarray]
Slot = tuple[str, Shape]  # type and shape of an input
_HALF = ("float16", "bfloat16")


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


def _inputs(spec: GraphSpec) -> dict[str, Slot]:
    """Of a graph; polygraphy passes half precision on as fp32, as numpy has no bfloat16."""
    return {t.name: ("float32" if t.dtype in _HALF else t.dtype, t.shape) for t in spec.inputs}


class EagerGraphRunner(_Runner):
    """One graph's function, evaluated in fp32 by the modules of the model.

    A selector, a router and the sampler decide by comparing, and where two scores lie within rounding of each other,
    another rounding decides otherwise; all numbers after that are of another computation. So the other side's choices
    are made here, too, for the numbers; and each choice is also what it would be here, had all before it been the other
    side's.

    Args:
        model: in evaluation mode, on the CPU.
        graph: one of `graph_names(model.config)`.
        spec: the graph's inputs.
        choices: what the other side has chosen: those of `CHOICES` that it gave. What is no possible choice is not
            made, and the numbers depart.
    """

    def __init__(self, model: ActVAR, graph: str, spec: GraphSpec, choices: Arrays):
        super().__init__(name=PYTORCH)
        self._model, self._graph, self._spec, self._choices = model, graph, spec, choices

    def inputs(self) -> dict[str, Slot]:
        return _inputs(self._spec)

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
        config, var, quantizer = self._model.config, self._model.var, self._model.vqvae.quantize
        schedule = config.schedule
        modulation_DR6C, f_hat_BEHH = given["modulation"], given["f_hat"]
        nothing = modulation_DR6C.new_empty(0)  # where a graph has no such input: the scale does not read it either
        condition = Condition(modulation_DR6C, given["head_modulation"], given.get("start", nothing))
        depth, rows, _, _ = modulation_DR6C.shape
        past_D2RhPd = modulation_DR6C.new_empty(depth, 2, rows, config.heads, 0, HEAD_WIDTH)
        if "past_kv" in given:
            past_D2RhPd = given["past_kv"][..., : config.cached_tokens[si], :]
        run = partial(var.trace, given["tokens_in"].repeat(2, 1, 1) if si else None, condition, past_D2RhPd, si)
        strength = float(given["cfg"]) * schedule.cfg_ramp(si)

        free = run()
        forced = self._selections(si, stacked(config, free.best))
        traced = run(forced) if forced else free
        logits_BLV, free_logits_BLV = guide(traced.logits_RLV, strength), guide(free.logits_RLV, strength)
        limits = given["uniform"], int(given["top_k"]), float(given["top_p"])
        ids_BL = sample(free_logits_BLV, *limits)
        drawn_BL = self._possible(TOKENS, ids_BL, config.vqvae.vocab_size)
        next_f_hat_BEHH = f_hat_BEHH + quantizer.contribution(ids_BL if drawn_BL is None else drawn_BL, si)
        made = {LOGITS: logits_BLV, TOKENS: ids_BL, "next_f_hat": next_f_hat_BEHH, HIDDEN: traced.hidden_DRLC}
        made |= stacked(config, traced.best)
        if KEPT in self._choices or EXPERTS in self._choices:
            made |= {name + FREE: ids for name, ids in stacked(config, free.best).items()} | {
                LOGITS + FREE: free_logits_BLV
            }
            made[TOKENS + FORCED] = sample(logits_BLV, *limits)
        if si + 1 < len(schedule):
            tokens_in_BLE = quantizer.tokens_in(next_f_hat_BEHH, si + 1)
            made |= {"new_kv": traced.new_kv_D2RhKd, "next_tokens_in": tokens_in_BLE}
        return made

    def _selections(self, si: int, free: Mapping[str, Tensor]) -> list[Selection]:
        """What each block is to choose; nothing if that is what it chooses by itself, or is not possible."""
        config = self._model.config
        ends = {KEPT: config.schedule.tokens[si], EXPERTS: config.activation.experts if config.activation else 0}
        chosen = {name: self._possible(name, ids, ends[name]) for name, ids in free.items() if name in self._choices}
        possible = {name: ids for name, ids in chosen.items() if ids is not None}
        if len(possible) < len(chosen) or all(ids.equal(free[name]) for name, ids in possible.items()):
            return []
        parts = {name: ids.unbind(0) for name, ids in possible.items()}
        kept, experts = (parts.get(name, (None,) * config.depth) for name in (KEPT, EXPERTS))
        return [Selection(*of_block) for of_block in zip(kept, experts, strict=True)]

    def _possible(self, name: str, like: Tensor, end: int) -> Tensor | None:
        """The other side's choice, if there is one: below `end`, and of a selection each only once, in order."""
        ids = torch.from_numpy(np.array(self._choices.get(name, ())))
        fits = ids.dtype == like.dtype and ids.shape == like.shape and bool(((ids >= 0) & (ids < end)).all())
        return ids if fits and (name == TOKENS or bool((ids.diff(dim=-1) > 0).all())) else None


class EngineGraphRunner(_Runner):
    """One graph in a loaded bundle."""

    def __init__(self, engine: protocol.Engine, graph: str):
        super().__init__(name=GRAPHS)
        self._engine, self._graph = engine, graph

    def inputs(self) -> dict[str, Slot]:
        return _inputs(self._engine.manifest.graphs[self._graph])

    def run(self, inputs: Arrays) -> Arrays:
        dtypes = {tensor.name: tensor.dtype for tensor in self._engine.manifest.graphs[self._graph].inputs}
        given = {name: self._engine.upload(inputs[name], dtype) for name, dtype in dtypes.items() if name != "past_kv"}
        if "past_kv" in dtypes:
            given["past_kv"] = self._past(inputs["past_kv"], dtypes["past_kv"])
        outputs = self._engine.run(self._graph, given)
        made = {name: self._engine.download(tensor) for name, tensor in outputs.items()}
        if "new_kv" in made:  # an engine may give the whole cache with it
            model = self._engine.manifest.model
            kept = model.kept_tokens(graph_names(model).index(self._graph) - 1)
            made["new_kv"] = made["new_kv"][..., -kept:, :]
        return made

    def _past(self, past_D2RhTd: np.ndarray, dtype: str) -> protocol.Tensor:
        """The engine's own cache, filled as the scales before would leave it: where it lies is the engine's affair."""
        model = self._engine.manifest.model
        si = graph_names(model).index(self._graph) - 1
        cache = self._engine.kv_cache(past_D2RhTd.shape[2] // 2)
        cache.append(self._engine.upload(past_D2RhTd[..., : model.cached_tokens[si], :], dtype))
        return cache.past


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
