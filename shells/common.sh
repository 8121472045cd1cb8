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
    [[ -n "$key$token" ]] || return 0
    [[ -z "$key" ]] || export WANDB_API_KEY="$key"
    [[ -z "$token" ]] || export HF_TOKEN="$token"
    exec bash "$script" ${rest[@]+"${rest[@]}"}
}
