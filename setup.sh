#!/bin/sh
# Makes .venv from requirements.lock; ./setup.sh minimum: .venv-minimum from requirements-minimum.lock, and so sm90a.
# An environment that is up to date is left alone; any other, half-made or outdated, is made anew.
#
# PYTHON=/path/to/python names the interpreter. CUDA=13 adds JAX's CUDA plugin and is remembered; CUDA= drops it.
set -eu
cd "$(dirname "$0")"
export UV_PYTHON_DOWNLOADS=never

stop() {
    echo "setup: $*" >&2
    exit 1
}

name=${1:-}
venv=.venv${name:+-$name}
lock=requirements${name:+-$name}.lock
cuda_lock=
[ -f "$lock" ] || stop "there is no $lock; run ./setup.sh, ./setup.sh minimum or ./setup.sh sm90a"

if [ -z "$name" ]; then
    case ${CUDA-unsaid} in
    unsaid) ;;
    13) [ "$(uname)" = Linux ] && echo 13 >.venv-cuda || stop "CUDA=13 needs Linux, this is $(uname)" ;;
    '') rm -f .venv-cuda ;;
    *) stop "CUDA=$CUDA is not offered; use CUDA=13, or CUDA= for none" ;;
    esac
    [ ! -f .venv-cuda ] || cuda_lock=requirements-cuda13.lock
fi

# The stamp is written last. It holds the folder too, because the scripts in an environment do.
stamp="$PWD $(cksum setup.sh pyproject.toml kernels/pyproject.toml "$lock" $cuda_lock)"
# An activated environment that is about to be made anew lends nothing to itself.
PATH=$(printf '%s' ":$PATH:" | sed "s|:$PWD/$venv/bin:|:|g; s/^://; s/:\$//")

# A candidate must run to count: pyenv's shims exist for versions that are not selected, and fail with 127. That of an
# environment stands for the one that it was made with.
fits() {
    "$1" -c 'import sys; print(sys._base_executable); sys.exit(sys.version_info < (3, 12))' 2>/dev/null
}
# A Python that is asked for is the one that .venv is made with; unasked, any is left.
if [ -x "$venv/bin/python" ] && [ "$(cat "$venv/stamp" 2>/dev/null)" = "$stamp" ] &&
    { [ -z "${PYTHON:-}" ] || [ "$(fits "$PYTHON" || true)" = "$(cat "$venv/made-with")" ]; }; then exit 0; fi

find_python() {
    made_with=$(cat "$venv/made-with" 2>/dev/null || true)
    for candidate in "$made_with" python3.12 python3 python3.13 python3.14 "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/*/bin/python; do
        found=$(fits "$candidate") && echo "$found" && return
    done
    return 1
}
if [ -n "${PYTHON:-}" ]; then
    python=$(fits "$PYTHON") || stop "PYTHON=$PYTHON is no Python >= 3.12"
else
    python=$(find_python) || stop "found no Python >= 3.12 (python3.12, python3, python3.13, python3.14, pyenv's).
  Install one (apt install python3.12-venv, brew install python@3.12, pyenv install 3.12),
  or name one (make setup PYTHON=/path/to/python), or use conda (conda env create -f environment.yml)."
fi
echo "setup: making $venv with $python" >&2
trap 'echo "setup: not finished; run it again once the cause is mended" >&2' EXIT

# uv from the PATH, or else the locked one, in an environment of its own.
uv=uv
if ! uv --version >/dev/null 2>&1; then
    uv=.venv-uv/bin/uv
    if ! $uv --version >/dev/null 2>&1; then
        rm -rf .venv-uv
        "$python" -m venv .venv-uv
        sed -n '/^uv==/,/[^\\]$/p' requirements.lock >.venv-uv/uv.lock
        .venv-uv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv-uv/uv.lock
    fi
fi

rm -rf "$venv"
$uv venv --quiet --python "$python" "$venv"
# shellcheck disable=SC2086
$uv pip sync --quiet --python "$venv/bin/python" --require-hashes "$lock" $cuda_lock
# The build tools are in the lock, so nothing unlocked is downloaded to build the two packages.
$uv pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation -e ./kernels -e .
echo "$python" >"$venv/made-with"
echo "$stamp" >"$venv/stamp"
trap - EXIT
