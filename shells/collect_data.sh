#!/usr/bin/env bash
# From a pile of text to facts, questions and, with --extract, a graph: a data set that finetune_lora_ds.sh takes.
#
#   bash shells/collect_data.sh                           the demonstration: invented texts, replies recorded by rules
#   bash shells/collect_data.sh --input my_texts/ --output DATA --backend local --model Qwen/Qwen2.5-7B-Instruct
#   bash shells/collect_data.sh --input my_texts/ --output DATA --backend api --base_url URL --model NAME --extract
#
# The key of a server is read from OPENAI_API_KEY. A run that was stopped goes on when started again; what was replied
# once is never asked again. --dry_run says what it would cost; `python -m data_processor collect --help` has all flags.
# With --extract the graph is embedded by ENCODER (hashing), names whose embeddings are nearer than SYNONYMS (such as .9;
# default: none) are joined by edges, and the questions' subgraphs are retrieved with RETRIEVE (--method pagerank
# --max_nodes 12).
set -euo pipefail
script="$(cd "$(dirname "$0")" && pwd)/$(basename "$0")"
source "$(dirname "$script")/common.sh"

# graph DATA: what training needs beside graph/ and qa/.
graph() {
    "$PYTHON" -m data_processor embed --graph "$1/graph" --encoder "${ENCODER:-hashing}"
    [[ -z "${SYNONYMS:-}" ]] || "$PYTHON" -m data_processor synonyms --graph "$1/graph" --threshold "$SYNONYMS"
    # shellcheck disable=SC2086
    "$PYTHON" -m data_processor retrieve --data "$1" ${RETRIEVE:---method pagerank --max_nodes 12}
}

if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
    sed -n '2,/^set -/p' "$script" | grep '^#' | sed 's/^# \{0,1\}//'
    exit
fi
find_python
install requirements -r requirements.txt
if (($# == 0)); then
    say "No argument: the demonstration. --input TEXTS --output DATA --backend local|api --model MODEL collects yours."
    RETRIEVE="${RETRIEVE:---method random_walk --steps 1 --max_nodes 8}"
    "$PYTHON" -m data_processor.demo_replies --output output/text
    set -- --input output/text/texts --output output/text/data --backend recorded --model demonstration \
        --replies output/text/replies.jsonl --chunk_size_by_token 256 --qa_amount_per_fact 1 --role_amount_per_fact 1 \
        --extract
fi
"$PYTHON" -m data_processor collect "$@"
output="" extract=""
while (($#)); do
    case "$1" in
        --output) output="${2:-}" ;;
        --output=*) output="${1#*=}" ;;
        --extract) extract=1 ;;
        --dry_run) exit ;;
    esac
    shift
done
[[ -z "$extract" ]] || graph "$output"
