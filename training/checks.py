"""What finetune.py refuses and why: a row for each combination of flags that cannot work, checked before the start."""

from argparse import Namespace
from fnmatch import fnmatch
from pathlib import Path

from data_processor.tables import is_hub_name, is_table
from training.engine_checks import ENGINE_CHECKS
from training.engines import refusal
from training.hub_checks import HUB_CHECKS, PUBLISH_CHECKS
from training.machine import Check, Machine
from training.speed_checks import SPEED_CHECKS

# what a run without training, or one that was refused, leaves in its folder
HARMLESS = ("rejected*.jsonl", "_preprocessed", "metrics.json", "predictions*")


def _unrelated(flags: Namespace, machine: Machine) -> bool:
    folder = Path(flags.output_dir)
    if flags.dry_run or not flags.do_train or not machine.first or not folder.exists():
        return False
    if folder.is_file():
        return True
    ours = any(folder.glob("run.json")) or any(folder.glob("checkpoint-*"))
    foreign = [path for path in folder.iterdir() if not any(fnmatch(path.name, one) for one in HARMLESS)]
    return bool(foreign) and not ours


def _writes_to_data(flags: Namespace, machine: Machine) -> bool:
    places = [place for place in (*(flags.data_path or []), flags.model_name_or_path, flags.init_from) if place]
    return any(Path(place).resolve() == Path(flags.output_dir).resolve() for place in places)


