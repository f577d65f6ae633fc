#!/bin/sh
# Coverage of enginefarm/ by lines and branches, its child processes included.
#   tests/coverage/run.sh [PYTEST ARGUMENTS]     default: tests/unit tests/integration tests/farm
#
# PYTHON            the environment's Python (default .venv/bin/python)
# COVERAGE_FOLDER   where the data goes (default test-output/coverage). What lies there
#                   already counts too: empty it for a figure of this run alone.
set -u
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
folder=${COVERAGE_FOLDER:-test-output/coverage}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cp tests/coverage/sitecustomize.py "$folder"
cat >"$folder/coveragerc" <<END
[run]
source_pkgs = enginefarm
branch = true
parallel = true
patch = _exit, fork
data_file = $folder/data
disable_warnings = no-data-collected, module-not-imported, module-not-measured
[report]
show_missing = true
exclude_also =
    if TYPE_CHECKING:
    \.\.\.$
END
[ $# -gt 0 ] || set -- tests/unit tests/integration tests/farm
PYTHONPATH="$folder:$PWD${PYTHONPATH:+:$PYTHONPATH}" "$python" -m pytest "$@"
passed=$?
"$python" tests/coverage/figures.py "$folder" || exit
exit $passed
