#!/usr/bin/env bash
# Everything the tests need, then all the tests:   bash tests/run.sh [--long] [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source jobs/venv.sh
ensure_venv requirements.txt tests/requirements.txt

selection=(-m "not long and not gpu")
if [ "${1:-}" = "--long" ]; then
    shift
    selection=(-m "not gpu")
fi
"$PYTHON" -m ruff check .
export MPLBACKEND=Agg PYTHONDONTWRITEBYTECODE=1
exec "$PYTHON" -m pytest "${selection[@]}" "$@"
