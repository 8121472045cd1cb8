"""A model's answers to a data set, with its graphs, without them, or with the wrong ones: predictions.jsonl."""

import json
import logging
import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from tqdm.auto import tqdm

from data_processor.schema import whole_lines, write_jsonl
from evaluation.ablations import Example, Message, content_items, prompt_builder, prompt_of
from evaluation.metrics import split_answers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

logger = logging.getLogger(__name__)

# Whatever the base model's generation_config.json says: a penalty on repetition strikes the names to be copied.
PLAIN_SEARCH = {"do_sample": False, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
PLAIN_SEARCH |= {"temperature": None, "top_p": None, "top_k": None}  # sampling's alone, and warned about in a search

GRAPH_INPUTS = ("graph_node_features", "graph_edge_index", "graph_edge_features", "graph_batch")

Row = dict[str, Any]


def generate_predictions(
    model: "PreTrainedModel",
    processor: "ProcessorMixin",
    dataset: Sequence[Example],
    output: str | Path,
    batch_size: int = 16,
    max_new_tokens: int = 32,
    ablate: str = "none",
    num_beams: int = 1,
    max_length: int | None = None,
    retrieved: Callable[[str], list[str]] | None = None,
    seed: int = 0,
) -> Path:
    """Answers every question of a data set and writes `predictions.jsonl`, in the data set's order.

    Finished batches are appended to `OUTPUT.partial*`; a run that was stopped goes on from there if model, questions
    and settings are the same. Under torch.distributed the questions are divided over the ranks and rank 0 merges.

    Args:
        model, processor: the model, on its device (it is left in evaluation mode), and its processor.
        dataset: examples `{"id", "messages", "question"?, "answers"?, "type"?}`; the answer ending `messages` is not
            shown. Without `question` and `answers` (conversations) they are the last turn of either side.
        output: the file to write.
        batch_size: questions a batch, on each rank.
        max_new_tokens, max_length: the longest answer and prompt, in tokens; prompts lose the beginning of their text.
        ablate: one of `ablations.ABLATIONS`.
        num_beams: beams of the search; 1 is greedy.
        retrieved: question id -> names of retrieved nodes, best first, to append to the answers (`append_retrieved`).
        seed: of the shuffle.

    Raises:
        ValueError: an unknown ablation, an empty data set, an id twice, or a shuffle of a single question.
    """
    output, survey = Path(output), survey_of(dataset)
    prompt = prompt_builder(dataset, [row["type"] for row in survey], ablate, seed)
    settings = {
        "ablate": ablate, "max_new_tokens": max_new_tokens, "num_beams": num_beams, "max_length": max_length,
        "seed": seed,
    }  # fmt: skip

    def answer(batch: list[int]) -> list[Row]:
        inputs = _inputs(model, processor, [prompt(i) for i in batch], max_length, zero=ablate == "zero")
        texts = _answers(model, processor, inputs, max_new_tokens, num_beams)
        return [prediction_row(dataset[i], text) for i, text in zip(batch, texts, strict=True)]

    return write_answers(model, output, survey, settings, answer, batch_size, retrieved)


def write_answers(
    model: "PreTrainedModel",
    output: Path,
    survey: list[Row],
    settings: Row,
    answer: Callable[[list[int]], list[Row]],
    batch_size: int,
    retrieved: Callable[[str], list[str]] | None = None,
) -> Path:
    """Asks batch after batch and writes the rows, in the order of the questions; see `generate_predictions`.

    Args:
        model: in evaluation mode afterwards; other weights do not continue an unfinished file.
        output: the file. survey: of the questions. settings: what the rows depend on besides.
        answer: numbers of questions -> their rows.
        batch_size, retrieved: as for `generate_predictions`.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    settings = settings | {"questions": zlib.crc32(json.dumps(survey).encode()), "model": _fingerprint(model.eval())}
    done = _read_parts(output, settings)
    _barrier()  # every rank has read the same parts before one of them grows
    with _Part(output, settings) as part:
        batches = _batches([row["length"] for row in survey], [row["id"] in done for row in survey], batch_size)
        for batch in tqdm(batches, desc=f"answer ({settings['ablate']})", unit="batch", disable=_rank() > 0):
            part.add(answer(batch))
    _barrier()
    if _rank() == 0:
        _merge(output, settings, [row["id"] for row in survey], retrieved)
    _barrier()
    return output


def survey_of(dataset: Sequence[Example]) -> list[Row]:
    """Id, type and length in characters of every question; the examples themselves are not kept."""
    if not len(dataset):
        raise ValueError("The data set has no question to answer. Name another split, or fill its qa file.")
    survey: dict[str, Row] = {}
    for i in tqdm(range(len(dataset)), desc="read questions", unit="question", disable=_rank() > 0, delay=2):
        example = dataset[i]
        if example["id"] in survey:
            raise ValueError(f"The id {example['id']!r} stands for two questions. Give every question its own id.")
        items = [item for message in prompt_of(example) for item in content_items(message)]
        length = sum(len(item["text"]) for item in items if item["type"] == "text")
        survey[example["id"]] = {"id": example["id"], "type": example.get("type") or "", "length": length}
    return list(survey.values())


def _batches(lengths: list[int], done: list[bool], batch_size: int) -> list[list[int]]:
    """This rank's batches of unanswered questions, longest first: lengths agree within a batch, and memory runs out at
    once or never.

    Every rank gets as many, some questions twice: with a partitioned model all ranks must generate together.
    """
    order = sorted((i for i in range(len(done)) if not done[i]), key=lambda i: -lengths[i])
    if order:
        order = np.resize(order, math.ceil(len(order) / _world()) * _world()).tolist()
    mine = order[_rank() :: _world()]
    return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]


@torch.no_grad()
def _inputs(
    model: "PreTrainedModel",
    processor: "ProcessorMixin",
    conversations: list[list[Message]],
    max_length: int | None,
    zero: bool,
) -> dict[str, torch.Tensor]:
    """The batch for `generate`; with `zero` the graphs are encoded and their tokens set to zero."""
    encoded = [processor.encode(messages, max_length) for messages in conversations]
    batch = dict(processor.pad(encoded).to(model.device))
    if zero and "graph_batch" in batch:
        graphs = {name: batch.pop(name, None) for name in GRAPH_INPUTS}
        batch["graph_embeds"] = torch.zeros_like(model.encode_graphs(batch["input_ids"], **graphs))
    return batch


@torch.no_grad()
def _answers(
    model: "PreTrainedModel",
    processor: "ProcessorMixin",
    inputs: dict[str, torch.Tensor],
    max_new_tokens: int,
    num_beams: int,
) -> list[str]:
    tokenizer = processor.tokenizer
    length = {"num_beams": num_beams, "max_new_tokens": max_new_tokens, "pad_token_id": tokenizer.pad_token_id}
    tokens = model.generate(**inputs, **PLAIN_SEARCH, **length)
    if not model.config.is_encoder_decoder:
        tokens = tokens[:, inputs["input_ids"].shape[1] :]  # (B, at most max_new_tokens)
    return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def prediction_row(example: Example, text: str) -> Row:
    """A line of predictions.jsonl."""
    known = example if "answers" in example else _question_of(example["messages"])
    row = {"id": example["id"], "question": known["question"], "prediction": text, "answers": list(known["answers"])}
    return row | ({"type": example["type"]} if example.get("type") else {})


def _question_of(messages: list[Message]) -> Row:
    texts = {message["role"]: "".join(item.get("text", "") for item in content_items(message)) for message in messages}
    return {"question": texts["user"], "answers": [texts["assistant"]]}


def append_retrieved(row: Row, names: list[str]) -> Row:
    """The row with `ranked_answers`: what was generated, then the retrieved names, each name once."""
    ranked = dict.fromkeys([*split_answers(row["prediction"]), *names])
    return row | {"ranked_answers": list(ranked), "retrieved": names}


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


# ---------------------------------------------------------------------------------------------------- unfinished files


def _fingerprint(model: "PreTrainedModel") -> str:
    """A number that changes when the weights do, so that predictions of other weights are not continued."""
    return f"{sum(_norm(parameter.data) for parameter in model.parameters() if not parameter.is_meta):.9e}"


def _norm(values: torch.Tensor, block: int = 2**24) -> float:
    """Sum of magnitudes in float64, a block at a time: no second copy of a large matrix is made."""
    parts = values.as_subclass(torch.Tensor).flatten().split(block)
    if not values.is_floating_point():  # packed four-bit weights
        return float(sum(part.sum(dtype=torch.int64).item() for part in parts))
    return sum(torch.linalg.vector_norm(part, 1, dtype=torch.float64).item() for part in parts)


def _part_paths(output: Path) -> list[Path]:
    return sorted(output.parent.glob(f"{output.name}.partial*"))


def _read_parts(output: Path, settings: Row) -> dict[str, Row]:
    """Rows of an unfinished run with the same settings, by id."""
    done: dict[str, Row] = {}
    for path in _part_paths(output):
        lines = whole_lines(path)
        if lines and lines[0] == settings:
            done |= {row["id"]: row for row in lines[1:]}
        else:
            logger.warning("%s was begun with another model, other questions or settings: it is not continued.", path)
    return done


class _Part:
    """This rank's log: the settings, then a row a line."""

    def __init__(self, output: Path, settings: Row) -> None:
        self.path = output.with_name(f"{output.name}.partial{_rank()}")
        lines = whole_lines(self.path)
        write_jsonl(self.path, lines if lines and lines[0] == settings else [settings])  # without a torn last line

    def __enter__(self) -> "_Part":
        self.file = open(self.path, "a", encoding="utf-8")
        return self

    def add(self, rows: list[Row]) -> None:
        self.file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        self.file.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()


def _merge(output: Path, settings: Row, ids: list[str], retrieved: Callable[[str], list[str]] | None) -> None:
    rows = _read_parts(output, settings)
    missing = [name for name in ids if name not in rows]
    assert not missing, f"{len(missing)} questions have no prediction, first {missing[0]}"
    chosen = (rows[name] for name in ids)
    write_jsonl(output, (append_retrieved(row, retrieved(row["id"])) for row in chosen) if retrieved else chosen)
    for path in _part_paths(output):
        path.unlink()
