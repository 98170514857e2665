# Sourced by jobs/quickstart.sh and tests/run.sh from the repository's root: makes .venv and installs into it.
# Sets $PYTHON. Re-uses what is there: a venv whose requirements have not changed is not touched.

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    echo "error: Python 3.11 or newer is needed and was not found; load a module or activate a conda environment that has it" >&2
    return 1
}

# ensure_venv FILE...: install the requirement files FILE... into .venv
ensure_venv() {
    local base options="" stamp file
    PYTHON_BASE=$(find_python) || return 2
    base=$PYTHON_BASE
    stamp=$(cat "$@" | cksum | tr ' ' '-')
    if [ ! -x .venv/bin/python ]; then
        # A torch that is there already (a cluster's conda environment, say) is re-used: it saves gigabytes of a small home.
        if "$base" -c 'import torch' 2>/dev/null; then options=--system-site-packages; fi
        echo "Making .venv with $base${options:+ ($options: its torch is re-used)}"
        "$base" -m venv $options .venv || { echo "error: 'python -m venv' failed; on Debian: apt-get install python3-venv" >&2; return 2; }
    fi
    PYTHON=$PWD/.venv/bin/python
    if [ ! -f ".venv/.installed-$stamp" ]; then
        echo "Installing $* into .venv (once; torch with CUDA is about 3 GB, two minutes on a fast network)"
        for file in "$@"; do set -- "$@" -r "$file"; shift; done
        if [ -t 1 ]; then  # pip's own progress bars
            "$PYTHON" -m pip install --disable-pip-version-check "$@" || return 1
        else
            # The callers set pipefail, so that pip's failure is the pipe's.
            if ! "$PYTHON" -m pip install --disable-pip-version-check --progress-bar off "$@" 2>&1 | tee .venv/pip.log \
                | { grep --line-buffered -E '^(Collecting torch==|Downloading torch-|Installing|Successfully)' || true; } | cut -c1-120
            then
                tail -n 20 .venv/pip.log >&2
                echo "error: pip could not install the requirements; its last lines are above, all of them in .venv/pip.log" >&2
                return 1
            fi
        fi
        touch ".venv/.installed-$stamp"
    fi
    export PYTHON
}
