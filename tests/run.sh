#!/usr/bin/env bash
# Everything the tests need, then all the tests:   bash tests/run.sh [--long] [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source jobs/venv.sh
ensure_venv requirements.txt tests/requirements.txt

# The tests of jobs run on a real Slurm, on this machine. Where it cannot be installed they are skipped with the reason.
have_slurm() { local tool; for tool in slurmctld slurmd munged sbatch; do PATH=$PATH:/usr/sbin command -v $tool >/dev/null || return 1; done; }
if ! have_slurm && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing slurmctld slurmd slurm-client munge with apt-get (for the tests of jobs)"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge; } >/dev/null 2>&1 \
        || echo "WARNING: apt-get could not install Slurm; the tests of jobs are skipped" >&2
fi
# Accounting is on in two of them.
have_accounts() { local tool; for tool in slurmdbd mariadbd mariadb-admin; do PATH=$PATH:/usr/sbin command -v $tool >/dev/null || return 1; done; }
if have_slurm && ! have_accounts && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing slurmdbd mariadb-server-core mariadb-client with apt-get (for the tests of jobs)"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmdbd mariadb-server-core mariadb-client >/dev/null 2>&1 \
        || echo "WARNING: apt-get could not install slurmdbd; the tests with accounting are skipped" >&2
fi

selection=(-m "not long and not gpu")
if [ "${1:-}" = "--long" ]; then
    shift
    selection=(-m "not gpu")
fi
"$PYTHON" -m ruff check .
export MPLBACKEND=Agg PYTHONDONTWRITEBYTECODE=1
# The files of tests in turn on two processes: most tests wait for one training process of one thread.
exec "$PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "${selection[@]}" "$@"
