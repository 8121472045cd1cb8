#!/usr/bin/env bash
# Asks a model a split with and without its graphs, scores the answers, and writes one page about them.
#
#   bash shells/evaluate.sh                                the demonstration; its model is trained first where there is none
#   bash shells/evaluate.sh MODEL DATA [any flag of `python -m evaluation generate`]
#   bash shells/evaluate.sh MODEL DATA [...] --judge --backend api --base_url URL --model JUDGE
#
# SPLIT (test; recall where DATA has no graph), OUTPUT (output/evaluation), ABLATIONS (none zero shuffle no_text
# question_only; where DATA has no graph: none, with documents also question_only) are read from the environment. Each
# ablation that was stopped goes on where it was. What stands behind --judge goes to `python -m evaluation judge`:
# accuracy against the facts, and the win rate over the predictions in AGAINST, such as those of the base model that
# shells/inference.sh wrote.
set -euo pipefail
script="$(cd "$(dirname "$0")" && pwd)/$(basename "$0")"
source "$(dirname "$script")/common.sh"

if (($# == 0)); then
    say "No argument: the demonstration, on a CPU. bash shells/evaluate.sh MODEL DATA evaluates yours."
    prepare
    on_one_core
    [[ -f output/demo/data/graph/manifest.json ]] || run -m data_processor.demo --output output/demo/data
    [[ -f output/demo/model/metrics.json ]] || run finetune.py configs/demo.yaml
    set -- output/demo/model output/demo/data --batch_size 32 --max_new_tokens 16
elif (($# < 2)); then
    sed -n '2,/^set -/p' "$script" | grep '^#' | sed 's/^# \{0,1\}//'
    exit 2
fi
model="$1"
data="$2"
shift 2
generate=() judge=() judged=""
while (($#)); do
    if [[ "$1" == --judge ]]; then judged=1; elif [[ -n "$judged" ]]; then judge+=("$1"); else generate+=("$1"); fi
    shift
done
split="$(split_of "$data")"
questions="$(questions_of "$data" "$split")"
output="${OUTPUT:-output/evaluation}"
all="none zero shuffle no_text question_only" checked=(--data "$data" --split "$split")
demo=""
[[ "$data" != output/demo/data ]] || demo=1  # whole, also in a dry run that does not make it
if [[ -z "$demo" && ! -d "$data/graph" ]]; then  # nothing but documents can be taken away
    all=none
    if [[ " ${generate[*]-} " == *" --context documents "* ]] || grep -qs '"context": "documents"' "$model/run.json"; then
        all="none question_only"
    fi
fi
[[ -n "$demo" || -d "$data/qa" && "$questions" == "$data" ]] || checked=()  # a table, or conversations: no ids to check
prepare

for ablation in ${ABLATIONS:-$all}; do
    name=predictions
    [[ "$ablation" == none ]] || name="predictions_$ablation"
    run -m evaluation generate --model "$model" --data "$questions" --split "$split" \
        --output "$output/$name.jsonl" --ablate "$ablation" ${generate[@]+"${generate[@]}"}
done
run -m evaluation score --predictions "$output/predictions.jsonl" --output "$output/metrics.json" \
    ${checked[@]+"${checked[@]}"}
run -m evaluation report "$output" --output "$output/report.html"
if [[ -n "$judged" ]]; then
    facts=()
    [[ ! -f "$data/facts.jsonl" ]] || facts=(--facts "$data/facts.jsonl")
    run -m evaluation judge --predictions "$output/predictions.jsonl" ${AGAINST:+--against "$AGAINST"} \
        ${facts[@]+"${facts[@]}"} --output "$output/judge.json" ${judge[@]+"${judge[@]}"}
fi
