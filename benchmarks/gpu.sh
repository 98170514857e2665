#!/usr/bin/env bash
# All that is to be measured on a GPU, in four parts of under nine minutes each (benchmarks/gpu.py says which):
#
#     bash benchmarks/gpu.sh [a|b|c|d] [--rehearse] [flags of python -m benchmarks.gpu]
#
# Without a letter, what is not finished yet. A call that was cut short goes on when it is given again.
# --rehearse: the same code on a CPU with tiny shapes, in a minute or two, into a folder that is thrown away.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi
export MPLBACKEND=Agg
exec "$PYTHON" -m benchmarks.gpu "$@"
