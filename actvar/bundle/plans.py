"""Plans: the engines that were built from a bundle's graphs, and how to tell one that may be loaded from all others.

Knows the form of a plan folder's manifest and what a plan was made of; builds nothing and loads nothing. Plain Python:
no numpy, no engine.

Every machine and version has a folder of its own, with a manifest of its own: builds do not wait for each other, a
reader of the bundle never meets them half done, and a folder may be copied from the machine that built it.

    plans/<engine>-<gpus>-<version>/
        manifest.json   {"format": "actvar-plans", "version": 1, "target": {engine, version, gpus, device},
                         "options": {batch, workspace, aux_streams, plugins}, "recipe", "plugin_library",
                         "versions",
                         "plans": {graph: {plan: {file, bytes, sha256}, log: {the same}, graph_sha256, layers, plugins,
                                           bodies, seconds, peak_bytes}},
                         "sha256": of all that stands before it}
        <graph>.plan    the engine, as the engine's library wants it
        <graph>.log     what the library said while it built
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actvar.bundle.contract import MAX_SCALES
from actvar.bundle.json_form import SHA256, FormReader, write_json
from actvar.bundle.manifest import MANIFEST_FILE, PLANS_FOLDER, Manifest, entry_to_json
from actvar.errors import BundleError, counted
from actvar.files import FileEntry, read_verified
from actvar.provenance import pasteable

FORMAT, VERSION = "actvar-plans", 1
ENGINES = TENSORRT, RTX = "tensorrt", "tensorrt-rtx"
MODULES = {TENSORRT: "tensorrt", RTX: "tensorrt_rtx"}
"""The Python module of each engine."""

LOCK_FILE = ".lock"
"""In a plan folder: held by whoever changes it."""

MAX_PICTURES = 1 << 16
MAX_WORKSPACE = 1 << 24  # MiB
MAX_AUX_STREAMS = 64
PLUGIN_CHOICES = ("all", "tokens", "none")
BUILD_AGAIN = "Build the plans again with `actvar-trt build --model BUNDLE`."

_GRAPH = re.compile(r"condition|decoder|encoder|scale_[0-9]{2}")
_CAPABILITY = re.compile(r"[1-9][0-9]?\.[0-9]")
_DAMAGED = 100  # before all other faults of folders: the damaged one may be the one that was meant
_COUNT = 1 << 24  # of layers, or of anything else that is counted
_MAX_PLANS = MAX_SCALES + 3


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver names it, and its compute capability, such as "8.9"."""

    name: str
    capability: str


@dataclass(frozen=True)
class PlanTarget:
    """What plans are for.

    Args:
        engine: "tensorrt" or "tensorrt-rtx".
        version: of the engine's library; no other loads them.
        gpus: compute capabilities, ascending.
        device: the GPU's name where plans are for this one GPU; empty where they are for all of these capabilities.
    """

    engine: str
    version: str
    gpus: tuple[str, ...]
    device: str = ""

    @property
    def folder(self) -> str:
        """The name of its folder."""
        parts = (self.engine, *((self.device,) if self.device else ()), "+".join(self.gpus), self.version)
        return re.sub(r"[^a-z0-9.+]+", "-", "-".join(parts).lower()).strip("-")

    def serves(self, gpu: Gpu) -> bool:
        """Whether its plans are for this GPU."""
        return gpu.capability in self.gpus and self.device in ("", gpu.name)


@dataclass(frozen=True)
class PlanOptions:
    """What decides a plan beside its graph and its target.

    Args:
        batch: the fewest pictures, those it is made fastest for, and the most.
        workspace: MiB that a layer may use for itself; None leaves it to the library.
        aux_streams: streams beside the first that may run layers at the same time; None leaves it to the library.
        plugins: which of our operators become plugins, where there is a plugin library: all, those that choose and move
            tokens, or none. The others run as standard operators.

    Raises:
        ValueError: a number outside its range, or another word.
    """

    batch: tuple[int, int, int] = (1, 8, 64)
    workspace: int | None = None
    aux_streams: int | None = None
    plugins: str = PLUGIN_CHOICES[0]

    def __post_init__(self) -> None:
        low, best, high = self.batch
        if not 1 <= low <= best <= high <= MAX_PICTURES:
            raise ValueError(f"the pictures must be fewest:best:most within 1..{MAX_PICTURES}, got {low}:{best}:{high}")
        if self.workspace is not None and not 1 <= self.workspace <= MAX_WORKSPACE:
            raise ValueError(f"the workspace must lie in 1..{MAX_WORKSPACE} MiB, got {self.workspace}")
        if self.aux_streams is not None and not 0 <= self.aux_streams <= MAX_AUX_STREAMS:
            raise ValueError(f"the auxiliary streams must lie in 0..{MAX_AUX_STREAMS}, got {self.aux_streams}")
        if self.plugins not in PLUGIN_CHOICES:
            raise ValueError(f"the plugins must be {', '.join(PLUGIN_CHOICES)}, got {self.plugins!r}")


