# Sourced by jobs/quickstart.sh and tests/run.sh from the repository's root: makes a venv and installs into it.
# Sets $PYTHON. Re-uses what is there: a venv whose requirements have not changed is not touched.
VENV=.venv  # its folder; tests/run.sh has others for other versions

# find_python [VERSION]: a Python of 3.11 or newer, or one of exactly that version (3.13)
find_python() {
    local candidate check='import sys; sys.exit(sys.version_info < (3, 11))'
    local candidates=("${PYTHON:-}" python3 python3.13 python3.12 python3.11 python)
    if [ -n "${1:-}" ]; then
        check="import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')"
        candidates=("${PYTHON:-}" "python$1" python3 "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python)
    fi
    # Each is tried: what is on the PATH may be pyenv's placeholder for a version that is not chosen, and fail.
    for candidate in "${candidates[@]}"; do
        if [ -n "$candidate" ] && "$candidate" -c "$check" 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    echo "error: Python ${1:-3.11 or newer} is needed and was not found; load a module or activate a conda environment that has it" >&2
    return 1
}

# ensure_venv FILE...: install the requirement files FILE... into $VENV, made of $PYTHON or what find_python finds
ensure_venv() {
    local base options="" stamp file
    PYTHON_BASE=$(find_python) || return 2
    base=$PYTHON_BASE
    stamp=$(cat "$@" | cksum | tr ' ' '-')
    if [ ! -x "$VENV/bin/python" ]; then
        # A torch that is there already (a cluster's conda environment, say) is re-used: it saves gigabytes of a small home.
        if "$base" -c 'import torch' 2>/dev/null; then options=--system-site-packages; fi
        echo "Making $VENV with $base${options:+ ($options: its torch is re-used)}"
        "$base" -m venv $options "$VENV" || { echo "error: 'python -m venv' failed; on Debian: apt-get install python3-venv" >&2; return 2; }
    fi
    PYTHON=$PWD/$VENV/bin/python
    if [ ! -f "$VENV/.installed-$stamp" ]; then
        echo "Installing $* into $VENV (once; torch with CUDA is about 3 GB, two minutes on a fast network)"
        for file in "$@"; do set -- "$@" -r "$file"; shift; done
        if [ -t 1 ]; then  # pip's own progress bars
            "$PYTHON" -m pip install --disable-pip-version-check "$@" || return 1
        else
            # The callers set pipefail, so that pip's failure is the pipe's.
            if ! "$PYTHON" -m pip install --disable-pip-version-check --progress-bar off "$@" 2>&1 | tee "$VENV/pip.log" \
                | { grep --line-buffered -E '^(Collecting torch==|Downloading torch-|Installing|Successfully)' || true; } | cut -c1-120
            then
                tail -n 20 "$VENV/pip.log" >&2
                echo "error: pip could not install the requirements; its last lines are above, all of them in $VENV/pip.log" >&2
                return 1
            fi
        fi
        touch "$VENV/.installed-$stamp"
    fi
    export PYTHON
}
