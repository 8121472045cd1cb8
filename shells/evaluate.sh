#!/usr/bin/env bash
# Asks a model a split with and without its graphs, scores the answers, and writes one page about them.
#
#   bash shells/evaluate.sh MODEL DATA [any flag of `python -m evaluation generate`]
#
# SPLIT (test), OUTPUT (output/evaluation), ABLATIONS (none zero shuffle no_text question_only) are read from the
# environment. Each ablation that was stopped goes on where it was.
set -euo pipefail
script="$(cd "$(dirname "$0")" && pwd)/$(basename "$0")"
source "$(dirname "$script")/common.sh"

if (($# < 2)); then
    sed -n '2,/^set -/p' "$script" | grep '^#' | sed 's/^# \{0,1\}//'
    exit 2
fi
model="$1"
data="$2"
shift 2
split="${SPLIT:-test}"
output="${OUTPUT:-output/evaluation}"
find_python
install requirements -r requirements.txt

for ablation in ${ABLATIONS:-none zero shuffle no_text question_only}; do
    name=predictions
    [[ "$ablation" == none ]] || name="predictions_$ablation"
    "$PYTHON" -m evaluation generate --model "$model" --data "$data" --split "$split" \
        --output "$output/$name.jsonl" --ablate "$ablation" "$@"
done
"$PYTHON" -m evaluation score --predictions "$output/predictions.jsonl" --output "$output/metrics.json" \
    --data "$data" --split "$split"
"$PYTHON" -m evaluation report "$output" --output "$output/report.html"
