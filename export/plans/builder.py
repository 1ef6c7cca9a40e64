"""Plans for a bundle's graphs: what is there and still right is kept, the rest is built.

Knows what makes a plan up to date, and in which order files get their names, so that a build that is killed at any
moment leaves a folder that the next build completes. How a plan is built is `worker.py`'s.
"""

import hashlib
import os
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import onnx
import onnx_graphsurgeon

from actvar import __version__
from actvar.bundle.contract import CPU_PRECISIONS, HALF_PRECISIONS, scale_name
from actvar.bundle.manifest import MANIFEST_FILE, Manifest, read_manifest
from actvar.bundle.plans import (
    BUILD_AGAIN,
    LOCK_FILE,
    PlanManifest,
    PlanOptions,
    PlanSpec,
    PlanTarget,
    plan_folder,
    read_plans,
    require_no_link,
    write_plans,
)
from actvar.errors import ActVARError, BundleError, EngineError, UsageError
from actvar.export.operators import fused as fused_operators
from actvar.export.operators import fusion, lowering
from actvar.export.operators import sparse as operators
from actvar.export.plans import worker as build_worker
from actvar.export.plans.engine_library import library_path
from actvar.export.plans.processes import Task, last_lines, run_tasks
from actvar.export.plans.worker import BuildJob, BuildResult
from actvar.files import hash_file, locked, read_verified
from actvar.parameters import is_scorer
from actvar.plugins.library import plugin_library
from actvar.runtime.machine import cache_folder


def build_plans(
    bundle: Path,
    target: PlanTarget,
    options: PlanOptions,
    graphs: Collection[str] | None = None,
    jobs: int = 1,
    progress: Callable[[float], None] | None = None,
) -> PlanManifest:
    """Build the plans that are missing or no longer right.

    A plan stays as long as its graph, the options, the library's version, the code that builds and, where the graph has
    operators of ours, the plugin library are the same, and its file is whole. Two processes do not build for the same
    target: the second waits for the first.

    Args:
        bundle: its folder.
        target: what to build for.
        options: as they are to be for all plans of this target.
        graphs: builds only these; None builds all.
        jobs: plans that are built at the same time.
        progress: told the share that is done, 0 to 1; not called where nothing is to be built.

    Returns: the manifest of the plan folder, with all plans that are right.

    Raises:
        UsageError: the bundle has no such graph.
        BundleError: the bundle cannot be used, or the plans cannot be written.
        EngineError: the library refused a graph or failed; the plans that were done are kept.
    """
    manifest = read_manifest(bundle)
    if manifest.precision in CPU_PRECISIONS:
        own = manifest.precision
        raise BundleError(f"{bundle} is in {own}, which is for ONNX Runtime on a CPU. Build plans of an fp16 bundle.")
    for graph in graphs or ():
        if graph not in manifest.graphs:
            raise UsageError(f"{bundle} has no graph {graph}. Its graphs are {', '.join(manifest.graphs)}.")
    library = None if options.plugins == "none" else plugin_library()
    versions = {"actvar": __version__, "onnx": onnx.__version__, "onnx_graphsurgeon": onnx_graphsurgeon.__version__}
    wanted = PlanManifest(target, options, _recipe(), hash_file(library).sha256 if library else None, versions, {})
    folder = plan_folder(bundle, target)
    for place in (folder.parent, folder):
        require_no_link(place)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / LOCK_FILE):
            return _Build(bundle, manifest, folder, wanted, library).run(graphs, jobs, progress or (lambda share: None))
    except OSError as error:
        where = error.filename or folder
        raise BundleError(
            f"{where} cannot be written: {error.strerror or error}. Make room, or move the bundle."
        ) from None


