#!/usr/bin/env bash
# Installs what the tests need and runs them: bash shells/test.sh [any argument of pytest], such as -m distributed.
# Without arguments: all but those marked data, slow, distributed, kill, web and gpu (see pyproject.toml).
set -euo pipefail
source "$(dirname "$0")/common.sh"
find_python
install requirements -r requirements.txt
install tests pytest pytest-timeout hypothesis ruff torchmetrics scikit-learn sacrebleu rouge-score
exec "$PYTHON" -m pytest "$@"
