"""Commands of the evaluation room: answers first, scores from the file of answers.

    python -m evaluation generate --model M --data D --split test --output P [--ablate zero] [--append_retrieved 20]
    python -m evaluation generate --model M --data questions.csv --columns question=Q answer=A --output P
    python -m evaluation generate --model M --data conversations.jsonl --output P
    python -m evaluation classify --model M --data D --split test --labels labels.txt --by likelihood --output P
    python -m evaluation score --predictions P --output J [--data D --split test] [--metrics rouge bleu ...]
    python -m evaluation compare A B --output J
    python -m evaluation stark --data D --split test --output J
    python -m evaluation report RUN... --output page.html
    python -m evaluation judge --predictions P [--against Q] [--facts D/facts.jsonl] --output J --backend api --model M
    torchrun --nproc_per_node 8 -m evaluation generate ...      the questions divided over eight processes
    python -m evaluation demo --model output/demo/model --data output/demo/data --output output/demo/metrics.json
"""

import argparse
import contextlib
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_processor.schema import write_json
from evaluation.ablations import ABLATIONS
from evaluation.classify_command import add_classify, run_classify
from evaluation.demo import demo_metrics, demo_predictions, translator_metrics, translator_predictions
from evaluation.judge_command import add_judge_commands
from evaluation.report import ASKED, verdict
from evaluation.report_command import add_report_command
from evaluation.score_command import add_score_commands, questions_of
from evaluation.trained import CONTEXTS, longest_prompt, trained_with

if TYPE_CHECKING:
    from torch.utils.data import Dataset

logger = logging.getLogger(__name__)

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command; a user's mistake is one sentence on standard error and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def parser() -> argparse.ArgumentParser:
    """All commands and their flags."""
    whole = argparse.ArgumentParser(prog="python -m evaluation", description="Answers, scores, comparisons, reports.")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    _add_generate(commands)
    add_score_commands(commands)
    add_report_command(commands)
    add_judge_commands(commands)
    choice = _command(commands, "classify", run_classification, "one of some labels for every question, ranked")
    _add_model(choice)
    _add_shown(choice)
    add_classify(choice)
    demo = _command(commands, "demo", run_demo, "a demonstration's table and three answers")
    demo.add_argument("--alignment", type=Path, help="the Translator's: the output of its stage 1")
    demo.add_argument("--model", required=True)
    demo.add_argument("--data", type=Path, required=True)
    demo.add_argument("--output", type=Path, required=True, help="metrics.json to write")
    demo.add_argument("--started", type=float, default=time.time(), help="when the demonstration began, epoch seconds")
    demo.add_argument("--batch_size", type=int, default=32)
    demo.add_argument("--result", type=Path, help="also record the table with commit and machine in this file")
    demo.set_defaults(split="test", text_style=None, max_text_tokens=None, context=None, columns=None)
    demo.set_defaults(documents=None, document_encoder=None, top_documents=None)
    demo.set_defaults(device="cpu", device_map=None, load_in_4bit=False)
    return whole


