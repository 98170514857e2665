#!/bin/bash
#SBATCH --job-name=predict
#SBATCH --partition=a100
#SBATCH --gres=gpu:1
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --time=1:00:00
#SBATCH --no-requeue
#SBATCH --output=slurm-%x-%j.out
# predict.py on a compute node:   sbatch [sbatch options] jobs/predict.sh generate --run runs/NAME --number 64
# Submit it from the repository's root.
cd "${SLURM_SUBMIT_DIR:-.}"
[ -f jobs/env.sh ] || { echo "error: $PWD is not the repository's root; cd to it and submit again" >&2; exit 78; }
unset RUN
source jobs/env.sh
tasks "$PYTHON" -u predict.py "$@"
