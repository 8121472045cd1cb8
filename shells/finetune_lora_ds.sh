#!/usr/bin/env bash
# Fine-tunes a language model on a knowledge graph (encoder + projector + LoRA), on a CPU, a GPU or many nodes.
#
#   bash shells/finetune_lora_ds.sh                       the demonstration: one process on a CPU, about 6 minutes on 2 cores
#   bash shells/finetune_lora_ds.sh -m Qwen/Qwen2.5-7B-Instruct -d DATA_FOLDER --deepspeed ds_configs/zero2.json
#   bash shells/finetune_lora_ds.sh configs/x.yaml --learning_rate 1e-4      a recipe, and any flag of finetune.py
#
# [-m MODEL] [-d DATA] [--deepspeed CONFIG] [--wandb_key KEY] [any flag of finetune.py]
# Their defaults are read from the environment: MODEL, DATA, DS_CONFIG_PATH, WANDB_KEY.
# RESULT=results/demo.json records the demonstration's table with commit and machine.
# torchrun is told by GPUS_PER_NODE NNODES NODE_RANK MASTER_ADDR MASTER_PORT; DRY_RUN=1 prints the command and stops.
set -euo pipefail
script="$(cd "$(dirname "$0")" && pwd)/$(basename "$0")"
source "$(dirname "$script")/common.sh"
hide_key "$script" "$@"

if (($# == 0)) && [[ -z "${MODEL:-}${DATA:-}" ]]; then
    say "No argument: the demonstration, on a CPU, one process, without DeepSpeed. -m MODEL -d DATA trains yours."
    prepare
    started="$(date +%s)"
    on_one_core
    run -m data_processor.demo --output output/demo/data
    run finetune.py configs/demo.yaml
    run -m evaluation demo --model output/demo/model --data output/demo/data \
        --output output/demo/metrics.json --started "$started" ${RESULT:+--result "$RESULT"}
    exit
fi

train configs/finetune_lora.yaml "$@"
