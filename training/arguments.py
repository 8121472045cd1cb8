"""The flags of finetune.py: dataclasses, a YAML file first, the command line over it.

    arguments = parse(["configs/x.yaml", "--learning_rate", "1e-4"])
"""

import difflib
import json
import os
import sys
from argparse import Namespace
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import transformers
import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from training.checks import Machine, check_flags

# flags whose values leave the command line at once, and the variables that take them
KEY_FLAGS = {"--key": "WANDB_API_KEY", "--wandb_key": "WANDB_API_KEY", "--hub_token": "HF_TOKEN"}
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "group_by_length": "train_sampling_strategy group_by_length",
    "lora_rank": "lora_r",
    "logging_dir": "output_dir (TensorBoard: the environment variable TENSORBOARD_LOGGING_DIR)",
    "no_cuda": "use_cpu",
    "overwrite_output_dir": "resume_from_checkpoint none",
    "warmup_ratio": "warmup_steps (a value below 1 is a ratio)",
}


@dataclass
class RunArguments:
    stage: Literal["qa"] = HfArg(default="qa", help="What is trained: see training/stages.py.")
    init_from: str | None = HfArg(default=None, help="Output folder of a run whose weights this one starts from.")
    dry_run: bool = HfArg(default=False, help="Build everything, print parameters, one example and memory, and stop.")
    json: str | None = HfArg(default=None, help="With --dry_run: also write its figures to this file.")
    include_base: bool = HfArg(default=False, help="Copy the base model into base/ of the output folder.")
    use_wandb: bool = HfArg(default=False, help="Log to Weights & Biases (WANDB_MODE=offline works without a key).")
    wandb_project: str = HfArg(default="graphllm", help="Project name at Weights & Biases.")
    wandb_run_name: str | None = HfArg(default=None, help="Run name there; by default the output folder.")


@dataclass
class ModelArguments:
    model_name_or_path: str | None = HfArg(default=None, help="Base language model: a Hub id or a local folder.")
    model_revision: str | None = HfArg(default=None, help="Branch, tag or commit of the base model.")
    cache_dir: str | None = HfArg(default=None, help="Where downloads are kept.")
    dtype: str | None = HfArg(
        default=None,
        help="float32, bfloat16, float16 or auto (the checkpoint's). By default float32, or auto where --bf16 or "
        "--fp16 is set and the language model itself is not trained.",
    )
    attn_implementation: str | None = HfArg(default=None, help="sdpa, eager, flash_attention_2, ...")
    freeze_lm: bool = HfArg(default=False, help="Train the graph modules only: no LoRA, no language-model weight.")
    chat_template: str | None = HfArg(default=None, help="Jinja file to use instead of the tokenizer's template.")
    model_max_length: int = HfArg(default=8192, help="Longest example in tokens; the prompt is cut, never the answer.")
    max_new_tokens: int = HfArg(default=32, help="Longest answer of --do_predict, in tokens.")


@dataclass
class GraphArguments:
    """What is left out keeps the default of GraphConfig in modeling_graphllm.py."""

    graph_encoder: str | None = HfArg(default=None, help="gcn, gat, graph_transformer, sage, mpnn or none.")
    graph_hidden_dim: int | None = HfArg(default=None, help="Width of the encoder.")
    graph_num_layers: int | None = HfArg(default=None, help="Layers of message passing.")
    graph_num_heads: int | None = HfArg(default=None, help="Attention heads of gat and graph_transformer.")
    graph_dropout: float | None = HfArg(default=None, help="Dropout inside the encoder.")
    graph_norm: str | None = HfArg(default=None, help="layer or graph.")
    graph_aggregations: list[str] | None = HfArg(default=None, help="Of mpnn: any of sum max mean var.")
    graph_bidirectional: bool | None = HfArg(default=None, help="True or False: messages also against the edges.")
    graph_readout: str | None = HfArg(default=None, help="mean (a fixed number of tokens) or nodes (one per node).")
    num_graph_tokens: int | None = HfArg(default=None, help="Tokens of one graph with readout mean.")
    max_graph_nodes: int | None = HfArg(default=None, help="Most nodes that become tokens with readout nodes.")
    graph_projector: str | None = HfArg(default=None, help="mlp, ffn or linear.")
    projector_hidden_dim: int | None = HfArg(default=None, help="Inner width of the projector.")
    projector_dropout: float | None = HfArg(default=None, help="Dropout of the ffn projector.")
    projector_scale: float | None = HfArg(
        default=None, help="Size that the ffn projector's tokens start with: best that of the language model's own."
    )
    graph_token_dropout: float | None = HfArg(
        default=None, help="Share of graphs whose tokens are zeroed in training: the model learns what no graph is."
    )
    graph_token: str = HfArg(default="<|graph|>", help="Placeholder of a graph in the rendered prompt.")


