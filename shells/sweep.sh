#!/usr/bin/env bash
# Searches for the best flags: finetune.py as a process a trial, then one page about them.
#
#   bash shells/sweep.sh                                   the demonstration: eight trials, 10 minutes on two busy cores
#   bash shells/sweep.sh [configs/sweep.yaml] -m MODEL -d DATA [any flag of finetune.py]
#
# The same words in another shell, with its own CUDA_VISIBLE_DEVICES, are one more worker; after a stop or a kill they go
# on. OUTPUT (output/sweep) in the environment is the sweep's folder: sweep.json, best.yaml, a folder a trial, report.html;
# RESULT a file to record what was found, with commit and machine.
set -euo pipefail
script="$(cd "$(dirname "$0")" && pwd)/$(basename "$0")"
source "$(dirname "$script")/common.sh"
hide_key "$script" "$@"

output="${OUTPUT:-output/sweep}" file=configs/sweep.yaml words=()
if (($# == 0)); then
    file=configs/sweep_demo.yaml
elif [[ "$1" == *.yaml || "$1" == *.yml ]]; then
    file="$1"
    shift
fi
while (($#)); do
    case "$1" in
        -m | --model) words+=(--model_name_or_path "${2:?$1 needs a model}"); shift 2 ;;
        -d | --data) words+=(--data_path "${2:?$1 needs a path}"); shift 2 ;;
        -h | --help) sed -n '2,/^set -/p' "$script" | grep '^#' | sed 's/^# \{0,1\}//'; exit ;;
        *) words+=("$1"); shift ;;
    esac
done
prepare
[[ -n "${DRY_RUN:-}" ]] || install sweep optuna
if [[ "$file" == configs/sweep_demo.yaml ]]; then
    say "The demonstration, on a CPU. bash shells/sweep.sh -m MODEL -d DATA searches for yours."
    on_one_core
    [[ -f output/demo/data/graph/manifest.json ]] || run -m data_processor.demo --output output/demo/data
fi
run -m training.sweep "$file" ${words[@]+"${words[@]}"} --output_dir "$output" ${RESULT:+--result "$RESULT"}
run -m evaluation report "$output" --output "$output/report.html"
