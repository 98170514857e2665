#!/usr/bin/env bash
# From a fresh clone to generated brains:   bash jobs/quickstart.sh [training flags]
# Makes .venv, installs the requirements, trains a small StyleGAN2 on procedural phantoms (minutes on two CPU cores).
# Run it again: an interrupted run goes on, a finished one says so.
set -euo pipefail
cd "$(dirname "$0")/.."

# A login node is where a Slurm controller answers; the mere packages do not make one.
if [ -z "${SLURM_JOB_ID:-}" ] && command -v sbatch >/dev/null && timeout 5 sinfo --noheader >/dev/null 2>&1; then
    echo "error: this looks like a Slurm login node, where nothing may compute. Run it inside a job:" >&2
    echo "    srun --partition=YOUR_PARTITION --cpus-per-task=4 --time=20 bash jobs/quickstart.sh" >&2
    exit 2
fi

source jobs/venv.sh
ensure_venv requirements.txt
exec "$PYTHON" launch.py --local --wait --job stylegan2 --preset quickstart --name quickstart "$@"
