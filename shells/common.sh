# Shared by the shells, sourced and never run: the Python environment, the GPUs, the key. Bash 4, Linux and macOS.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s\n' "$*" >&2; }

# The active environment's Python (venv or conda); without one, .venv in the project, made on the first run.
find_python() {
    local active="${VIRTUAL_ENV:-${CONDA_PREFIX:-}}"
    if [[ -z "$active" ]]; then
        active="$PWD/.venv"
        if [[ ! -x "$active/bin/python" ]]; then
            say "no environment is active: making .venv"
            "${PYTHON:-python3}" -m venv "$active"
        fi
    fi
    ENVIRONMENT="$active"
    PYTHON="$active/bin/python"
    export PATH="$active/bin:$PATH"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        say "$PYTHON is older than Python 3.11. Set PYTHON=/path/to/python3.11, or activate an environment that has it."
        exit 2
    }
}

# install NAME ARGUMENTS: `pip install ARGUMENTS`, unless the environment carries the stamp of the same arguments and requirements.
install() {
    local stamp="$ENVIRONMENT/.graphllm-$1" wanted
    shift
    wanted="$(cat requirements.txt | cksum) $*"
    [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]] && return
    say "installing into $ENVIRONMENT: $*"
    "$PYTHON" -m pip --version > /dev/null 2>&1 || "$PYTHON" -m ensurepip > /dev/null
    local quiet=--quiet
    [[ ! -t 2 ]] || quiet=--progress-bar=on  # a person sees what is fetched
    "$PYTHON" -m pip install "$quiet" --disable-pip-version-check "$@"
    printf '%s' "$wanted" > "$stamp"
}

# GPUs that a process started now would see.
count_gpus() {
    if [[ -n "${CUDA_VISIBLE_DEVICES+set}" ]]; then
        awk -F, '{ print ($0 == "" || $0 == "-1") ? 0 : NF }' <<< "$CUDA_VISIBLE_DEVICES"
    elif command -v nvidia-smi > /dev/null; then
        nvidia-smi --list-gpus 2> /dev/null | grep -c '^GPU' || true
    else
        echo 0
    fi
}

# split_of DATA: SPLIT; without it test, or recall for questions that were collected without a graph.
split_of() {
    [[ -d "$1/graph" || ! -f "$1/conversations_recall.json" ]] && echo "${SPLIT:-test}" || echo "${SPLIT:-recall}"
}

# questions_of DATA SPLIT: what `evaluation generate` is given; the split's conversations where there is no graph.
questions_of() {
    [[ -d "$1/graph" || ! -f "$1/conversations_$2.json" ]] && echo "$1" || echo "$1/conversations_$2.json"
}

# hide_key "$0" "$@": a key or token given as a flag is exported, and the script starts itself again without it.
hide_key() {
    local script="$1" key="" token="" rest=()
    shift
    while (($#)); do
        case "$1" in
            --wandb_key | --wandb-key | --key) key="${2:?$1 needs a value}"; shift 2 ;;
            --wandb_key=* | --wandb-key=* | --key=*) key="${1#*=}"; shift ;;
            --hub_token | --hub-token) token="${2:?$1 needs a value}"; shift 2 ;;
            --hub_token=* | --hub-token=*) token="${1#*=}"; shift ;;
            *) rest+=("$1"); shift ;;
        esac
    done
    if [[ -z "$key$token" ]]; then
        [[ -z "${WANDB_KEY:-}" ]] || export WANDB_API_KEY="$WANDB_KEY"
        unset WANDB_KEY
        return 0
    fi
    [[ -z "$key" ]] || export WANDB_API_KEY="$key"
    [[ -z "$token" ]] || export HF_TOKEN="$token"
    exec bash "$script" ${rest[@]+"${rest[@]}"}
}

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

# What a demonstration runs on: the CPU, one thread. So small a model gains nothing from more, and they wait in a spin.
on_one_core() {
    export CUDA_VISIBLE_DEVICES=""
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
}

# whole NAME VALUE LOWEST: VALUE is a whole number of at least LOWEST, or the run ends with a sentence.
whole() {
    [[ "$2" =~ ^[0-9]+$ ]] && (($2 >= $3)) && return
    say "$1=$2 is not a whole number of at least $3. Set $1 to one, the same way on every node."
    exit 2
}

# check_nodes: NNODES and NODE_RANK fit each other, and there is an address where there are several nodes.
check_nodes() {
    whole NNODES "${NNODES:-1}" 1
    whole NODE_RANK "${NODE_RANK:-0}" 0
    if ((${NODE_RANK:-0} >= ${NNODES:-1})); then
        say "NODE_RANK=${NODE_RANK:-0} is out of range: with NNODES=${NNODES:-1} the nodes are 0 to $((${NNODES:-1} - 1))."
        exit 2
    fi
    if ((${NNODES:-1} > 1)) && [[ -z "${MASTER_ADDR:-}" ]]; then
        say "NNODES=${NNODES} needs MASTER_ADDR: the address of node 0, the same on every node."
        exit 2
    fi
}

