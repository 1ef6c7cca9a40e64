"""What polygraphy compares: a graph's function in the eager model, a graph in an engine, and a source of pictures.

Three adapters to polygraphy's runners. The engine is the runtime's own, sessions, options and guards included, so what
is compared is what draws; another backend behind the same protocol is compared without a change here.

Letters in shapes: B pictures, G groups of rows, R = G * B, D depth, h heads, P tokens cached, L tokens of a scale, K
kept, A active experts, C width, E code width, H side of f_hat, V codes, d = 64.
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

from actvar.bundle.contract import ENCODER, Shape, graph_names, scale_name
from actvar.bundle.manifest import GraphSpec
from actvar.config import HEAD_WIDTH, Sampling
from actvar.export.graphs.scale import EXPERTS, HIDDEN, KEPT, LOGITS
from actvar.export.parity.recording import in_groups, of_rows_in_groups, stacked
from actvar.generation import class_rows
from actvar.models.actvar import ActVAR
from actvar.models.selection import Selection
from actvar.models.var import Condition, ScaleTrace
from actvar.runtime.backends import protocol
from actvar.runtime.pictures import Order, PictureSource
from actvar.sampling import drawn, guide
from actvar.uniforms import random_input

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
        graph: one of `graph_names(model.config)`, or the encoder.
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
        elif self._graph == ENCODER:
            made = self._encoder(given["picture"])
        elif self._graph == "decoder":
            made = {"image": (self._model.decode(given["f_hat"]) + 1) / 2}
        else:
            made = self._scale(graph_names(self._model.config).index(self._graph) - 1, given)
        return {name: tensor.numpy() for name, tensor in made.items()}

    def _condition(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        config = self._model.config
        class_ids_R = class_rows(config, given["class_ids"].tolist())
        return in_groups(self._model.var.condition(class_ids_R), config.row_groups(0))

    def _encoder(self, picture_B3HH: Tensor) -> dict[str, Tensor]:
        """At each scale the nearest codes to what is left of the map when the other side's are taken off."""
        encode, codes = self._model.vqvae.encode, self._model.config.vqvae.vocab_size
        ids_BT = encode(picture_B3HH * 2 - 1)
        taken_BT = self._possible(TOKENS, ids_BT, self._choices.get(TOKENS), codes)
        if taken_BT is None or taken_BT.equal(ids_BT):
            return {TOKENS: ids_BT}
        return {TOKENS: encode(picture_B3HH * 2 - 1, taken_BT), TOKENS + FREE: ids_BT}

    def _scale(self, si: int, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        config = self._model.config
        var, quantizer, schedule = self._model.var, self._model.vqvae.quantize, config.schedule
        f_hat_BEHH, groups = given["f_hat"], config.row_groups(si)
        rows = groups * len(f_hat_BEHH)
        start_R1C = given["start"].flatten(0, 1) if "start" in given else f_hat_BEHH.new_empty(0)  # nor is it read
        modulations = given["modulation"].flatten(1, 2), given["head_modulation"].flatten(0, 1)
        condition = Condition(*modulations, start_R1C).of_rows(rows)
        past_D2RhPd = f_hat_BEHH.new_empty(config.depth, 2, rows, config.heads, 0, HEAD_WIDTH)
        if "past_kv" in given:
            past_D2RhPd = given["past_kv"].flatten(2, 3)[:, :, :rows, :, : config.cached_tokens[si]]
        run = partial(var.trace, given["tokens_in"].repeat(groups, 1, 1) if si else None, condition, past_D2RhPd, si)
        strength = float(given["cfg"]) * schedule.cfg_ramp(si) if groups == 2 else 0.0

        def logits(trace: ScaleTrace) -> Tensor:
            return guide(trace.logits_RLV, strength) if groups == 2 else trace.logits_RLV

        free = run()
        forced = self._selections(si, stacked(config, free.best))
        traced = run(forced) if forced else free
        logits_BLV, free_logits_BLV = logits(traced), logits(free)
        limits = given[random_input(config)], int(given["top_k"]), float(given["top_p"]), given["given"]
        own = drawn(config, quantizer, si, free_logits_BLV, *limits)
        at_forced = drawn(config, quantizer, si, logits_BLV, *limits) if forced else own
        ids_BL = own.ids_BL
        drawn_BL = self._possible(TOKENS, ids_BL, self._choices.get(TOKENS), config.vqvae.vocab_size)
        if config.smooth:  # a mixture takes no side: it is what the logits at the other side's selections make
            codes_BLE = at_forced.codes_BLE
        else:
            codes_BLE = quantizer.embedding(ids_BL if drawn_BL is None else drawn_BL)
        next_f_hat_BEHH = f_hat_BEHH + quantizer.enlarge(codes_BLE, si)
        of_rows = {HIDDEN: traced.hidden_DRLC, **stacked(config, traced.best)}
        made = {LOGITS: logits_BLV, TOKENS: ids_BL, "next_f_hat": next_f_hat_BEHH}
        if KEPT in self._choices or EXPERTS in self._choices:
            of_rows |= {name + FREE: ids for name, ids in stacked(config, free.best).items()}
            made |= {
                LOGITS + FREE: free_logits_BLV,
                TOKENS + FORCED: at_forced.ids_BL,
            }
        made |= of_rows_in_groups(of_rows, groups)
        if si + 1 < len(schedule):
            tokens_in_BLE = quantizer.tokens_in(next_f_hat_BEHH, si + 1)
            made |= {"new_kv": traced.new_kv_D2RhKd.unflatten(2, (groups, -1)), "next_tokens_in": tokens_in_BLE}
        return made

    def _selections(self, si: int, free: Mapping[str, Tensor]) -> list[Selection]:
        """What each block is to choose; nothing if that is what it chooses by itself, or is not possible."""
        config = self._model.config
        ends = {KEPT: config.schedule.tokens[si], EXPERTS: config.activation.experts if config.activation else 0}
        others = {name: _rows(self._choices[name]) for name in free if name in self._choices}
        chosen = {name: self._possible(name, free[name], ids, ends[name]) for name, ids in others.items()}
        possible = {name: ids for name, ids in chosen.items() if ids is not None}
        if len(possible) < len(chosen) or all(ids.equal(free[name]) for name, ids in possible.items()):
            return []
        parts = {name: ids.unbind(0) for name, ids in possible.items()}
        kept, experts = (parts.get(name, (None,) * config.depth) for name in (KEPT, EXPERTS))
        return [Selection(*of_block) for of_block in zip(kept, experts, strict=True)]

    def _possible(self, name: str, like: Tensor, other: np.ndarray | None, end: int) -> Tensor | None:
        """The other side's choice, if there is one: below `end`, and of a selection each only once, in order."""
        ids = torch.from_numpy(np.array(() if other is None else other))
        fits = ids.dtype == like.dtype and ids.shape == like.shape and bool(((ids >= 0) & (ids < end)).all())
        return ids if fits and (name == TOKENS or bool((ids.diff(dim=-1) > 0).all())) else None


def _rows(choices: np.ndarray) -> np.ndarray:
    """[D, G, B, ...] as [D, R, ...]; what has not that form is no choice, and stays as it is."""
    if choices.ndim < 4:
        return choices
    depth, groups, batch, *rest = choices.shape
    return choices.reshape(depth, groups * batch, *rest)


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

    def _past(self, past_D2GBhTd: np.ndarray, dtype: str) -> protocol.Tensor:
        """The engine's own cache, filled as the scales before would leave it: where it lies is the engine's affair."""
        model = self._engine.manifest.model
        si = graph_names(model).index(self._graph) - 1
        cache, groups = self._engine.kv_cache(past_D2GBhTd.shape[3]), model.row_groups(si - 1)
        cache.append(self._engine.upload(past_D2GBhTd[:, :, :groups, ..., : model.cached_tokens[si], :], dtype))
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
