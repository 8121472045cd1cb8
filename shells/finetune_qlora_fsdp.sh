#!/usr/bin/env bash
# Fine-tunes LoRA over a 4-bit language model whose shards lie on all GPUs (FSDP2): a 70B model on a few GPUs. Experimental:
# it needs GPUs and has not been run on any; `bash shells/finetune_lora_ds.sh -m MODEL -d DATA --q_lora True` holds
# the whole 4-bit model on every GPU.
#
#   bash shells/finetune_qlora_fsdp.sh -m meta-llama/Llama-3.1-70B-Instruct -d DATA_FOLDER
#
# -m MODEL -d DATA [--max_restarts N] [--wandb_key KEY] [any flag of finetune.py]
# Their defaults are read from the environment: MODEL, DATA, WANDB_KEY.
# GPUS_PER_NODE NNODES NODE_RANK MASTER_ADDR MASTER_PORT tell how many and where; DRY_RUN=1 prints the command and stops.
set -euo pipefail
script="$(cd "$(dirname "$0")" && pwd)/$(basename "$0")"
source "$(dirname "$script")/common.sh"
hide_key "$script" "$@"
sharded=configs/accelerate_fsdp.yaml
train configs/finetune_qlora.yaml "$@"