class _Build:
    """One build, under the folder's lock; `plans` is what is right so far, and what the folder's manifest says."""

    def __init__(
        self, bundle: Path, manifest: Manifest, folder: Path, wanted: PlanManifest, library: Path | None
    ) -> None:
        self.bundle, self.manifest, self.folder, self.library = bundle, manifest, folder, library
        self.plans = wanted

    def run(self, graphs: Collection[str] | None, jobs: int, progress: Callable[[float], None]) -> PlanManifest:
        self._remove_unfinished()  # of builds that were killed
        self._keep_what_is_right()
        due = [graph for graph in self.manifest.graphs if graph not in self.plans.plans]
        due = [graph for graph in due if graphs is None or graph in graphs]
        if due:
            sizes = {graph: self.manifest.graphs[graph].entry.bytes for graph in due}
            try:
                tasks = [self._task(graph) for graph in due]
                run_tasks(tasks, jobs, self._environment(), _weighted(sizes, progress), self._finish)
            finally:
                self._remove_unfinished()
        return self.plans

    def _remove_unfinished(self) -> None:
        for path in self.folder.glob(".*.tmp"):
            path.unlink()

    def _keep_what_is_right(self) -> None:
        """Take over the plans that are up to date, and remove the others, first of all from the manifest."""
        try:
            old = read_plans(self.folder)
        except BundleError:
            old = None
        if old and replace(old, plugin_library=self.plans.plugin_library, plans={}) == self.plans:
            right = {graph: spec for graph, spec in old.plans.items() if self._is_right(graph, spec, old)}
            self.plans = replace(self.plans, plans=right)
        if old != self.plans and (self.folder / MANIFEST_FILE).exists():
            write_plans(self.folder, self.plans)
        for path in (*self.folder.glob("*.plan"), *self.folder.glob("*.log")):
            if path.stem not in self.plans.plans:
                path.unlink()

    def _is_right(self, graph: str, spec: PlanSpec, old: PlanManifest) -> bool:
        same_plugins = old.plugin_library == self.plans.plugin_library or not (spec.plugins or spec.bodies)
        if not same_plugins or graph not in self.manifest.graphs:
            return False
        try:
            for entry in (spec.entry, spec.log):
                read_verified(self.folder / entry.file, entry, BUILD_AGAIN)
        except BundleError:
            return False
        return spec.graph_sha256 == self.manifest.graphs[graph].entry.sha256

    def _task(self, graph: str) -> Task:
        spec, target, options = self.manifest.graphs[graph], self.plans.target, self.plans.options
        token = secrets.token_hex(4)
        plan, log = (self.folder / f".{graph}.{end}.{token}.tmp" for end in ("plan", "log"))
        job = BuildJob(
            engine=target.engine,
            capabilities=() if target.device else target.gpus,
            graph=str(self.bundle / spec.entry.file),
            bytes=spec.entry.bytes,
            sha256=spec.entry.sha256,
            weights=tuple(spec.weights),
            shapes={
                tensor.name: [tensor.sized(pictures) for pictures in options.batch]
                for tensor in spec.inputs
                if tensor.sized(1) != tensor.shape
            },
            plan=str(plan),
            workspace=options.workspace,
            aux_streams=options.aux_streams,
            plugins=options.plugins,
            plugin_library=str(self.library) if self.library else None,
            timing_cache=self._timing_cache(),
            tf32=allows_tf32(self.manifest, graph),
        )
        return Task(graph, job, plan, log)

    def _timing_cache(self) -> str | None:
        path = timing_cache_of(self.plans)
        if path is None:
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        return str(path)

    def _environment(self) -> dict[str, str]:
        path = library_path(self.plans.target.engine) if self.library else None
        return {**os.environ, **({"LD_LIBRARY_PATH": path} if path else {})}

    def _finish(self, task: Task, outcome: BuildResult | ActVARError) -> None:
        """Give a plan its name, then its place in the manifest; or say why there is none."""
        log = self.folder / f"{task.graph}.log"
        task.log.replace(log)
        if isinstance(outcome, EngineError):
            target = self.plans.target
            raise EngineError(
                f"{target.engine} {target.version} built no plan for {task.graph}: {outcome}. "
                f"Its log is {log}, and ends with:\n{last_lines(log)}"
            )
        if isinstance(outcome, ActVARError):
            raise outcome
        plan = self.folder / f"{task.graph}.plan"
        entry = replace(hash_file(task.plan), file=plan.name)
        task.plan.replace(plan)
        spec = PlanSpec(entry, hash_file(log), task.job.sha256, **asdict(outcome))
        plans = {**self.plans.plans, task.graph: spec}
        in_order = {graph: plans[graph] for graph in self.manifest.graphs if graph in plans}
        self.plans = replace(self.plans, plans=in_order)
        write_plans(self.folder, self.plans)


def timing_cache_of(plans: PlanManifest) -> Path | None:
    """Where the times of kernels are kept: none where no GPU is at hand. What was learnt serves all bundles.

    TensorRT knows a plugin's time by its name and attributes. So another plugin library has another file.
    """
    if not plans.target.device:
        return None
    library = f"-{plans.plugin_library[:16]}" if plans.plugin_library else ""
    return cache_folder() / "timing" / f"{plans.target.folder}{library}.cache"


def allows_tf32(manifest: Manifest, graph: str) -> bool:
    """Whether a graph's products of fp32 may be multiplied in TF32: where it changes less than half precision does.

    Of all that a half-precision scale keeps in fp32 the head is nearly all the work. TensorRT's flag knows no
    exceptions, and a selector or router in TF32 chooses otherwise: a scale that has one stays in fp32
    (`benchmarks/fp32_products.py`). The encoder chooses codes by fp32's distances, and stays in it, too.
    """
    of_scale = graph in map(scale_name, range(len(manifest.model.schedule)))
    scores = any(is_scorer(weight) for weight in manifest.graphs[graph].weights)
    return manifest.precision in HALF_PRECISIONS and of_scale and not scores


def _weighted(sizes: Mapping[str, int], progress: Callable[[float], None]) -> Callable[[str, float], None]:
    """The share of all work from the shares of the graphs; a graph's work grows with its file."""
    done = dict.fromkeys(sizes, 0.0)
    progress(0.0)

    def tell(graph: str, share: float) -> None:
        done[graph] = share
        progress(sum(done[name] * size for name, size in sizes.items()) / sum(sizes.values()))

    return tell


def _recipe() -> str:
    digest = hashlib.sha256()
    for module in (build_worker, lowering, fusion, operators, fused_operators):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()
