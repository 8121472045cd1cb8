#!/usr/bin/env bash
# Fine-tunes every weight of a language model, with graph encoder and projector, partitioned by ZeRO-3.
#
#   bash shells/finetune_full_ds.sh -m Qwen/Qwen2.5-7B-Instruct -d DATA_FOLDER
#   bash shells/finetune_full_ds.sh -m MODEL -d DATA_FOLDER --deepspeed ds_configs/zero3_offload.json
#
# -m MODEL -d DATA [--deepspeed CONFIG] [--max_restarts N] [--wandb_key KEY] [any flag of finetune.py]
# Their defaults are read from the environment: MODEL, DATA, DS_CONFIG_PATH, WANDB_KEY.
# torchrun is told by GPUS_PER_NODE NNODES NODE_RANK MASTER_ADDR MASTER_PORT; DRY_RUN=1 prints the command and stops.
set -euo pipefail
script="$(cd "$(dirname "$0")" && pwd)/$(basename "$0")"
source "$(dirname "$script")/common.sh"
hide_key "$script" "$@"
stage=zero3
train configs/finetune_full.yaml "$@"