def _command(commands: Any, name: str, run: Callable, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    return command


def _add_generate(commands: Any) -> None:
    command = _command(commands, "generate", run_generate, "a model's answers -> predictions.jsonl")
    _add_model(command)
    command.add_argument("--data", type=Path, required=True,
                         help="folder with graph/, qa/ and subgraphs/, table, name on the Hub, or conversations")
    command.add_argument("--split", default="test", help="of a folder, a data set of the Hub, or the training's table")
    _add_shown(command)
    command.add_argument("--output", type=Path, required=True, help="predictions.jsonl to write")
    command.add_argument("--ablate", choices=ABLATIONS, default="none", help="what is taken away from the model")
    command.add_argument("--append_retrieved", type=int, default=0, metavar="K",
                         help="append the names of the K best retrieved nodes to the ranked answers")
    command.add_argument("--batch_size", type=int, default=16)
    command.add_argument("--max_new_tokens", type=int, default=32)
    command.add_argument("--max_length", type=int, help="the longest prompt, in tokens; default: as in training")
    command.add_argument("--num_beams", type=int, default=1)
    command.add_argument("--text_style", choices=("triples", "tables"), help="default: as in training, else triples")
    command.add_argument("--max_text_tokens", type=int, help="budget of the graph's text; default: as in training")
    command.add_argument("--seed", type=int, default=0, help="of the shuffle")


def _add_shown(command: argparse.ArgumentParser) -> None:
    command.add_argument("--columns", nargs="+", metavar="ROLE=COLUMN", help="of a table; default: as in training")
    command.add_argument("--context", choices=CONTEXTS, help="what stands beside questions; default: as in training")
    command.add_argument("--documents", help="of --context documents: folder of texts or documents.jsonl")
    command.add_argument("--document_encoder", help="what embeds them; default: as in training")
    command.add_argument("--top_documents", type=int, help="chunks that are shown; default: as in training")


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", required=True, help="folder or repository")
    place = command.add_mutually_exclusive_group()
    place.add_argument("--device", help="default: the GPU if there is one")
    place.add_argument("--device_map", help="`auto` divides the language model over all GPUs (not verified on a GPU)")
    command.add_argument("--load_in_4bit", action="store_true",
                         help="the language model in four bits, as --q_lora trains it (not verified on a GPU)")


def load(arguments: argparse.Namespace, trained: Row) -> tuple[Any, Any]:
    """The model, on the device or devices that were asked for, and its processor."""
    import torch

    from modeling_graphllm import GraphLLMConfig, GraphLLMForConditionalGeneration
    from processing_graphllm import GraphLLMProcessor

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    how: Row = {"dtype": "auto"}
    if arguments.device_map or arguments.load_in_4bit:
        how["device_map"] = arguments.device_map or device
    if arguments.load_in_4bit:
        from training.adapters import four_bits

        if not GraphLLMConfig.from_pretrained(arguments.model).lean:
            raise ValueError(f"{arguments.model} holds a whole model, not a reference to its base: its graph reader "
                             "would be quantised too. Leave --load_in_4bit out.")
        how["quantization_config"] = four_bits(trained.get("bf16", False))
    loaded = GraphLLMForConditionalGeneration.from_pretrained(arguments.model, **how).eval()
    if "device_map" not in how:
        loaded = loaded.to(device)
    return loaded, GraphLLMProcessor.from_pretrained(arguments.model)


def run_generate(arguments: argparse.Namespace) -> None:
    """`generate`: asks the model and writes predictions.jsonl."""
    from evaluation.generation import generate_predictions
    from evaluation.opening import open_dataset

    names = ("output", "batch_size", "max_new_tokens", "ablate", "num_beams", "max_length", "seed")
    settings = {name: vars(arguments)[name] for name in names}
    with process_group() as rank:
        trained = trained_with(arguments.model)
        model, processor = load(arguments, trained)
        dataset = open_dataset(arguments, processor, trained)
        longest = arguments.max_length or longest_prompt(model, trained, arguments.max_new_tokens)
        settings["max_length"] = longest
        if arguments.append_retrieved:
            settings["retrieved"] = _retrieved_names(dataset, arguments.append_retrieved)
        generate_predictions(model, processor, dataset, **settings)
    if rank == 0:
        note_asked(arguments)
        print(f"{len(dataset)} predictions in {arguments.output}")


def note_asked(arguments: argparse.Namespace) -> None:
    """Writes beside the predictions who was asked, and what: a report finds the training and the graph by it."""
    asked = {"model": arguments.model, "data": str(arguments.data), "split": arguments.split}
    write_json(arguments.output.parent / ASKED, asked)


def run_classification(arguments: argparse.Namespace) -> None:
    """`classify`: asks the model to choose a label, and writes predictions and metrics."""
    from evaluation.opening import open_dataset

    with process_group() as rank:
        trained = trained_with(arguments.model)
        model, processor = load(arguments, trained)
        longest = arguments.max_length or longest_prompt(model, trained, 0)
        if arguments.by == "generation":
            longest = arguments.max_length or longest_prompt(model, trained, arguments.max_new_tokens)
        run_classify(arguments, model, processor, open_dataset(arguments, processor, trained), longest, rank == 0)
    if rank == 0:
        note_asked(arguments)


@contextlib.contextmanager
def process_group() -> Iterator[int]:
    """Yields this process's rank; under torchrun the processes are joined, each on its own GPU where there are any."""
    import torch

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield torch.distributed.get_rank()
    finally:
        torch.distributed.destroy_process_group()


def _retrieved_names(dataset: "Dataset", count: int) -> Callable[[str], list[str]]:
    from data_processor.dataset import GraphQADataset

    if not isinstance(dataset, GraphQADataset):
        raise ValueError("These questions have no graph: no node was retrieved. Leave --append_retrieved out.")
    return lambda question: dataset.graph.node_name(dataset.subgraphs.get(question).nodes[:count])


# --------------------------------------------------------------------------------------------------- the demonstration


def run_demo(arguments: argparse.Namespace) -> None:
    """Reloads a demonstration's model, asks it everything with and without its graphs, writes the table."""
    from evaluation.opening import open_dataset

    trained = trained_with(arguments.model)
    model, processor = load(arguments, trained)
    dataset = open_dataset(arguments, processor, trained)
    asked = model, processor, dataset, arguments.output.parent, arguments.batch_size
    train, translator = questions_of(arguments.data, "train"), arguments.alignment is not None
    predictions = translator_predictions(*asked) if translator else demo_predictions(*asked)
    if translator:
        metrics = translator_metrics(predictions, train, arguments.alignment)
    else:
        metrics = demo_metrics(predictions, train)
    note_asked(arguments)
    metrics["minutes"] = (time.time() - arguments.started) / 60
    write_json(arguments.output, metrics)
    if arguments.result:
        shell = "train_translator" if translator else "finetune_lora_ds"
        write_json(arguments.result, demo_record(arguments.result, metrics, shell))
    for name, value in metrics.items():
        print(f"{name:36} {value:.3f}")
    for ablate in [one for one in predictions if one != "none"]:
        print(verdict(predictions["none"], predictions[ablate], ablate))
    for row in predictions["none"][:: len(dataset) // 3][:3]:
        print(f"\n{row['question']}\n  answer: {row['prediction']}\n  gold:   {' | '.join(row['answers'])}")


def demo_record(path: Path, metrics: dict[str, float], shell: str) -> Row:
    """The table as results/ keeps it."""
    from training.record import commit

    return {
        "command": f"RESULT={path} bash shells/{shell}.sh",
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one process on the CPU",
        "minutes": round(metrics["minutes"], 2),
        "seeds": [42],  # of data order and dropout: the Trainer's default
        "metrics": {name: value for name, value in metrics.items() if name != "minutes"},
    }


if __name__ == "__main__":
    main()
