#!/usr/bin/env bash
# Trains both stages of the Translator: a Q-Former that aligns graphs of nodes with texts, then a language model that
# answers about nodes through it.
#
#   bash shells/train_translator.sh                  the demonstration: one process on a CPU, some minutes
#   bash shells/train_translator.sh -m Qwen/Qwen2.5-7B-Instruct -d DATA       on every GPU of this machine
#   bash shells/train_translator.sh -m MODEL -d DATA --stage1 --num_train_epochs 5 --stage2 --freeze_lm False
#
# -m MODEL -d DATA [--deepspeed CONFIG] [--wandb_key KEY] [flags of finetune.py for both stages] [--stage1 flags of stage 1]
# [--stage2 flags of stage 2]. DATA holds graph/, embedded, and the summaries.jsonl of shells/produce.sh; questions are
# those of DATA/qa and a description for each summary, which is added there. OUTPUT (output/translator) gets stage1/ and
# model/; a stage that is finished is not run again. STAGE1 and STAGE2 name other recipes than configs/translator_stage*.yaml.
# RESULT=results/translator_demo.json records the demonstration's table with commit and machine.
# torchrun is told by GPUS_PER_NODE NNODES NODE_RANK MASTER_ADDR MASTER_PORT; DRY_RUN=1 prints the commands and stops.
set -euo pipefail
script="$(cd "$(dirname "$0")" && pwd)/$(basename "$0")"
source "$(dirname "$script")/common.sh"
hide_key "$script" "$@"

if (($# == 0)) && [[ -z "${MODEL:-}${DATA:-}" ]]; then
    say "No argument: the demonstration, on a CPU, one process. -m MODEL -d DATA trains yours."
    prepare
    started="$(date +%s)"
    on_one_core
    output=output/translator_demo
    [[ -n "${DRY_RUN:-}" || -f $output/data/summaries.jsonl ]] || bash shells/produce.sh
    run -m data_processor describe --data $output/data
    run finetune.py configs/demo_translator_stage1.yaml
    run finetune.py configs/demo_translator_stage2.yaml
    run -m evaluation demo --model $output/model --data $output/data --alignment $output/stage1 \
        --output $output/metrics.json --started "$started" ${RESULT:+--result "$RESULT"}
    exit
fi

model="${MODEL:-}" data="${DATA:-}" both=() one=() two=() list=both
while (($#)); do
    case "$1" in
        -m | --model) model="${2:?$1 needs a model}"; shift 2; continue ;;
        -d | --data) data="${2:?$1 needs a path}"; shift 2; continue ;;
        -h | --help) sed -n '2,/^set -/p' "$script" | grep '^#' | sed 's/^# \{0,1\}//'; exit ;;
        --stage1) list=one ;;
        --stage2) list=two ;;
        *) declare -n words="$list"; words+=("$1"); unset -n words ;;
    esac
    shift
done
[[ -n "$model" && -n "$data" ]] || { say "Pass -m MODEL and -d DATA, or no argument for the demonstration."; exit 2; }
output="${OUTPUT:-output/translator}"
unset MODEL DATA
prepare
run -m data_processor describe --data "$data"
if [[ ! -f "$output/stage1/metrics.json" ]]; then
    train "${STAGE1:-configs/translator_stage1.yaml}" -d "$data" --output_dir "$output/stage1" ${both[@]+"${both[@]}"} \
        ${one[@]+"${one[@]}"}
fi
train "${STAGE2:-configs/translator_stage2.yaml}" -m "$model" -d "$data" --init_from "$output/stage1" \
    --output_dir "$output/model" ${both[@]+"${both[@]}"} ${two[@]+"${two[@]}"}
