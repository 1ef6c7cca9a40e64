"""The options of drawing on Ray, and whatever draws a run, here or there."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from actvar.bundle.manifest import read_manifest
from actvar.cli.drawn_run import Draw, run_spec, source_spec
from actvar.cli.options import engine_option
from actvar.cli.source import Engine
from actvar.config import ModelConfig, Sampling
from actvar.errors import UsageError
from actvar.evaluation.picture_run import NumberedRun, RunSpec, Shard
from actvar.naming import NamedModel
from actvar.runtime.pictures import PictureSource
from actvar.serve.run_drawing import draw_missing


@dataclass(frozen=True)
class OnRay:
    """Where many pictures are drawn, if not in this process."""

    ray: Annotated[
        str | None,
        engine_option(metavar="ADDRESS", help="Draw on a Ray cluster; local: in processes of this machine."),
    ] = None
    workers: Annotated[
        int | None, engine_option(min=1, show_default="all there is room for", help="Of Ray, with --threads each.")
    ] = None
    num_gpus: Annotated[
        float | None,
        engine_option(
            min=0.01, max=16, show_default="1 on GPUs", help="GPUs of each worker of Ray, or a share of one."
        ),
    ] = None


@dataclass(frozen=True)
class Drawer:
    """A model that is ready to draw runs."""

    model: ModelConfig
    named: NamedModel
    engine: Engine
    source: PictureSource | None
    bundle: Path | None
    on_ray: OnRay

    def spec(self, count: int, seed: int, sampling: Sampling, class_ids: tuple[int, ...]) -> RunSpec:
        """What a run of it is of."""
        if self.source:
            return source_spec(self.source, self.named, self.engine, count, seed, sampling, class_ids)
        assert self.bundle
        manifest = read_manifest(self.bundle)
        weights = manifest.weights.sha256 or ""
        return run_spec(manifest.model, weights, manifest.precision, self.engine, count, seed, sampling, class_ids)

    def draw(self, run: NumberedRun, part: Shard, sampling: Sampling) -> Draw:
        """What draws the missing pictures of a part."""
        if self.source:
            return partial(draw_missing, run, part, self.source, sampling)
        from actvar.serve.ray_drawing import Workers, draw_missing_on_ray

        assert self.bundle and self.on_ray.ray and self.engine.backend != "torch"
        gpus = self.on_ray.num_gpus or 1.0 if self.engine.place == "cuda" else 0.0
        workers = Workers(
            address=self.on_ray.ray,
            workers=self.on_ray.workers,
            gpus=gpus,
            backend=self.engine.backend,
            device=self.engine.device,
            batch_size=self.engine.batch_size,
            threads=self.engine.threads,
        )
        return partial(draw_missing_on_ray, run, part, self.bundle, workers, sampling)


def ready_to_draw(named: NamedModel, engine: Engine, on_ray: OnRay, accept: Callable[[ModelConfig], None]) -> Drawer:
    """A model, opened in this process, or looked at for Ray's workers to open.

    Raises:
        UsageError: options exclude each other, or do not fit the model.
        ActVARError: the model cannot be used.
    """
    if not on_ray.ray:
        if on_ray.workers or on_ray.num_gpus:
            option = "--workers" if on_ray.workers else "--num-gpus"
            raise UsageError(f"{option} is of --ray, which is not given. Give both, or leave it out.")
        source = engine.open(named, accept).source
        return Drawer(source.model, named, engine, source, None, on_ray)
    if engine.backend == "torch":
        raise UsageError("--backend torch draws in one process. Leave --ray out.")
    if on_ray.num_gpus and engine.place == "cpu":
        raise UsageError("--num-gpus is of workers that draw on GPUs. Add --device cuda or --backend tensorrt.")
    if engine.place == "cuda":  # which need not be there, where the command is given
        if not named.bundle:
            raise UsageError(
                f"Ray's workers on GPUs draw with a bundle, and {named.name} is a checkpoint. Export or build it first."
            )
        bundle: Path | None = named.bundle
        model = read_manifest(named.bundle).model
        accept(model)
    else:
        with engine.open(named, accept) as pipe:
            bundle, model = pipe.bundle, pipe.model
    return Drawer(model, named, engine, None, bundle, on_ray)