@dataclass(frozen=True)
class PlanSpec:
    """One plan.

    Args:
        entry, log: its file, and what was said while it was built.
        graph_sha256: of the graph that it was built from.
        layers: of the parsed network, how many of each type.
        plugins: of our operators, how many became plugins.
        bodies: of our operators, how many run as standard operators, because there was no plugin.
        seconds, peak_bytes: what building it took, and the most memory that its process held.
    """

    entry: FileEntry
    log: FileEntry
    graph_sha256: str
    layers: Mapping[str, int]
    plugins: Mapping[str, int]
    bodies: Mapping[str, int]
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class PlanManifest:
    """What a plan folder holds: some or all of a bundle's graphs, built for one target in one way.

    Args:
        recipe: SHA-256 of the code that lowers and builds, so that a change there builds again.
        plugin_library: SHA-256 of the library that the plugins are from; None where there was none.
        versions: the programs that made the plans.
        plans: by graph, in the order in which they run.
    """

    target: PlanTarget
    options: PlanOptions
    recipe: str
    plugin_library: str | None
    versions: Mapping[str, str]
    plans: Mapping[str, PlanSpec]


def plan_folder(bundle: Path, target: PlanTarget) -> Path:
    """Where a bundle's plans for this target lie."""
    return bundle / PLANS_FOLDER / target.folder


def plan_folders(bundle: Path) -> list[Path]:
    """The folders of a bundle's plans, in the order of their names.

    Raises:
        BundleError: one of them is a link.
    """
    place = bundle / PLANS_FOLDER
    require_no_link(place)
    folders = sorted(place.glob("*/"))
    for folder in folders:
        require_no_link(folder)
    return folders


def require_no_link(place: Path) -> None:
    """Make sure that a folder of plans lies in the bundle: what is read and removed in it is not out there.

    Raises:
        BundleError: it is a link.
    """
    if place.is_symlink():
        raise BundleError(f"{place} must be a folder, and is a link. Remove it, or move the whole bundle.")


def write_plans(folder: Path, manifest: PlanManifest) -> None:
    """Write a plan folder's manifest; whoever sees it sees it whole.

    Raises:
        OSError: it cannot be written.
    """

    def plan(spec: PlanSpec) -> dict[str, Any]:
        counts = {"layers": dict(spec.layers), "plugins": dict(spec.plugins), "bodies": dict(spec.bodies)}
        cost = {"seconds": spec.seconds, "peak_bytes": spec.peak_bytes}
        files = {"plan": entry_to_json(spec.entry), "log": entry_to_json(spec.log)}
        return {**files, "graph_sha256": spec.graph_sha256, **counts, **cost}

    content = {
        "format": FORMAT,
        "version": VERSION,
        "target": {**asdict(manifest.target), "gpus": list(manifest.target.gpus)},
        "options": {**asdict(manifest.options), "batch": list(manifest.options.batch)},
        "recipe": manifest.recipe,
        "plugin_library": manifest.plugin_library,
        "versions": dict(manifest.versions),
        "plans": {graph: plan(spec) for graph, spec in manifest.plans.items()},
    }
    write_json(folder / MANIFEST_FILE, content)


def read_plans(folder: Path) -> PlanManifest:
    """The manifest of a plan folder; the plans are not touched (see `read_plan`).

    Raises:
        BundleError: there is none, or anything in it is missing, unknown, of the wrong type or out of bounds.
    """
    return _PlansReader(folder / MANIFEST_FILE, BUILD_AGAIN).manifest()


def read_plan(folder: Path, spec: PlanSpec) -> bytes:
    """A plan, after its size and hash were found to be what the manifest says.

    Raises:
        BundleError: it is missing, is a link or no plain file, or differs.
    """
    content = bytearray()
    read_verified(folder / spec.entry.file, spec.entry, BUILD_AGAIN, content.extend)
    return bytes(content)


def usable_plans(
    bundle: Path, manifest: Manifest, engine: str, version: str, gpu: Gpu, pictures: int = 1
) -> tuple[Path, PlanManifest]:
    """A folder whose plans are all of this bundle's graphs, and for this engine, version, GPU and number of pictures.

    Args:
        bundle: the bundle's folder.
        manifest: the bundle's manifest.
        engine, version: the library that is to load them.
        gpu: the GPU that is to run them.
        pictures: drawn at once.

    Returns: the folder and its manifest.

    Raises:
        BundleError: there is none. The message says what is wrong with the one that comes closest, and how to build.
    """
    ahead = ["--gpu-arch", gpu.capability] if engine == "tensorrt-rtx" else []
    build = f"Build them with: {pasteable('build', '--model', bundle, '--engine', engine, *ahead)}"
    folders = plan_folders(bundle)
    if not folders:
        raise BundleError(f"{bundle} has no plans. {build}")
    faults: list[tuple[int, str]] = []
    for folder in folders:
        try:
            plans = read_plans(folder)
        except BundleError as error:
            faults.append((_DAMAGED, str(error)))
            continue
        fault = _fault(folder, plans, manifest, engine, version, gpu, pictures)
        if fault is None:
            return folder, plans
        faults.append((fault[0], f"{fault[1]} {build}"))
    raise BundleError(max(faults)[1])