@dataclass
class LoraArguments:
    use_lora: bool = HfArg(default=True, help="Train adapters of the language model; False trains it in full.")
    q_lora: bool = HfArg(default=False, help="Hold the frozen base model in 4 bits (NF4, double quantisation).")
    lora_r: int = HfArg(default=64, help="Rank.")
    lora_alpha: int = HfArg(default=16, help="Scale: the update is multiplied by alpha / r.")
    lora_dropout: float = HfArg(default=0.05, help="Dropout before the adapters.")
    lora_target_modules: list[str] | None = HfArg(
        default=None,
        help="Names such as q_proj v_proj, or one regular expression, inside the language model. By default every "
        "linear layer of it but the output head.",
    )


@dataclass
class DataArguments:
    data_path: str | None = HfArg(default=None, help="A dataset folder, conversation JSON or chat JSON lines.")
    train_split: str = HfArg(default="train", help="Split of a dataset folder that is trained on.")
    validation_split: str = HfArg(default="validation", help="Split that --do_eval and --eval_strategy read.")
    test_split: str = HfArg(default="test", help="Split that --do_predict answers.")
    validation: bool = HfArg(
        default=True, help="Data without a validation split: take --validation_size rows out of the training rows."
    )
    validation_size: int = HfArg(
        default=1000, help="Rows taken out of training; a tenth, with a warning, if that would leave none."
    )
    use_graph: bool = HfArg(default=True, help="Give the model graph tokens.")
    use_text: bool = HfArg(default=True, help="Write the subgraph's facts into the prompt.")
    text_style: str = HfArg(default="triples", help="triples or tables.")
    max_text_tokens: int | None = HfArg(default=None, help="Budget for the facts in the prompt; the worst go first.")
    lazy_preprocess: bool = HfArg(default=False, help="Tokenise each time a row is read, instead of once before.")
    preprocess_cache: str | None = HfArg(default=None, help="Folder of tokenised rows, reused while nothing changed.")


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """Hugging Face's, with the settings that flat graph batches need, and a CPU where there is no GPU."""

    output_dir: str | None = HfArg(default="output/run", help="Where the model, run.json and checkpoints are written.")
    do_train: bool = HfArg(default=True, help="Train. Default True.")
    use_cpu: bool | None = HfArg(default=None, help="Train on the CPU. Default: where no GPU is present.")
    optim: str = HfArg(default="adamw_torch", help="Optimizer, by its name in Hugging Face's Trainer.")
    graph_learning_rate: float | None = HfArg(
        default=None, help="Learning rate of the graph encoder and projector. Default: --learning_rate."
    )
    resume_from_checkpoint: str | None = HfArg(
        default="auto", help="auto (the last whole checkpoint of --output_dir), none, or a folder."
    )
    remove_unused_columns: bool = HfArg(default=False, help="Must stay False: the collator needs the graphs.")
    label_names: list[str] | None = HfArg(default_factory=lambda: ["labels"], help="Keys of a batch that are labels.")
    prediction_loss_only: bool = HfArg(default=True, help="Evaluation keeps the loss, not the logits. Default True.")
    ddp_find_unused_parameters: bool | None = HfArg(default=False, help="False: every parameter runs in every step.")
    accelerator_config: dict | str | None = HfArg(
        default_factory=lambda: {"dispatch_batches": False}, help="JSON. Batches must not be cut by row."
    )

    hub_strategy: str = HfArg(default="end", help="Published once, when the folder is whole.")

    def __post_init__(self) -> None:
        if self.use_cpu is None:
            self.use_cpu = not torch.accelerator.is_available()
        if self.use_cpu:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        super().__post_init__()


