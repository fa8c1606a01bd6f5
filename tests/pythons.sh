#!/bin/sh
# Runs the bridge's tests, from one wheel, on each interpreter that is given: by its path, or by its name on the PATH (or
# known to pyenv). One that is not installed is skipped, by name.
# Exits with 3 where none is installed.
# usage: tests/pythons.sh WHEEL INTERPRETER ...
set -eu
cd "$(dirname "$0")/.."
wheel=$1
shift
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV

# Of all that the PATH has under this name the first that runs: a shim may stand for a version that is not chosen.
find_python() {
    case $1 in */*) [ -x "$1" ] && echo "$1" && return ;; esac
    for folder in $(echo "$PATH" | tr : ' '); do
        if [ -x "$folder/$1" ] && "$folder/$1" -c '' 2>/dev/null; then echo "$folder/$1" && return; fi
    done
    version=$(pyenv whence "$1" 2>/dev/null | tail -n 1)
    [ -n "$version" ] && PYENV_VERSION=$version pyenv which "$1"
}

run=0 failed=""
for name in "$@"; do
    if ! python=$(find_python "$name"); then
        echo "skipped: $name is not installed; name another with PYTHONS=..."
        continue
    fi
    run=$((run + 1))
    version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')
    venv=target/pythons/$version
    echo "== Python $version ($wheel)"
    "$python" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet --upgrade "pip>=25.1"
    "$venv/bin/python" -m pip install --quiet --group test "$wheel"
    "$venv/bin/python" -m pytest --quiet tests/python/test_bridge*.py tests/python/test_models.py || failed="$failed $version"
done
[ -z "$failed" ] || { echo "failed on$failed"; exit 1; }
[ "$run" -gt 0 ] || { echo "no interpreter was found"; exit 3; }
