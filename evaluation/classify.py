"""Questions whose answer is one of some labels: the labels ranked by likelihood, or read out of a generated answer.

Beside every run stand the majority class of the training questions and the same model with the text alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_processor.schema import read_jsonl, write_jsonl
from evaluation.ablations import Example, Message, content_items, prompt_builder
from evaluation.classification import link_metrics, majority_metrics, mentions, ranking_metrics
from evaluation.generation import generate_predictions, prediction_row, survey_of, write_answers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

WAYS = ("likelihood", "generation")
TEXT_ONLY = "no_graph"  # the ablation that every run stands beside
LINKED = {"yes", "no"}
Row = dict[str, Any]


class Labels:
    """The labels that there are, with every way to name them.

    Args:
        names: label -> other names of it.

    Raises:
        ValueError: no label, or a name that two labels have.
    """

    def __init__(self, names: dict[str, Sequence[str]]) -> None:
        self.labels, self.known = list(names), {}
        for label, others in names.items():
            for name in (label, *others):
                before = self.known.setdefault(name.lower(), label)
                if before != label:
                    raise ValueError(f"{name!r} names two labels, {before!r} and {label!r}. A name is one label's.")
        if not self.labels:
            raise ValueError("There is not one label to choose from. Give a file with a label a line.")

    @classmethod
    def read(cls, path: Path) -> "Labels":
        """Of a file: a label a line, other names of it after `|`: `cs.LG | machine learning`."""
        rows = [line.split("|") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        stripped = [[name.strip() for name in row if name.strip()] for row in rows]
        repeated = {row[0] for i, row in enumerate(stripped) if row[0] in {one[0] for one in stripped[:i]}}
        if repeated:
            raise ValueError(f"{path} lists the label {sorted(repeated)[0]!r} twice. Keep one line of it.")
        return cls({row[0]: row[1:] for row in stripped})

    @classmethod
    def of_answers(cls, rows: Sequence[Row]) -> "Labels":
        """The first answers of questions, sorted."""
        return cls({label: () for label in sorted({row["answers"][0] for row in rows})})

    def gold(self, row: Row) -> str:
        """The label that a question's answer names; ValueError where it is none."""
        label = self.known.get(row["answers"][0].lower())
        if label is None:
            raise ValueError(
                f"The answer {row['answers'][0]!r} of question {row['id']!r} is none of {len(self.labels)} labels. "
                "Add it to the file of labels, after `|` where it is another name of one."
            )
        return label

    def listed(self, messages: list[Message]) -> list[Message]:
        """The prompt with the labels after its question."""
        *earlier, last = messages
        text = f"Answer with one of: {'; '.join(self.labels)}."
        return [*earlier, {**last, "content": [*content_items(last), {"type": "text", "text": text}]}]


def classify(
    model: "PreTrainedModel",
    processor: "ProcessorMixin",
    dataset: Sequence[Example],
    labels: Labels,
    output: Path,
    by: str = "likelihood",
    ablate: str = "none",
    reduction: str = "sum",
    list_labels: bool = False,
    batch_size: int = 16,
    max_new_tokens: int = 64,
    max_length: int | None = None,
    seed: int = 0,
) -> Path:
    """Writes predictions.jsonl whose `ranked_answers` are labels, best first; an unfinished run goes on.

    Args:
        model, processor, dataset, output, batch_size, seed: as for `generate_predictions`.
        labels: to choose from.
        by: `likelihood` ranks all labels (see `label_scores`; `scores` holds their values), `generation` those that a
            generated answer names, by first mention.
        ablate: one of `ablations.ABLATIONS`.
        reduction: of the likelihoods of an answer's tokens, `sum` or `mean`.
        list_labels: write the labels after the question, for a model that was not trained on them.
        max_new_tokens: the longest generated answer. max_length: the longest prompt, with an answer.
    """
    shown = _Listing(dataset, labels) if list_labels else dataset
    if by == "generation":
        asked = {"max_new_tokens": max_new_tokens, "ablate": ablate, "max_length": max_length, "seed": seed}
        generate_predictions(model, processor, shown, output, batch_size, **asked)
        rows = [row for _, row in read_jsonl(output)]
        ranked = [mentions(row["prediction"], labels.known) for row in rows]
        write_jsonl(output, (row | {"ranked_answers": one} for row, one in zip(rows, ranked, strict=True)))
        return output
    from evaluation.label_scoring import label_scores

    survey = survey_of(shown)
    prompt = prompt_builder(shown, [row["type"] for row in survey], ablate, seed)
    settings = {"ablate": ablate, "reduction": reduction, "labels": labels.labels, "max_length": max_length}

    def answer(batch: list[int]) -> list[Row]:
        prompts, size = [prompt(i) for i in batch], len(batch) * len(labels.labels)
        how = {"batch_size": size, "max_length": max_length, "zero": ablate == "zero"}
        scores = label_scores(model, processor, prompts, labels.labels, reduction, **how)
        return [_ranked(shown[i], labels.labels, one.numpy()) for i, one in zip(batch, scores, strict=True)]

    return write_answers(model, output, survey, settings | {"seed": seed}, answer, batch_size)


class _Listing(Sequence):
    """A data set whose questions list the labels."""

    def __init__(self, dataset: Sequence[Example], labels: Labels) -> None:
        self.dataset, self.labels = dataset, labels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Example:
        example = self.dataset[index]
        end = 1 if example["messages"][-1]["role"] == "assistant" else 0
        asked, answer = example["messages"][: len(example["messages"]) - end], example["messages"][-1:] * end
        return {**example, "messages": [*self.labels.listed(asked), *answer]}


def _ranked(example: Example, labels: list[str], scores: np.ndarray) -> Row:
    order = np.argsort(-scores, kind="stable")
    row = prediction_row(example, labels[order[0]])
    return row | {"ranked_answers": [labels[i] for i in order], "scores": [float(scores[i]) for i in order]}


def classification(rows: Sequence[Row], labels: Labels, train: Sequence[Row]) -> dict[str, float]:
    """`ranking_metrics` of predictions and, where there are training questions, `majority`.

    Of yes and no by likelihood also `auc` and `average_precision`: how well the scores tell one from the other.
    """
    gold = [labels.gold(row) for row in rows]
    metrics = ranking_metrics([row["ranked_answers"] for row in rows], gold)
    if train:
        metrics |= majority_metrics([labels.gold(row) for row in train], gold)
    if set(labels.labels) == LINKED and all("scores" in row for row in rows) and len(set(gold)) == 2:
        margins = [row["scores"][0] - row["scores"][1] for row in rows]
        signed = [m if row["prediction"] == "yes" else -m for m, row in zip(margins, rows, strict=True)]
        metrics |= link_metrics(np.array(signed), np.array([int(name == "yes") for name in gold]))
    return metrics | {"count": float(len(rows))}
