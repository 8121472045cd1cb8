#!/usr/bin/env bash
# Pre-trains a graph retriever by completing graphs: (head, relation, ?) and (?, relation, tail) of every triple.
#
#   bash shells/pretrain_gfm.sh                       the demonstration's graph: one process on a CPU, about two minutes
#   bash shells/pretrain_gfm.sh -d DATA --output_dir C        DATA/graph, embedded; DATA/triples to be scored on
#   bash shells/pretrain_gfm.sh configs/umls.yaml -d DATA     a recipe, and any flag of finetune.py
#
# [-d DATA] several times for several graphs [--deepspeed CONFIG] [--wandb_key KEY] [any flag of finetune.py]
# Their defaults are read from the environment: DATA, DS_CONFIG_PATH, WANDB_KEY.
# torchrun is told by GPUS_PER_NODE NNODES NODE_RANK MASTER_ADDR MASTER_PORT; DRY_RUN=1 prints the command and stops.
set -euo pipefail
script="$(cd "$(dirname "$0")" && pwd)/$(basename "$0")"
source "$(dirname "$script")/common.sh"
hide_key "$script" "$@"

if (($# == 0)) && [[ -z "${DATA:-}" ]]; then
    say "No argument: the demonstration's graph, on a CPU, one process. -d DATA trains on yours."
    prepare
    on_one_core
    run -m data_processor.demo --output output/demo/data
    run finetune.py configs/demo_gfm_pretrain.yaml
    exit
fi
train configs/gfm_pretrain.yaml "$@"
