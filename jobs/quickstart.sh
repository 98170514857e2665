#!/usr/bin/env bash
# From a fresh clone to generated brains:   bash jobs/quickstart.sh [flags of launch.py]
# Makes .venv, installs the requirements, trains a small StyleGAN2 on procedural phantoms (minutes on two CPU cores).
# Run it again: an interrupted run goes on, a finished one says so.
set -euo pipefail
cd "$(dirname "$0")/.."

# A login node is where a Slurm controller answers; the mere packages do not make one. There the job is queued,
# as nothing may compute.
where="--local --wait"
if [ -z "${SLURM_JOB_ID:-}" ] && command -v sbatch >/dev/null && timeout 5 sinfo --noheader >/dev/null 2>&1; then
    where=
    echo "Slurm answers here, so the job is queued: --partition YOURS says where; --local --wait computes here instead."
fi

source jobs/venv.sh
ensure_venv requirements.txt
# shellcheck disable=SC2086
exec "$PYTHON" launch.py $where --job stylegan2 --preset quickstart --name quickstart "$@"
