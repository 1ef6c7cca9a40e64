"""Who takes part in a benchmark: bundles that are named or made from a preset, and what they are compared with.

What is made is made of random weights, which take the same time as trained ones, and stays in the cache.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from actvar.benchmarks.pictures.measure import Contestant, Kind
from actvar.bundle.manifest import read_manifest
from actvar.checkpoint.files import Checkpoint
from actvar.cli.bundle_to_build import ActivationChoice
from actvar.cli.model_choice import activated, preset_config
from actvar.config import Activation, ModelConfig, VQVAEConfig
from actvar.console import progress_bar
from actvar.errors import ActVARError, UsageError, needs
from actvar.export.bundle_cache import cached_bundle
from actvar.files import locked
from actvar.runtime.backends.protocol import Device
from actvar.runtime.machine import cache_folder

_PEERS: dict[str, tuple[Kind, str]] = {"eager": ("eager", "PyTorch"), "compile": ("compiled", "torch.compile")}


@dataclass(frozen=True)
class Field:
    """The options that say who takes part, as they were given."""

    preset: str | None
    bundles: Sequence[Path]
    precision: str
    activation: ActivationChoice
    patch_nums: str | None
    backend: str
    device: Device
    peers: str
    official_var: Path | None

    def contestants(self) -> list[Contestant]:
        """All that take part, graphs first; what is missing is made now.

        Raises:
            UsageError: options exclude each other, or a peer cannot be of a model's shape.
            BundleError: a bundle cannot be used.
            ActVARError: something cannot be made.
        """
        kinds = self._peer_kinds()
        graphs = list(self._named() if self.bundles else self._of_preset())
        shapes: dict[ModelConfig, Contestant] = {}
        for contestant in graphs:
            shapes.setdefault(contestant.shape, contestant)
        peers = [peer for of in shapes.values() for peer in self._peers(of, kinds)]
        return [*graphs, *peers]

    def _peer_kinds(self) -> list[str]:
        kinds = [] if self.peers == "none" else self.peers.split(",")
        if len(set(kinds)) < len(kinds) or not set(kinds) <= _PEERS.keys():
            raise UsageError(f"--peers must be none, or some of {','.join(_PEERS)}; got {self.peers!r}.")
        return kinds

    def _named(self) -> Iterator[Contestant]:
        if self.preset or self.patch_nums or self.activation.is_made:
            raise UsageError(
                "--bundle names what is there, and a preset, rates or scales shape another. Leave them out."
            )
        resolved = [bundle.resolve() for bundle in self.bundles]
        if len(set(resolved)) < len(resolved):
            raise UsageError("The same --bundle is named twice. Name each once.")
        short = len({bundle.name for bundle in resolved}) == len(resolved)
        for bundle in resolved:
            manifest = read_manifest(bundle)
            self._check_official(manifest.model)
            name = f"{bundle.name if short else bundle}, {self.backend}"
            yield Contestant(name, "graphs", manifest.model, manifest.precision, bundle, self.backend)

    def _of_preset(self) -> Iterator[Contestant]:
        """The preset, dense and with active tokens and experts."""
        preset = self.preset or "mini"
        dense = preset_config(preset, self.patch_nums)
        last_two = (len(dense.schedule) - 1, len(dense.schedule))
        self._check_official(dense)
        active = activated(dense, self.activation.of(dense) or replace(Activation(), scales=last_two))
        for name, model in ((f"VAR-{preset}", dense), (f"ActVAR-{preset}", active)):
            checkpoint = Checkpoint(random_checkpoint(name, model))
            with progress_bar(f"Exporting {name}, once") as progress:
                bundle = cached_bundle(checkpoint, self.precision, lambda _: None, progress)
            yield Contestant(f"{name}, {self.backend}", "graphs", model, self.precision, bundle, self.backend)

    def _peers(self, of: Contestant, kinds: Sequence[str]) -> Iterator[Contestant]:
        """What draws with the dense model in PyTorch."""
        model = of.model.dense()
        name = f"VAR-{self.preset or 'mini'}" if not self.bundles else f"VAR-d{model.depth}"
        precision = of.precision if self.device == "cuda" else "fp32"
        if kinds:
            checkpoint = random_checkpoint(name, model)
        for kind, label in (_PEERS[kind] for kind in kinds):
            yield Contestant(f"{name}, {label}", kind, model, precision, checkpoint, "torch")
        if self.official_var:
            path = self.official_var.resolve()
            yield Contestant(f"{name}, official VAR", "official", model, precision, path, "torch")

    def _check_official(self, model: ModelConfig) -> None:
        """Before anything is made: whether there is official VAR, and whether it can be of a model's shape.

        Raises:
            UsageError: it cannot, as the VQVAE's levels are written into its code; or the folder holds something else.
        """
        if not self.official_var:
            return
        for file in ("models/__init__.py", "models/var.py", "dist.py"):
            if not (self.official_var / file).is_file():
                raise UsageError(
                    f"--official-var {self.official_var} is no checkout of VAR: it has no {file}. Name another folder."
                )
        fixed = ("ch_mult", "num_res_blocks", "norm_groups")
        if any(getattr(model.vqvae, name) != getattr(VQVAEConfig(), name) for name in fixed):
            raise UsageError("Official VAR has no VQVAE of this shape. Leave --official-var out, or take --preset d16.")


def random_checkpoint(name: str, model: ModelConfig) -> Path:
    """A checkpoint of random weights in the cache, made now if it is not there.

    Raises:
        ActVARError: PyTorch is not installed, or the cache cannot be written.
    """
    digest = hashlib.sha256(json.dumps(model.to_dict()).encode()).hexdigest()
    path = cache_folder() / "bench" / f"{name}-{digest[:12]}.safetensors"
    if path.is_file():
        return path
    with needs("export", "to make a model of random weights"):
        from actvar.checkpoint.own import save_model
        from actvar.models.actvar import random_model
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")):
            if not path.is_file():
                save_model(random_model(model), path)
    except OSError as error:
        raise ActVARError(f"{path} cannot be written: {error.strerror}. Name another folder in ACTVAR_CACHE.") from None
    return path
