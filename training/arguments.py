"""The flags of finetune.py: dataclasses, a YAML file first, the command line over it.

arguments = parse(["configs/x.yaml", "--learning_rate", "1e-4"])
"""

import difflib
import json
import os
from argparse import Namespace
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser

from data_processor.questions import without_graph
from evaluation.trained import CONTEXTS
from training.alignments import is_alignment
from training.checks import check_flags
from training.engines import offloads
from training.keys import take_key
from training.machine import Machine
from training.node_arguments import NodeArguments
from training.rooms import (
    AlignArguments,
    DataArguments,
    GFMArguments,
    GraphArguments,
    LoraArguments,
    ModelArguments,
    RunArguments,
    TrainingArguments,
)
from training.yaml_file import read_mapping

RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "group_by_length": "train_sampling_strategy group_by_length",
    "lora_rank": "lora_r",
    "logging_dir": "output_dir (TensorBoard: the environment variable TENSORBOARD_LOGGING_DIR)",
    "no_cuda": "use_cpu",
    "overwrite_output_dir": "resume_from_checkpoint none",
    "warmup_ratio": "warmup_steps (a value below 1 is a ratio)",
}


@dataclass(frozen=True)
class Arguments:
    """All flags of one run, by room. `flat()` is the mapping that run.json holds; no key or token is in it."""

    run: RunArguments
    model: ModelArguments
    graph: GraphArguments
    lora: LoraArguments
    data: DataArguments
    align: AlignArguments
    gfm: GFMArguments
    node: NodeArguments
    training: TrainingArguments

    @property
    def adaptation(self) -> str:
        """How the language model is trained: "frozen", "lora" or "full"."""
        if self.model.freeze_lm:
            return "frozen"
        return "lora" if self.lora.use_lora else "full"

    @property
    def alignment(self) -> str | None:
        """--init_from where it is an output of the stage `align`: a reader of graphs, without a language model."""
        return self.run.init_from if is_alignment(self.run.init_from) else None

    @property
    def earlier(self) -> str | None:
        """--init_from where it is an output of the stage `qa`: a whole model."""
        return None if self.alignment else self.run.init_from

    def flat(self) -> dict[str, Any]:
        rooms = (self.run, self.model, self.graph, self.lora, self.data, self.align, self.gfm, self.node)
        values = {k: v for room in rooms for k, v in asdict(room).items()} | self.training.to_dict()
        paths = self.data.data_path or []
        return values | ({"data_path": paths[0]} if len(paths) == 1 else {})


ROOMS = (
    RunArguments, ModelArguments, GraphArguments, LoraArguments, DataArguments, AlignArguments, GFMArguments,
    NodeArguments, TrainingArguments,
)  # fmt: skip
# an item of a graph retriever's data is a batch, and its evaluation is of ranks
BATCH_ITEMS = {
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "prediction_loss_only": False,
    "label_names": ["graph_index"],
}  # fmt: skip
STAGE_DEFAULTS = {
    "qa": {}, "align": {"label_names": ["text_index"]}, "graph": {**BATCH_ITEMS, "label_names": ["labels"]},
    "gfm_pretrain": BATCH_ITEMS, "gfm_finetune": BATCH_ITEMS,
}  # fmt: skip

# states in 8 bits beside quantised weights; paged_adamw_8bit moves them to the CPU where a GPU is full
QUANTISED_DEFAULTS = {"optim": "adamw_8bit"}


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
    quantised = QUANTISED_DEFAULTS if flags.q_lora and not offloads(flags) else {}
    parser.set_defaults(**STAGE_DEFAULTS[flags.stage], **quantised)
    flags = parser.parse_args(argv)
    settle_context(flags)
    check_flags(flags, Machine.here())
    return build(flags)


def settle_context(flags: Namespace) -> None:
    """--context sets --use_graph and --use_text; questions without a graph have the context "none"."""
    (path,) = flags.data_path if flags.data_path and len(flags.data_path) == 1 else ("",)
    conversations = (Path(path) / "conversations.json").is_file()
    if flags.stage == "qa" and not flags.context and path and not conversations:
        flags.context = "none" if without_graph(path, None, flags.columns) else None
    if flags.context:
        flags.use_graph, flags.use_text = CONTEXTS[flags.context]


def build(flags: Namespace) -> Arguments:
    values = vars(flags)
    rooms = [room(**{k: v for k, v in values.items() if k in room.__dataclass_fields__}) for room in ROOMS]
    arguments = Arguments(*rooms)
    if arguments.run.use_wandb:
        os.environ.setdefault("WANDB_PROJECT", arguments.run.wandb_project)
        arguments.training.report_to = [*arguments.training.report_to, "wandb"]
        arguments.training.run_name = arguments.run.wandb_run_name or arguments.training.run_name
    return arguments


def yaml_flags(path: str, known: set[str]) -> list[str]:
    """The keys of a YAML file as flags, so that one parser types and checks both.

    Raises:
        ValueError: no such file, not a mapping of keys to values, or a key that is no flag.
    """
    values, flags = read_mapping(path, "The first argument is a YAML file; flags begin with --."), []
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