# torchrun_words PROCESSES RESTARTS: the words in front of finetune.py that start so many processes on this node.
torchrun_words() {
    printf '%s\n' -m torch.distributed.run --nproc_per_node "$1" --nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}" \
        --master_addr "${MASTER_ADDR:-localhost}" --master_port "${MASTER_PORT:-6001}" --max_restarts "$2"
}

# accelerate_words FILE PROCESSES RESTARTS: the same through accelerate, which reads how weights are sharded from FILE.
accelerate_words() {
    local nodes="${NNODES:-1}"
    printf '%s\n' -m accelerate.commands.launch --config_file "$1" --num_processes "$(($2 * nodes))" \
        --num_machines "$nodes" --machine_rank "${NODE_RANK:-0}" --main_process_ip "${MASTER_ADDR:-localhost}" \
        --main_process_port "${MASTER_PORT:-6001}" --max_restarts "$3"
}

# wait_for_node_0: returns once node 0 listens; a node that cannot reach it ends after a minute with a sentence.
wait_for_node_0() {
    if ((${NODE_RANK:-0} > 0)) && [[ -z "${DRY_RUN:-}" ]]; then
        "$PYTHON" -m training.reach "$MASTER_ADDR" "${MASTER_PORT:-6001}"
    fi
}

# train RECIPE "$@": finetune.py on all GPUs by torchrun, or on the CPU, where several nodes have one process each. A recipe
# in "$@" replaces RECIPE; -m, -d (several for several graphs) and --deepspeed are short names, --max_restarts starts a run
# that has died again, from its last whole checkpoint; all other flags are those of finetune.py.
# Of the calling shell: `stage` names the file below ds_configs/ that GPUs get without --deepspeed; `sharded` is a file of
# accelerate that is used instead of DeepSpeed.
train() {
    local recipe="$1" deepspeed="${DS_CONFIG_PATH:-}" model="${MODEL:-}" restarts=0 data=() flags=() launch=() gpus
    [[ -z "${DATA:-}" ]] || data=("$DATA")
    shift
    if [[ "${1:-}" == *.yaml || "${1:-}" == *.yml ]]; then
        recipe="$1"
        shift
    fi
    local given=()
    while (($#)); do
        case "$1" in
            -m | --model) model="${2:?$1 needs a model}"; shift 2 ;;
            -d | --data) given+=("${2:?$1 needs a path}"); shift 2 ;;
            --deepspeed) deepspeed="${2:?--deepspeed needs a file}"; shift 2 ;;
            --deepspeed=*) deepspeed="${1#*=}"; shift ;;
            --max_restarts) restarts="${2:?--max_restarts needs a number}"; shift 2 ;;
            --max_restarts=*) restarts="${1#*=}"; shift ;;
            -h | --help) sed -n '2,/^set -/p' "$script" | grep '^#' | sed 's/^# \{0,1\}//'; exit ;;
            *) flags+=("$1"); shift ;;
        esac
    done
    ((${#given[@]} == 0)) || data=("${given[@]}")
    ((${#data[@]} == 0)) || flags=(--data_path "${data[@]}" ${flags[@]+"${flags[@]}"})
    [[ -z "$model" ]] || flags=(--model_name_or_path "$model" ${flags[@]+"${flags[@]}"})

    check_nodes
    whole --max_restarts "$restarts" 0
    gpus="${GPUS_PER_NODE:-$(count_gpus)}"
    whole GPUS_PER_NODE "$gpus" 0
    if ((gpus > 0)); then
        if [[ -z "${DRY_RUN:-}" ]] && ((gpus > $(count_gpus))); then
            say "GPUS_PER_NODE=$gpus, but this machine shows $(count_gpus) GPUs. Set GPUS_PER_NODE to that, 0 for the CPU."
            exit 2
        fi
        flags+=(--use_cpu False)
        [[ -n "${sharded:-}" ]] || flags+=(--deepspeed "${deepspeed:-ds_configs/${stage:-zero2}.json}")
    elif [[ -n "${sharded:-}" ]]; then
        say "No GPU here: FSDP would fall back to whole copies on a CPU. Use shells/finetune_lora_ds.sh, or a machine with GPUs."
        exit 2
    else
        flags+=(--use_cpu True)
        if [[ -n "$deepspeed" ]]; then
            say "No GPU here, and --deepspeed $deepspeed was asked for: DeepSpeed trains on a CPU, slowly."
            export DS_ACCELERATOR=cpu
            flags+=(--deepspeed "$deepspeed")
        elif ((${NNODES:-1} == 1)); then
            say "No GPU here: one process on the CPU, without DeepSpeed."
        fi
    fi
    if [[ -n "${sharded:-}" ]]; then
        mapfile -t launch < <(accelerate_words "$sharded" "$gpus" "$restarts")
    elif ((gpus > 0 || restarts > 0 || ${NNODES:-1} > 1)) || [[ -n "$deepspeed" ]]; then
        mapfile -t launch < <(torchrun_words "$((gpus > 0 ? gpus : 1))" "$restarts")
    fi
    prepare
    wait_for_node_0
    run ${launch[@]+"${launch[@]}"} finetune.py "$recipe" ${flags[@]+"${flags[@]}"}
}
