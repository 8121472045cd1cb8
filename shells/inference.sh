#!/usr/bin/env bash
# A fine-tuned model and the model it was made from answer the same questions: two files of predictions side by side.
#
#   bash shells/inference.sh MODEL DATA [BASE] [any flag of `python -m evaluation generate`]
#
# MODEL is a folder that finetune.py wrote, BASE a model of the Hub or a folder that is asked the questions alone; without
# BASE only MODEL answers. SPLIT (test; recall where DATA has no graph) and OUTPUT (output/inference) are read from the
# environment: OUTPUT/predictions.jsonl and OUTPUT/base/predictions.jsonl.
# `bash shells/evaluate.sh MODEL DATA --judge ...` scores and judges them.
set -euo pipefail
script="$(cd "$(dirname "$0")" && pwd)/$(basename "$0")"
source "$(dirname "$script")/common.sh"

if (($# < 2)); then
    sed -n '2,/^set -/p' "$script" | grep '^#' | sed 's/^# \{0,1\}//'
    exit 2
fi
model="$1" data="$2" base=""
shift 2
if (($#)) && [[ "$1" != --* ]]; then
    base="$1"
    shift
fi
find_python
install requirements -r requirements.txt
split="$(split_of "$data")"
output="${OUTPUT:-output/inference}"
"$PYTHON" -m evaluation generate --model "$model" --data "$(questions_of "$data" "$split")" --split "$split" \
    --output "$output/predictions.jsonl" "$@"
[[ -z "$base" ]] || "$PYTHON" -m evaluation answer --backend local --model "$base" --data "$data" --split "$split" \
    --output "$output/base/predictions.jsonl"
