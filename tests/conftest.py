"""Shared test set-up: the repository root on the path, one thread per process, no GPU unless a test asks for it."""

import os
import signal
import sys
import time
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


# The files that take longest begin first: tests/run.sh gives files to processes in turn, and none is to end alone.
LONGEST = (
    "test_launch_slurm test_slurm_training test_gpu_day test_faults test_slurm_unkind test_train_gan "
    "test_slurm_stops test_endings_slurm test_pretrain_vae test_launch test_options_slurm test_train_diffusion "
    "test_attempts test_flags test_fourth_model"
).split()


SLOW = Path(__file__).with_name("slow.txt")  # tests and fixtures that --fast leaves out; written by --note-slow
HALF_A_SECOND = 0.5  # of a quiet machine; all cases of a test together may take four times that
_cases: dict[str, dict[str, float]] = {}  # test, or FILE::@FIXTURE -> seconds of each of its cases


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="without the tests in tests/slow.txt")
    parser.addoption(
        "--note-slow", nargs="?", type=float, const=HALF_A_SECOND, metavar="SECONDS",
        help="add what takes that long (default %(const)s) to tests/slow.txt",
    )  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
    if config.getoption("--fast"):
        slow = set(SLOW.read_text().split())
        left_out = [item for item in items if slow & _names(item) or "cluster" in _uses(item)]
        items[:] = [item for item in items if item not in set(left_out)]
        config.hook.pytest_deselected(items=left_out)


def _uses(item: pytest.Item) -> list[str]:
    return getattr(item, "fixturenames", [])


def _names(item: pytest.Item) -> set[str]:
    """As tests/slow.txt writes a test and its fixtures."""
    file = item.nodeid.partition("::")[0]
    return {item.nodeid.partition("[")[0], *(f"{file}::@{name}" for name in _uses(item))}


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    started = time.monotonic()
    try:
        return (yield)
    finally:
        if fixturedef.scope != "function":
            file = request.node.nodeid.partition("::")[0]
            request._pyfuncitem.user_properties.append((f"{file}::@{fixturedef.argname}", time.monotonic() - started))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    cases = _cases.setdefault(report.nodeid.partition("[")[0], {})
    cases[report.nodeid] = cases.get(report.nodeid, 0.0) + report.duration
    if report.when == "setup":
        for name, seconds in report.user_properties:
            _cases.setdefault(name, {})[name] = seconds
            cases[report.nodeid] -= seconds  # the fixture's, not the test's


def pytest_sessionfinish(session: pytest.Session) -> None:
    limit = session.config.getoption("--note-slow")
    if limit and not hasattr(session.config, "workerinput"):
        known = set(SLOW.read_text().split()) if SLOW.exists() else set()
        slow = {name for name, cases in _cases.items()
                if max(cases.values()) >= limit or sum(cases.values()) >= 4 * limit}  # fmt: skip
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
