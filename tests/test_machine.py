"""What a process may use of its machine: cores, and what a container's quota leaves of them."""

import os
from pathlib import Path

import pytest

from actvar.runtime import machine
from actvar.runtime.machine import cpu_quota, usable_cores


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n"}, None),
        ({}, None),
        (
            {
                "proc/self/cgroup": "0::/pod/box\n",
                "sys/fs/cgroup/pod/cpu.max": "150000 100000\n",
                "sys/fs/cgroup/pod/box/cpu.max": "max 100000\n",
            },
            1.5,
        ),
        ({"proc/self/cgroup": "0::/outside\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
        (
            {
                "proc/self/cgroup": "9:memory:/m\n1:cpu,cpuacct:/a\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "25000\n",
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "50000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
    ],
    ids=["v2", "v2 without", "no file", "no groups", "v2 above", "v2 in a container", "v1"],
)
def test_the_quota_is_the_least_of_all_groups(tmp_path, files, quota):
    """Version 2 and 1, set on the group itself or above it, seen from inside a container or not."""
    for path, text in files.items():
        write(tmp_path, path, text)
    assert cpu_quota(tmp_path) == quota


@pytest.mark.parametrize(("quota", "cores"), [(None, 8), (0.5, 1), (1.5, 2), (3.0, 3), (64.0, 8)])
def test_cores_are_what_affinity_and_quota_allow(monkeypatch, quota, cores):
    """Half a core is one thread; a quota above the machine changes nothing."""
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert usable_cores() == cores
    assert machine.has_binding_quota() == (quota is not None and quota < 8)


def test_more_threads_than_cores_are_capped_with_a_word(caplog):
    """64 threads on two cores drew 0.03 pictures a second, for 1.2 with two."""
    ort = pytest.importorskip("actvar.runtime.backends.ort")
    cores = len(os.sched_getaffinity(0))
    assert ort.session_options(cores + 62, "cpu", packs=False).intra_op_num_threads == cores
    assert f"{cores + 62} threads on {cores} cores" in caplog.text
    assert ort.session_options(0, "cpu", packs=False).intra_op_num_threads == usable_cores()


def test_threads_do_not_spin_where_a_quota_pays_for_it(monkeypatch):
    """What they spin away is missing to those that work."""
    ort = pytest.importorskip("actvar.runtime.backends.ort")
    key = "session.intra_op.allow_spinning"
    for binds, said in ((True, "0"), (False, None)):
        monkeypatch.setattr(ort, "has_binding_quota", lambda binds=binds: binds)
        options = ort.session_options(0, "cpu", packs=False)
        if said is None:
            with pytest.raises(RuntimeError):
                options.get_session_config_entry(key)
        else:
            assert options.get_session_config_entry(key) == said
