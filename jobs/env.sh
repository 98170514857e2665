# Sourced on the compute node, from the root of the code to run, by the sbatch scripts (then: train NAME FLAGS) and by the
# jobs that launch.py queues (RUN, PYTHON and REPOSITORY are set, srun follows). Finds Python, sets the environment, and
# sees to it that `jobs.cluster.requeue` hears how the tasks ended. srun must not be exec'd: this shell has to outlive the
# tasks.
set -euo pipefail
CODE=$PWD
# Where the snapshot CODE was taken from: what decides how a job ended stays to be had there. A successor inherits it.
export REPOSITORY=${REPOSITORY:-$PWD}

has_packages() { "$1" -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ("torch", "tyro"))))'; }

node_python() {  # never installs anything: a compute node may have no network
    source jobs/venv.sh
    local own=$PWD/.venv/bin/python
    # What launch.py chose stands. For an sbatch script a good .venv goes before a PYTHON that the user's shell happens to have.
    if [ -z "${RUN:-}" ] && [ -x "$own" ] && { [ -z "${PYTHON:-}" ] || has_packages "$own"; }; then
        if [ -n "${PYTHON:-}" ] && [ "$PYTHON" != "$own" ]; then echo "note: .venv is used, not PYTHON=$PYTHON of your shell" >&2; fi
        PYTHON=$own
    fi
    PYTHON=$(find_python) || exit 78
    if ! has_packages "$PYTHON"; then
        echo "error: $PYTHON has no torch or tyro; on the login node: python3 -m venv --system-site-packages .venv && .venv/bin/pip install -r requirements.txt" >&2
        exit 78
    fi
    export PYTHON
}

begin() {  # begin RUN | begin --job NAME -- FLAGS: sets RUN and COMMAND, or leaves when there is nothing to do
    local text
    text=$("$PYTHON" -m jobs.cluster.requeue --begin "$@") || exit $?
    eval "$text"
    export LAUNCHED_RUN=$RUN  # a STOP that is older than the submission is lifted by now: whoever finds one obeys it
    # Compiled kernels on shared storage: a restart on another node does not compile again. They are code that is run, so
    # only in a folder of one's own.
    local cache=${RUN%/*}/.cache
    if mkdir -p "$cache" && [ -O "$cache" ] && [ ! -L "$cache" ] && chmod 700 "$cache"; then
        export TORCHINDUCTOR_CACHE_DIR=$cache/torchinductor TRITON_CACHE_DIR=$cache/triton
    fi
}

hand_over() {  # the EXIT trap
    local code=$?
    trap '' TERM USR1 USR2 HUP INT
    trap - EXIT
    set +e
    if [ -f "$CODE/jobs/cluster/requeue.py" ]; then cd "$CODE"; else cd "$REPOSITORY"; fi  # a snapshot can be deleted meanwhile
    "$PYTHON" -m jobs.cluster.requeue "$RUN" --code "$code"
    exit $?
}

tasks() {  # one task per GPU
    srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --cpu-bind=none --unbuffered "$@"
}

train() {  # train NAME FLAGS: the body of an sbatch script
    local name=$1
    shift
    begin --job "$name" -- "$@"
    trap hand_over EXIT
    tasks "$PYTHON" -u "${COMMAND[@]}"
}

if [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "error: this is a batch script of Slurm; submit it (sbatch jobs/stylegan2.sh), or use launch.py --local" >&2
    exit 2
fi
# A shell without a trap dies of the TERM that Slurm sends to it and the tasks; the tasks then have no time to save.
trap : TERM USR1 USR2
# srun takes options from its environment: what the user's shell says there (SLURM_EXPORT_ENV=NONE, which also comes with
# sbatch --export=NONE, takes even the PATH from the tasks; SLURM_TIMELIMIT ends them) is not meant for these tasks.
unset ${!SRUN_@} ${!SBATCH_@} SLURM_TIMELIMIT SLURM_EXCLUSIVE
export SLURM_EXPORT_ENV=ALL
export MPLBACKEND=Agg PYTHONUNBUFFERED=1
[ -n "${BRAIN_CORES:-}" ] || ulimit -S -c 0  # a crash leaves no gigabyte in a small home
node_python
if [ -n "${RUN:-}" ]; then
    trap hand_over EXIT
    begin "$RUN"
fi