CHECKS = (
    Check(
        "no model",
        lambda f, m: f.stage in ("qa", "align") and not f.model_name_or_path and not f.init_from,
        "No model was named. Pass --model_name_or_path (a Hub id or a folder; --stage align reads texts by its "
        "tokenizer) or --init_from (an earlier output).",
    ),
    Check(
        "no data",
        lambda f, m: not f.data_path,
        "No data was named. Pass --data_path (a dataset folder, a table, a data set of the Hub, conversation JSON or "
        "chat JSON lines).",
    ),
    Check(
        "missing data",
        lambda f, m: not all(Path(path).exists() or is_hub_name(path) for path in f.data_path or []),
        "--data_path {data_path} does not exist. Give a dataset folder, a table, the name of a data set of the Hub, "
        "conversation JSON or chat JSON lines.",
    ),
    Check(
        "several data sets",
        lambda f, m: f.stage in ("qa", "align", "graph") and len(f.data_path or []) > 1,
        "--stage {stage} trains on one data set, --data_path {data_path} are several. Give one of them, or join them.",
    ),
    Check(
        "file instead of a graph",
        lambda f, m: f.stage != "qa" and not all(Path(path).is_dir() for path in f.data_path),
        "--stage {stage} reads dataset folders, --data_path {data_path} is a file. Give the folder that holds graph/.",
    ),
    Check(
        "language model of a stage without one",
        lambda f, m: f.stage not in ("qa", "align") and f.model_name_or_path,
        "--model_name_or_path {model_name_or_path} names a language model, which --stage {stage} has none of. Leave "
        "it out; --init_from starts from an earlier output.",
    ),
    Check(
        "items that are batches",
        lambda f, m: (
            f.stage not in ("qa", "align")
            and (f.per_device_train_batch_size, f.per_device_eval_batch_size) != (1, 1)
        ),
        "--stage {stage} reads one batch at a time. Set --questions_per_batch, or --nodes_per_batch of --stage graph, "
        "and leave --per_device_train_batch_size and --per_device_eval_batch_size out.",
    ),
    Check(
        "questions per batch",
        lambda f, m: f.questions_per_batch < 1 or f.num_negatives < 0,
        "--questions_per_batch {questions_per_batch} and --num_negatives {num_negatives} cannot both be used. The "
        "first must be 1 or more, the second 0 (every node) or more.",
    ),
    Check(
        "nodes per batch",
        lambda f, m: f.nodes_per_batch < 1 or f.neighbours_per_node < 0,
        "--nodes_per_batch {nodes_per_batch} and --neighbours_per_node {neighbours_per_node} cannot both be used. The "
        "first must be 1 or more, the second 0 (all neighbours) or more.",
    ),
    Check(
        "divided encoder",
        lambda f, m: f.stage == "graph" and (f.deepspeed or f.fsdp),
        "--stage graph trains an encoder of a few million weights, which nothing needs to divide: it runs in one "
        "process or under torchrun. Leave --deepspeed and --fsdp out.",
    ),
    Check(
        "node states on the Hub",
        lambda f, m: f.stage == "graph" and f.push_to_hub,
        "--stage graph makes vectors of one graph's nodes, which say nothing without it: nothing to push. Push "
        "what is trained on them, and leave --push_to_hub out here.",
    ),
    *ENGINE_CHECKS,
    Check(
        "label smoothing",
        lambda f, m: f.label_smoothing_factor != 0,
        "--label_smoothing_factor {label_smoothing_factor} would smooth unshifted labels and train the wrong tokens. "
        "Leave it out.",
    ),
    Check(
        "best model without evaluation",
        lambda f, m: f.load_best_model_at_end and f.eval_strategy == "no",
        "--load_best_model_at_end needs evaluations to compare. Set --eval_strategy to the value of --save_strategy.",
    ),
    Check(
        "read-out of an alignment",
        lambda f, m: f.stage == "align" and f.graph_readout not in (None, "qformer"),
        "--stage align trains a Q-Former, and --graph_readout {graph_readout} has none: it is trained in --stage qa "
        "alone. Leave the flag out.",
    ),
    Check(
        "unused columns",
        lambda f, m: f.remove_unused_columns,
        "--remove_unused_columns True would drop the graphs before they are batched. Leave it out.",
    ),
    Check(
        "generation in the Trainer",
        lambda f, m: f.stage == "qa" and not f.prediction_loss_only,
        "--prediction_loss_only False would gather logits of rows of different widths. Leave it out; --do_predict "
        "generates answers.",
    ),
    Check(
        "unrelated output",
        _unrelated,
        "--output_dir {output_dir} is not empty and holds no run of this program. Choose another folder, or empty it.",
    ),
    Check(
        "output over input",
        _writes_to_data,
        "--output_dir {output_dir} is also an input of this run and would be overwritten. Choose another folder.",
    ),
    Check(
        "nothing to train",
        lambda f, m: f.do_train and f.freeze_lm and not f.use_graph and not f.prompt_tuning,
        "--freeze_lm True without graph tokens leaves nothing to train. Change one of them, train learned tokens with "
        "--prompt_tuning N, or ask the model as it is with --do_train False --do_predict True.",
    ),
    Check(
        "learned tokens beside a graph",
        lambda f, m: f.prompt_tuning and (f.use_graph or f.prompt_tuning < 0),
        "--prompt_tuning {prompt_tuning} puts that many learned tokens where graph tokens would stand. Set --context "
        "none, documents or text, and a number above 0.",
    ),
    Check(
        "sizes of splits",
        lambda f, m: f.test_size < 0 or f.subset is not None and f.subset < 1 or f.top_documents < 1,
        "--test_size {test_size}, --subset {subset} or --top_documents {top_documents} takes no row. Set them to 1 or "
        "more, or leave them out.",
    ),
    Check(
        "division of what is no table",
        lambda f, m: (
            (f.columns or f.test_rows or f.test_size or f.subset is not None or f.split_seed)
            and not all(is_table(path, f.columns) for path in f.data_path)
        ),
        "--columns, --test_rows, --test_size, --subset and --split_seed divide a table, which --data_path {data_path} "
        "is not: a dataset folder has its splits, conversations --validation_size. Leave them out.",
    ),
    Check(
        "documents that are not shown",
        lambda f, m: f.documents and f.context != "documents",
        "--documents {documents} is read with --context documents alone. Add it, or leave --documents out.",
    ),
    Check(
        "base of a full model",
        lambda f, m: f.include_base and not f.use_lora and not f.freeze_lm,
        "--include_base copies an untrained base model, but a full fine-tune writes all weights. Leave it out.",
    ),
    *HUB_CHECKS,
    Check(
        "text style",
        lambda f, m: f.text_style not in ("triples", "tables"),
        "--text_style {text_style} is not known. Use triples or tables.",
    ),
    Check(
        "validation size",
        lambda f, m: f.validation_size < 1,
        "--validation_size {validation_size} takes no row. Set it to 1 or more, or --validation False.",
    ),
    Check(
        "chat template file",
        lambda f, m: f.chat_template and not Path(f.chat_template).is_file(),
        "--chat_template {chat_template}: no such file. It takes a Jinja file.",
    ),
    Check(
        "json without dry run",
        lambda f, m: f.json and not f.dry_run,
        "--json writes the figures of --dry_run. Add --dry_run True, or leave it out: runs write metrics.json.",
    ),
    Check(
        "checkpoint folder",
        lambda f, m: (
            f.resume_from_checkpoint not in (None, "auto", "none")
            and not (Path(f.resume_from_checkpoint) / "trainer_state.json").is_file()
        ),
        "--resume_from_checkpoint {resume_from_checkpoint} is no checkpoint. Give a checkpoint-N folder.",
    ),
    Check(
        "nothing to do",
        lambda f, m: not (f.do_train or f.do_eval or f.do_predict or f.dry_run),
        "--do_train False leaves nothing to do. Add --do_eval True or --do_predict True.",
    ),
    *SPEED_CHECKS,
)


def check_flags(flags: Namespace, machine: Machine) -> None:
    """Raises ValueError with the message of the first row that applies, of CHECKS or of those for --publish alone."""
    for check in PUBLISH_CHECKS if flags.publish else CHECKS:
        if check.refused(flags, machine):
            raise ValueError(sentence(check, flags, machine))


def sentence(check: Check, flags: Namespace, machine: Machine) -> str:
    """The row's message about these flags on this machine."""
    more = {"data_path": " ".join(flags.data_path or [])}
    if check.name == "engine":
        more["reason"] = refusal(flags, machine.processes)
    return check.message.format(**vars(flags) | vars(machine) | more)
