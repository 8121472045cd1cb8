#!/usr/bin/env bash
# Installs what the tests need and runs them: bash shells/test.sh [any argument of pytest], such as -m distributed.
# Without arguments: all but those marked data, slow, distributed, kill, web and gpu (see pyproject.toml), file by file in
# two processes.
set -euo pipefail
source "$(dirname "$0")/common.sh"
find_python
install requirements -r requirements.txt
install tests pytest pytest-timeout pytest-xdist hypothesis ruff torchmetrics scikit-learn sacrebleu rouge-score
[ $# -gt 0 ] || set -- -n 2 --dist loadfile
exec "$PYTHON" -m pytest "$@"
