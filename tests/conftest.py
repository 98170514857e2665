"""Shared test set-up: the repository root on the path, one thread per process, no GPU unless a test asks for it."""

import os
import signal
import sys
from pathlib import Path

import pytest
from private_cluster import Cluster, missing

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# A shell starts background jobs with SIGINT ignored, which their children inherit: Ctrl-C would not be tested.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def no_profiles_of_ones_own(tmp_path_factory):
    """Profiles of clusters in the home of whoever runs the tests change nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("xdg")))
        yield


# The files that take longest begin first: tests/run.sh gives files to two processes in turn, and none is to end alone.
LONGEST = (
    "test_slurm_training test_launch_slurm test_faults test_train_gan test_pretrain_vae test_train_diffusion "
    "test_fourth_model test_launch"
).split()


SLOW = Path(__file__).with_name("slow.txt")  # what --fast leaves out; written by --note-slow
A_SECOND = 1.0
_seconds: dict[str, float] = {}  # of each test, with the fixtures that it is the first to use


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="without the tests in tests/slow.txt")
    parser.addoption("--note-slow", action="store_true", help="add what takes a second or more to tests/slow.txt")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
    if config.getoption("--fast"):
        slow = set(SLOW.read_text().split())
        left_out = [item for item in items if item.nodeid.partition("[")[0] in slow or "cluster" in item.fixturenames]
        items[:] = [item for item in items if item not in set(left_out)]
        config.hook.pytest_deselected(items=left_out)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    name = report.nodeid.partition("[")[0]
    _seconds[report.nodeid] = _seconds.get(report.nodeid, 0.0) + report.duration
    _seconds[name] = max(_seconds.get(name, 0.0), _seconds[report.nodeid])


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--note-slow") and not hasattr(session.config, "workerinput"):
        known = set(SLOW.read_text().split()) if SLOW.exists() else set()
        slow = {name for name, seconds in _seconds.items() if seconds >= A_SECOND and "[" not in name}
        SLOW.write_text("".join(f"{name}\n" for name in sorted(known | slow)))


@pytest.fixture(scope="session")
def cluster():
    """A private Slurm cluster (tests/private_cluster.py), shared by all tests: each leaves its queue empty."""
    if lack := missing():
        if os.environ.get("CI"):
            pytest.fail(f"no Slurm for the tests: {lack}")
        pytest.skip(f"no Slurm for the tests: {lack}")
    cluster = Cluster()
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="module")
def packs(tmp_path_factory) -> Path:
    """A folder for the packs that the runs of a file of tests share."""
    return tmp_path_factory.mktemp("packs")