def _fault(
    folder: Path, plans: PlanManifest, manifest: Manifest, engine: str, version: str, gpu: Gpu, pictures: int
) -> tuple[int, str] | None:
    """Why a folder's plans cannot be used, with the number of hurdles that they took before."""
    target, wanted = plans.target, tuple(manifest.graphs)
    stale = [name for name, spec in plans.plans.items() if spec.graph_sha256 != _graph_hash(manifest, name)]
    missing = [name for name in wanted if name not in plans.plans]
    low, _, high = plans.options.batch
    served = f"{target.device or 'GPUs'} of compute capability {', '.join(target.gpus)}"
    hurdles = (
        (target.engine == engine, f"are {target.engine}'s, and {engine} was asked for."),
        (target.version == version, f"were built by {engine} {target.version}, and {version} is installed."),
        (target.serves(gpu), f"are for {served}, and this is {gpu.name}, {gpu.capability}."),
        (not stale, f"are of other graphs than this bundle's: {', '.join(stale)}."),
        (not missing, f"are not complete: {', '.join(missing)} are missing."),
        (low <= pictures <= high, f"draw {low} to {counted(high, 'picture')} at once, and {pictures} were asked for."),
    )
    return next(
        ((place + 1, f"The plans in {folder} {text}") for place, (taken, text) in enumerate(hurdles) if not taken), None
    )


def _graph_hash(manifest: Manifest, graph: str) -> str | None:
    return manifest.graphs[graph].entry.sha256 if graph in manifest.graphs else None


class _PlansReader(FormReader):
    """Holds JSON to the form of a plan folder's manifest."""

    def manifest(self) -> PlanManifest:
        """The whole file."""
        data = self.of_format(self.load(), FORMAT, VERSION)
        names = "format version target options recipe plugin_library versions plans sha256"
        _, _, target, options, recipe, library, versions, plans, _ = self.fields("the manifest", data, names)
        if library is not None:
            self.matching("plugin_library", library, SHA256, "64 hexadecimal digits, or null")
        items = self.object("plans", plans, _MAX_PLANS).items()
        manifest = PlanManifest(
            self.target(target),
            self.options(options),
            self.matching("recipe", recipe, SHA256, "64 hexadecimal digits"),
            library,
            self.texts("versions", versions),
            {self.matching("plans", graph, _GRAPH, "of graphs"): self.plan(graph, plan) for graph, plan in items},
        )
        self.check_hash(data)
        return manifest

    def target(self, data: Any) -> PlanTarget:
        engine, version, gpus, device = self.fields("target", data, "engine version gpus device")
        if not isinstance(gpus, list) or not 1 <= len(gpus) <= 32:
            raise self.refuse("target.gpus", "a list of 1 to 32 compute capabilities", gpus)
        return PlanTarget(
            self.one_of("target.engine", engine, ENGINES),
            self.text("target.version", version, 100),
            tuple(self.matching("target.gpus", gpu, _CAPABILITY, 'of numbers such as "8.9"') for gpu in gpus),
            self.text("target.device", device, 200),
        )

    def options(self, data: Any) -> PlanOptions:
        batch, workspace, aux_streams, plugins = self.fields("options", data, "batch workspace aux_streams plugins")
        if not isinstance(batch, list) or len(batch) != 3:
            raise self.refuse("options.batch", "a list of three numbers", batch)
        low, best, high = (self.integer("options.batch", number, 1, MAX_PICTURES) for number in batch)
        if not low <= best <= high:
            raise self.refuse("options.batch", "ascending", batch)
        if workspace is not None:
            self.integer("options.workspace", workspace, 1, MAX_WORKSPACE)
        if aux_streams is not None:
            self.integer("options.aux_streams", aux_streams, 0, MAX_AUX_STREAMS)
        plugins = self.one_of("options.plugins", plugins, PLUGIN_CHOICES)
        return PlanOptions((low, best, high), workspace, aux_streams, plugins)

    def plan(self, graph: str, data: Any) -> PlanSpec:
        where = f"plans.{graph}"
        names = "plan log graph_sha256 layers plugins bodies seconds peak_bytes"
        plan, log, sha256, layers, plugins, bodies, seconds, peak = self.fields(where, data, names)
        return PlanSpec(
            self.entry(f"{where}.plan", self.fields(f"{where}.plan", plan, "file bytes sha256"), f"{graph}.plan"),
            self.entry(f"{where}.log", self.fields(f"{where}.log", log, "file bytes sha256"), f"{graph}.log"),
            self.matching(f"{where}.graph_sha256", sha256, SHA256, "64 hexadecimal digits"),
            self.counts(f"{where}.layers", layers),
            self.counts(f"{where}.plugins", plugins),
            self.counts(f"{where}.bodies", bodies),
            self.number(f"{where}.seconds", seconds, 0, 1e9),
            self.integer(f"{where}.peak_bytes", peak, 0, 1 << 50),
        )

    def counts(self, where: str, data: Any) -> dict[str, int]:
        """How many there are of what."""
        items = self.object(where, data, 256).items()
        return {self.text(where, name, 64): self.integer(f"{where}.{name}", count, 0, _COUNT) for name, count in items}
