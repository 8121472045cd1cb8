#!/usr/bin/env bash
# Fine-tunes a graph retriever on questions: questions -> entities -> documents.
#
#   bash shells/finetune_gfm.sh                       the demonstration's graph: one process on a CPU, about three minutes
#   bash shells/finetune_gfm.sh -d DATA --init_from C --output_dir O        DATA/graph, embedded; DATA/qa, linked
#   bash shells/finetune_gfm.sh -d DATA -d OTHER --output_dir O             two graphs, one for each batch
#
# [-d DATA] several times for several graphs [--deepspeed CONFIG] [--wandb_key KEY] [any flag of finetune.py]
# Their defaults are read from the environment: DATA, DS_CONFIG_PATH, WANDB_KEY.
# torchrun is told by GPUS_PER_NODE NNODES NODE_RANK MASTER_ADDR MASTER_PORT; DRY_RUN=1 prints the command and stops.
set -euo pipefail
script="$(cd "$(dirname "$0")" && pwd)/$(basename "$0")"
source "$(dirname "$script")/common.sh"
hide_key "$script" "$@"

if (($# == 0)) && [[ -z "${DATA:-}" ]]; then
    say "No argument: the demonstration's questions, on a CPU, one process. -d DATA trains on yours."
    prepare
    on_one_core
    run -m data_processor.demo --output output/demo/data
    [[ -f output/demo/gfm_pretrained/model.safetensors ]] || run finetune.py configs/demo_gfm_pretrain.yaml
    run finetune.py configs/demo_gfm_finetune.yaml
    exit
fi
train configs/gfm_finetune.yaml "$@"
