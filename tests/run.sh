#!/usr/bin/env bash
# Everything the tests need, then all the tests:
#
#     bash tests/run.sh [--fast | --long] [--python VERSION] [--lowest] [pytest arguments]
#
# --fast: for the edit loop, without those that take half a second or more (tests/slow.txt) and without Slurm.
# --long: the slow tests too, with the lines that were reached in all processes; then, unless pytest arguments or a version
#     are given, the suite on the other promised versions that are found here, and the planted faults
#     (python -m tests.mutants).
# --python 3.13: with that Python, in .venv-3.13.
# --lowest: with the oldest packages that requirements.txt allows, in .venv-lowest.
set -euo pipefail
cd "$(dirname "$0")/.."
source jobs/venv.sh

long="" fast="" version="" lowest=""
while [ $# -gt 0 ]; do
    case $1 in
        --long) long=yes ;;
        --fast) fast=yes ;;
        --python) version=${2:?--python needs a version, such as 3.13}; shift ;;
        --python=*) version=${1#*=} ;;
        --lowest) lowest=yes ;;
        *) break ;;
    esac
    shift
done
# The oldest packages have no wheels for newer Pythons. 3.11 is the oldest promised.
if [ -n "$lowest" ] && [ -z "$version" ]; then wanted=3.11; else wanted=$version; fi
if [ -n "$wanted" ]; then PYTHON=$(find_python "$wanted") || exit 2; fi
VENV=.venv${lowest:+-lowest}${version:+-$version}
requirements=requirements.txt
if [ -n "$lowest" ]; then
    mkdir -p "$VENV"
    requirements=$VENV/requirements.txt
    sed 's/>=/==/' requirements.txt >"$requirements"
    # Without CUDA torch is a tenth of the size, where its own index can be reached.
    cpu=https://download.pytorch.org/whl/cpu
    if "$PYTHON" -c "import urllib.request as r; r.urlopen('$cpu/torch/', timeout=10)" 2>/dev/null; then
        export PIP_EXTRA_INDEX_URL=$cpu
    fi
fi
ensure_venv "$requirements" tests/requirements.txt

# The tests of jobs run on a real Slurm, on this machine. Where it cannot be installed they are skipped with the reason.
have_slurm() { local tool; for tool in slurmctld slurmd munged sbatch; do PATH=$PATH:/usr/sbin command -v $tool >/dev/null || return 1; done; }
if [ -z "$fast" ] && ! have_slurm && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing slurmctld slurmd slurm-client munge with apt-get (for the tests of jobs)"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge; } >/dev/null 2>&1 \
        || echo "WARNING: apt-get could not install Slurm; the tests of jobs are skipped" >&2
fi
# Accounting is on in two of them.
have_accounts() { local tool; for tool in slurmdbd mariadbd mariadb-admin; do PATH=$PATH:/usr/sbin command -v $tool >/dev/null || return 1; done; }
if [ -z "$fast" ] && have_slurm && ! have_accounts && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing slurmdbd mariadb-server-core mariadb-client with apt-get (for the tests of jobs)"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmdbd mariadb-server-core mariadb-client >/dev/null 2>&1 \
        || echo "WARNING: apt-get could not install slurmdbd; the tests with accounting are skipped" >&2
fi

# `launch.py --host` is tested against an sshd on loopback.
have_login() { local tool; for tool in sshd ssh rsync; do PATH=$PATH:/usr/sbin command -v $tool >/dev/null || return 1; done; }
if [ -z "$fast" ] && ! have_login && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing openssh-server openssh-client rsync with apt-get (for the tests of --host)"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends openssh-server openssh-client rsync; } >/dev/null 2>&1 \
        || echo "WARNING: apt-get could not install openssh-server and rsync; the tests of --host are skipped" >&2
fi

# The page of `predict.py explore` is looked at in a browser.
if [ -z "$fast" ] && ! command -v chromium >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing chromium with apt-get (for the test of explore)"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1 \
        || echo "WARNING: apt-get could not install chromium; no page is looked at in a browser" >&2
fi

selection=(-m "not long and not gpu")
if [ -n "$long" ]; then selection=(-m "not gpu"); fi
if [ -n "$fast" ]; then selection+=(--fast); fi
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check -q .
# Types are judged on the oldest Python, with the newest packages: those of other versions have other stubs.
if [ -z "$lowest" ] && "$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then "$PYTHON" -m mypy; fi
export MPLBACKEND=Agg PYTHONDONTWRITEBYTECODE=1
# The files of tests in turn on three processes: those of jobs mostly wait for Slurm.
tests=(-m pytest -n 3 --dist loadfile --no-loadscope-reorder "${selection[@]}")
if [ -z "$long" ] || [ $# -gt 0 ] || [ -n "$version$lowest" ]; then exec "$PYTHON" "${tests[@]}" "$@"; fi

# The long form: all of it, also behind a failure, which is then named again at the end.
failed=""
"$PYTHON" -m coverage erase
"$PYTHON" -m coverage run "${tests[@]}" || failed="the tests"
"$PYTHON" -m coverage combine -q && "$PYTHON" -m coverage report || failed="$failed, coverage"
own=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
for other in 3.11 3.12 3.13 lowest; do
    case $other in
        "$own") continue ;;
        lowest) options=(--lowest) needed=3.11 ;;
        *) options=(--python "$other") needed=$other ;;
    esac
    if (unset PYTHON; find_python "$needed") >/dev/null 2>&1; then
        echo "The suite again: ${options[*]}"
        env -u PYTHON bash tests/run.sh "${options[@]}" || failed="$failed, ${options[*]}"
    else
        echo "No Python $needed here: ${options[*]} is left out"
    fi
done
"$PYTHON" -m tests.mutants || failed="$failed, tests.mutants"
if [ -n "$failed" ]; then
    echo "FAILED: ${failed#, }" >&2
    exit 1
fi
