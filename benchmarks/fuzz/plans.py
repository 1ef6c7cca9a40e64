"""The plans of a bundle: their folders, manifests, plans and logs."""

import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

from actvar.benchmarks.fuzz import bundles
from actvar.benchmarks.fuzz.changes import change_file, change_json, change_place
from actvar.benchmarks.fuzz.doors import through
from actvar.bundle.manifest import MANIFEST_FILE, PLANS_FOLDER, read_manifest
from actvar.bundle.plans import (
    LOCK_FILE,
    RTX,
    Gpu,
    PlanOptions,
    PlanSpec,
    PlanTarget,
    plan_folder,
    read_plan,
    usable_plans,
    write_plans,
)
from actvar.export.binder import bind_random
from actvar.export.plans.builder import build_plans
from actvar.export.saved_model import save_bundle
from actvar.files import hash_file

_TARGET = PlanTarget(RTX, "1.7.1.116", ("8.9",))
_OTHER = PlanTarget(RTX, "1.6.0.1", ("8.9", "12.0"))
_OPTIONS = PlanOptions(plugins="none")
_GPU = Gpu("a GPU", "8.9")


def samples(folder: Path) -> list[Path]:
    """A bundle with two plan folders: one of all graphs, and one of an older version that was stopped half way."""
    [bundle] = bundles.samples(folder)
    graphs = read_manifest(bundle).graphs
    for target, built in ((_TARGET, list(graphs)), (_OTHER, list(graphs)[:3])):
        empty = build_plans(bundle, target, _OPTIONS, graphs=())
        plans = plan_folder(bundle, target)
        specs = {}
        for graph in built:
            for kind in ("plan", "log"):
                (plans / f"{graph}.{kind}").write_bytes(random.Random(f"{graph} {kind}").randbytes(300))
            entry, log = hash_file(plans / f"{graph}.plan"), hash_file(plans / f"{graph}.log")
            specs[graph] = PlanSpec(entry, log, graphs[graph].entry.sha256, {"matmul": 3}, {}, {}, 1.5, 1 << 20)
        write_plans(plans, replace(empty, plans=specs))
    return [bundle]


def mutate(path: Path, rng: random.Random) -> None:
    """Change a manifest, a plan, a log, or what lies where a folder should."""
    folder = rng.choice(sorted((path / PLANS_FOLDER).iterdir()))
    kind = rng.randrange(10)
    if kind < 4:
        change_json(folder / MANIFEST_FILE, rng)
    elif kind < 6:
        change_file(folder / MANIFEST_FILE, rng)
    elif kind < 7:
        change_file(rng.choice(sorted(folder.glob("*.[pl]*"))), rng)
    else:
        change_folder(folder, rng)


def change_folder(folder: Path, rng: random.Random) -> None:
    """Put something else where a plan folder is, or where all of them are, or something strange into it."""
    place = rng.choice((folder, folder, folder.parent))
    outside = place.parents[3 if place == folder else 2] / "outside"
    odd = rng.choice((LOCK_FILE, ".scale_01.plan.00.tmp", "scale_09.plan", "scale_09.log", "decoder.plan", "\x1b[2J"))

    kind = rng.choice(range(15))
    if kind < 2:
        shutil.move(place, outside)
        place.symlink_to(outside if kind == 0 else os.path.relpath(outside, place.parent))
    elif kind < 6:
        shutil.rmtree(place)
        if kind == 2:
            place.write_bytes(b"no folder")
        elif kind == 3:
            place.symlink_to(place.name)
        elif kind == 4:
            os.mkfifo(place)
    elif kind == 6:
        place.rename(place.with_name(rng.choice(("a", "\x1b[2J", "x" * 250, "..x", "\udcff"))))
    elif kind == 7:
        shutil.copytree(folder, folder.with_name("copy"))
    elif kind == 8:
        (folder.parent / rng.choice(("file", ".hidden", "\x1b[2J"))).write_bytes(b"no folder")
    elif kind < 11:
        for number in range(1 if kind == 9 else 500):
            (folder.parent / f"more{number if kind == 10 else ''}").mkdir()
    elif kind == 11:
        _deep(rng.choice((folder, folder.parent)))
    elif kind == 12:
        (folder / odd).unlink(missing_ok=True)
        (folder / odd).mkdir()
    elif kind == 13:
        (folder / odd).touch()
        change_place(folder / odd, rng)
    else:
        change_place(folder / MANIFEST_FILE, rng)


def _deep(folder: Path) -> None:
    """Folders in each other, until the path is as long as one may be."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(1990):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


def read(path: Path) -> None:
    """As `inspect` shows them, an engine is given them, a saved or bound model takes them along, and `build` keeps."""
    through(
        lambda: bundles.inspect(path),
        lambda: _loaded(path),
        lambda: save_bundle(path, read_manifest(path), path.with_name("saved")),
        lambda: bind_random(path, path.with_name("bound")),
        lambda: _kept(path),
    )


def _loaded(path: Path) -> None:
    manifest = read_manifest(path)
    folder, plans = usable_plans(path, manifest, _TARGET.engine, _TARGET.version, _GPU)
    for graph in manifest.graphs:
        read_plan(folder, plans.plans[graph])


def _kept(path: Path) -> None:
    """Nothing is built where nothing is asked for; what is no longer right goes."""
    for target in (_TARGET, _OTHER):
        build_plans(path, target, _OPTIONS, graphs=())
