#!/usr/bin/env bash
# Nodes to words: for each node of a graph a summary with key words, a summary of its sampled neighbours, and what they
# have in common; the pairs that shells/train_translator.sh aligns.
#
#   bash shells/produce.sh                           the demonstration: an invented world, replies recorded by rules
#   bash shells/produce.sh --data DATA --backend local --model Qwen/Qwen2.5-7B-Instruct --domain papers
#   bash shells/produce.sh --data DATA --backend api --base_url URL --model NAME
#
# DATA holds graph/ (python -m data_processor import ...) and gets summaries.jsonl. The key of a server is read from
# OPENAI_API_KEY. A run that was stopped goes on when started again; what was replied once is never asked again.
# `python -m data_processor produce --help` has all flags.
set -euo pipefail
script="$(cd "$(dirname "$0")" && pwd)/$(basename "$0")"
source "$(dirname "$script")/common.sh"

if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
    sed -n '2,/^set -/p' "$script" | grep '^#' | sed 's/^# \{0,1\}//'
    exit
fi
prepare
if (($# == 0)); then
    say "No argument: the demonstration. --data DATA --backend local|api --model MODEL describes your graph."
    on_one_core
    run -m data_processor.demo_nodes --output output/translator_demo
    set -- --data output/translator_demo/data --backend recorded --model demonstration \
        --replies output/translator_demo/replies.jsonl --max_neighbours 8 --types person place organisation --language en
fi
run -m data_processor produce "$@"
