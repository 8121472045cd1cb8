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
[[ -z "${WANDB_KEY:-}" ]] || export WANDB_API_KEY="$WANDB_KEY"
unset WANDB_KEY

# run ARGUMENTS: python ARGUMENTS, or only the line that would have run.
run() {
    if [[ -n "${DRY_RUN:-}" ]]; then
        printf 'python'; printf ' %q' "$@"; echo
    else
        "$PYTHON" "$@"
    fi
}

prepare() {
    [[ -z "${DRY_RUN:-}" ]] || return 0
    find_python
    install requirements -r requirements.txt
}

if (($# == 0)) && [[ -z "${MODEL:-}${DATA:-}" ]]; then
    say "No argument: the demonstration, on a CPU, one process, without DeepSpeed. -m MODEL -d DATA trains yours."
    prepare
    started="$(date +%s)"
    export CUDA_VISIBLE_DEVICES=""
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # so small a model gains nothing from threads, and they wait in a spin
    run -m data_processor.demo --output output/demo/data
    run finetune.py configs/demo.yaml
    run -m evaluation demo --model output/demo/model --data output/demo/data \
        --output output/demo/metrics.json --started "$started" ${RESULT:+--result "$RESULT"}
    exit
fi

recipe=configs/finetune_lora.yaml
if [[ "${1:-}" == *.yaml || "${1:-}" == *.yml ]]; then
    recipe="$1"
    shift
fi
deepspeed="${DS_CONFIG_PATH:-}"
flags=()
[[ -z "${MODEL:-}" ]] || flags+=(--model_name_or_path "$MODEL")
[[ -z "${DATA:-}" ]] || flags+=(--data_path "$DATA")
while (($#)); do
    case "$1" in
        -m | --model) flags+=(--model_name_or_path "${2:?$1 needs a model}"); shift 2 ;;
        -d | --data) flags+=(--data_path "${2:?$1 needs a path}"); shift 2 ;;
        --deepspeed) deepspeed="${2:?--deepspeed needs a file}"; shift 2 ;;
        --deepspeed=*) deepspeed="${1#*=}"; shift ;;
        -h | --help) sed -n '2,/^set -/p' "$script" | grep '^#' | sed 's/^# \{0,1\}//'; exit ;;
        *) flags+=("$1"); shift ;;
    esac
done

gpus="${GPUS_PER_NODE:-$(count_gpus)}"
if ((gpus > 0)); then
    if [[ -z "${DRY_RUN:-}" ]] && ((gpus > $(count_gpus))); then
        say "GPUS_PER_NODE=$gpus, but this machine shows $(count_gpus) GPUs. Set GPUS_PER_NODE to that, 0 for the CPU."
        exit 2
    fi
    launch=(-m torch.distributed.run --nproc_per_node "$gpus" --nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}"
        --master_addr "${MASTER_ADDR:-localhost}" --master_port "${MASTER_PORT:-6001}")
    flags+=(--use_cpu False --deepspeed "${deepspeed:-ds_configs/zero2.json}")
else
    launch=()
    if [[ -n "$deepspeed" ]]; then
        say "No GPU here, and --deepspeed $deepspeed was asked for: DeepSpeed trains on a CPU, slowly, in one process."
        export DS_ACCELERATOR=cpu
        launch=(-m torch.distributed.run --nproc_per_node 1 --master_port "${MASTER_PORT:-6001}")
        flags+=(--deepspeed "$deepspeed")
    else
        say "No GPU here: one process on the CPU, without DeepSpeed."
    fi
fi
prepare
run ${launch[@]+"${launch[@]}"} finetune.py "$recipe" ${flags[@]+"${flags[@]}"}