@dataclass(frozen=True)
class Arguments:
    """All flags of one run, by room. `flat()` is the mapping that run.json holds; no key or token is in it."""

    run: RunArguments
    model: ModelArguments
    graph: GraphArguments
    lora: LoraArguments
    data: DataArguments
    training: TrainingArguments

    @property
    def adaptation(self) -> str:
        """How the language model is trained: "frozen", "lora" or "full"."""
        if self.model.freeze_lm:
            return "frozen"
        return "lora" if self.lora.use_lora else "full"

    def flat(self) -> dict[str, Any]:
        rooms = (self.run, self.model, self.graph, self.lora, self.data)
        return {k: v for room in rooms for k, v in asdict(room).items()} | self.training.to_dict()


ROOMS = (RunArguments, ModelArguments, GraphArguments, LoraArguments, DataArguments, TrainingArguments)


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message[0].upper()}{message[1:]}. `python finetune.py --help` lists every flag.")


def parse(argv: list[str]) -> Arguments:
    """Reads `[FILE.yaml] --flag value ...`, refuses what cannot work, and returns typed arguments.

    Args:
        argv: the command line without the program's name. `--key` is exported as WANDB_API_KEY, `--hub_token` as
            HF_TOKEN; they are kept nowhere else, also where a file names them.

    Raises:
        ValueError: an unknown key or flag, a value of the wrong type, or a combination listed in training/checks.py.
    """
    argv = take_key(argv)
    parser = _Parser(ROOMS, prog="finetune.py", usage="finetune.py [FILE.yaml] [--flag value ...]", allow_abbrev=False)
    known = {action.dest for action in parser._actions}
    if argv and not argv[0].startswith("-"):
        argv = take_key(yaml_flags(argv[0], known)) + argv[1:]
    flags, unknown = parser.parse_known_args(argv)
    for word in unknown:
        raise ValueError(_unknown(word, known))
    check_flags(flags, Machine.here())
    return build(flags)


def build(flags: Namespace) -> Arguments:
    values = vars(flags)
    rooms = [room(**{k: v for k, v in values.items() if k in room.__dataclass_fields__}) for room in ROOMS]
    arguments = Arguments(*rooms)
    if arguments.run.use_wandb:
        os.environ.setdefault("WANDB_PROJECT", arguments.run.wandb_project)
        arguments.training.report_to = [*arguments.training.report_to, "wandb"]
        arguments.training.run_name = arguments.run.wandb_run_name or arguments.training.run_name
    return arguments


def take_key(argv: list[str]) -> list[str]:
    """Exports the values of KEY_FLAGS and returns the rest; `sys.argv` (trackers copy it) loses them too."""
    rest, words = [], iter(argv)
    for word in words:
        name, _, value = word.partition("=")
        variable = KEY_FLAGS.get("--" + name.removeprefix("--").replace("-", "_")) if name.startswith("--") else None
        if variable is None:
            rest.append(word)
            continue
        value = value or next(words, "")
        if not value:
            raise ValueError(f"{name} was given without a value. Pass it, or set {variable}.")
        os.environ[variable] = value
        sys.argv[:] = [one for one in sys.argv if one not in (word, value)]
    return rest


def yaml_flags(path: str, known: set[str]) -> list[str]:
    """The keys of a YAML file as flags, so that one parser types and checks both.

    Raises:
        ValueError: no such file, not a mapping of keys to values, or a key that is no flag.
    """
    if not Path(path).is_file():
        raise ValueError(f"There is no file {path!r}. The first argument is a YAML file; flags begin with --.")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}; it must hold `key: value` lines.")
    flags = []
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{path}: {_unknown(str(key), known)}")
        if value is not None:
            flags += [f"--{key}", *_words(value)]
    return flags


def _words(value: Any) -> list[str]:
    if isinstance(value, list):
        return [str(one) for one in value]
    return [json.dumps(value) if isinstance(value, dict) else str(value)]


def _unknown(word: str, known: set[str]) -> str:
    name = word.lstrip("-").partition("=")[0].replace("-", "_")
    if name in RENAMED:
        return f"{name!r} is no longer a flag. Use --{RENAMED[name]}."
    near = difflib.get_close_matches(name, known - {"help"}, n=1, cutoff=0.5)
    hint = f" Did you mean --{near[0]}?" if near else " `python finetune.py --help` lists every flag."
    return f"Unknown flag {word!r}.{hint}"
