#!/bin/bash
#SBATCH --job-name=diffusion
#SBATCH --partition=a100
#SBATCH --gres=gpu:1
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=4:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR2@180
#SBATCH --output=slurm-%x-%j.out
# Train a latent-diffusion U-Net:   sbatch [sbatch options] jobs/diffusion.sh [training flags of train_diffusion.py]
# Submit it from the repository's root. It requeues itself until the run is done; the same line again resumes a stopped run.
# No --mem: some sites report no memory and would refuse the job. What your cluster wants otherwise (--partition, --account,
# --gres=none for CPUs) goes before the script's name, and overrides what stands above.
cd "${SLURM_SUBMIT_DIR:-.}"
[ -f jobs/env.sh ] || { echo "error: $PWD is not the repository's root; cd to it and submit again" >&2; exit 78; }
unset RUN
source jobs/env.sh
train diffusion "$@"
