"""Scores of long answers by the libraries that define them: ROUGE, BLEU, BERTScore, similarity, entailment.

Each library and each model is loaded when its metric is asked for, and a sentence says what to install or name where
it is not there. With several answers a metric is the best over them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_processor.text_encoder import load_encoder

Row = dict[str, Any]
Answers = Sequence[Sequence[str]]

ROUGE = ("rouge1", "rouge2", "rougeL")
PACKAGES = {"rouge": "rouge-score", "bleu": "sacrebleu", "bertscore": "bert-score"}
MODULES = {"rouge": "rouge_score", "bleu": "sacrebleu", "bertscore": "bert_score"}
NO_WORD = "."  # stands for an empty text, of which an encoder has no token to compare
PAIRS = 16  # premises and hypotheses that are read at a time
LONGEST = 512  # tokens that the models of BERTScore and entailment are given, where they do not say


@dataclass(frozen=True)
class TextModels:
    """The models behind the metrics: folders, or names on the Hub.

    Attributes:
        bertscore: an encoder for BERTScore. layers: whose states are compared, counted from 1; None: what the library
            recommends for that name, else the last one.
        encoder: what `data_processor.text_encoder.load_encoder` takes.
        nli: a classifier of sentence pairs with a label "entailment".
    """

    bertscore: str | None = None
    layers: int | None = None
    encoder: str | None = None
    nli: str | None = None


def text_columns(rows: Sequence[Row], names: Sequence[str], models: TextModels) -> dict[str, np.ndarray]:
    """The metrics of every prediction: name -> (n,) float64.

    Args:
        rows: `{"id", "prediction", "answers"}`. names: keys of TEXT_METRICS. models: for those that need one.

    Raises:
        ValueError: an unknown name, a library or model that is not there, or a value that is not a number.
    """
    predictions, answers = [row["prediction"] for row in rows], [row["answers"] for row in rows]
    columns: dict[str, np.ndarray] = {}
    for name in names:
        columns |= metric_named(name)(predictions, answers, models)
    for name, values in columns.items():
        if not np.isfinite(values).all():
            first = rows[int(np.flatnonzero(~np.isfinite(values))[0])]["id"]
            raise ValueError(
                f"{name} of question {first!r} is not a number, so no average of it means anything. Its model is "
                "broken, or of a type too small for its values: name another one."
            )
    return columns


def metric_named(name: str) -> Callable[[Sequence[str], Answers, TextModels], dict[str, np.ndarray]]:
    """The function of a metric.

    Raises:
        ValueError: an unknown name, or its library is not installed.
    """
    if name not in TEXT_METRICS:
        raise ValueError(f"The metric {name!r} is not known. Choose from {', '.join(TEXT_METRICS)}.")
    if name in MODULES and importlib.util.find_spec(MODULES[name]) is None:
        raise ValueError(f"The metric {name!r} needs the package {PACKAGES[name]}: pip install {PACKAGES[name]}.")
    return TEXT_METRICS[name]


# --------------------------------------------------------------------------------------------------- words in common
def rouge(predictions: Sequence[str], answers: Answers, models: TextModels) -> dict[str, np.ndarray]:
    """F-measures of ROUGE-1, -2 and -L (Lin 2004) with stemming, as rouge-score computes them."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(ROUGE, use_stemmer=True)
    scores = [scorer.score_multi(golds, text) for golds, text in zip(answers, predictions, strict=True)]
    return {name: np.array([one[name].fmeasure for one in scores]) for name in ROUGE}


def bleu(predictions: Sequence[str], answers: Answers, models: TextModels) -> dict[str, np.ndarray]:
    """Sentence BLEU (Papineni et al. 2002) from 0 to 1 by sacrebleu: its average is not the corpus BLEU, see below."""
    from sacrebleu import sentence_bleu

    pairs = zip(predictions, answers, strict=True)
    return {"sentence_bleu": np.array([sentence_bleu(text, list(golds)).score / 100 for text, golds in pairs])}


def corpus_bleu(predictions: Sequence[str], answers: Answers) -> float:
    """BLEU of all predictions together from 0 to 1, which is no average over questions."""
    from sacrebleu import corpus_bleu as whole

    width = max(map(len, answers))
    streams = [[golds[i] if i < len(golds) else None for golds in answers] for i in range(width)]
    return whole(list(predictions), streams).score / 100


# -------------------------------------------------------------------------------------------------------- by a model
def bertscore(predictions: Sequence[str], answers: Answers, models: TextModels) -> dict[str, np.ndarray]:
    """F1 of BERTScore (arXiv 1904.09675) without rescaling."""
    from bert_score import BERTScorer
    from bert_score.utils import model2layers

    name = needed("bertscore", models.bertscore, "--bertscore_model", "an encoder")
    with_words = [text if text.strip() else NO_WORD for text in predictions]
    try:
        layers = models.layers or model2layers.get(name) or last_layer(name)
        scorer = BERTScorer(model_type=name, num_layers=layers, device="cpu")
    except (OSError, ValueError, AssertionError) as error:
        raise absent("bertscore", name, "--bertscore_model", error) from error
    scorer._tokenizer.model_max_length = min(scorer._tokenizer.model_max_length, LONGEST)
    golds = [[gold if gold.strip() else NO_WORD for gold in several] for several in answers]
    return {"bertscore": scorer.score(with_words, golds)[2].double().numpy()}


def last_layer(name: str) -> int:
    """How many layers a model has."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(name).num_hidden_layers


def similarity(predictions: Sequence[str], answers: Answers, models: TextModels) -> dict[str, np.ndarray]:
    """Cosine of the embeddings of prediction and answer (SemScore, arXiv 2401.17072)."""
    encoder = load_encoder(needed("similarity", models.encoder, "--encoder", "a text encoder"))
    given = unit(encoder.encode(list(predictions)))  # (n, d)
    owners = np.repeat(np.arange(len(answers)), [len(golds) for golds in answers])  # (m,)
    wanted = unit(encoder.encode([gold for golds in answers for gold in golds]))  # (m, d)
    return {"similarity": best(np.sum(given[owners] * wanted, axis=1), owners, len(answers))}


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows divided by their length."""
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def entailment(predictions: Sequence[str], answers: Answers, models: TextModels) -> dict[str, np.ndarray]:
    """Probability, by a model of natural language inference, that the answer entails the prediction."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    name = needed("entailment", models.nli, "--nli_model", "a classifier of sentence pairs")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForSequenceClassification.from_pretrained(name).eval()
    except (OSError, ValueError) as error:
        raise absent("entailment", name, "--nli_model", error) from error
    label = entailment_label(name, model.config.id2label)
    owners = np.repeat(np.arange(len(answers)), [len(golds) for golds in answers])  # (m,)
    premises = [gold for golds in answers for gold in golds]
    limits = {"truncation": True, "max_length": min(tokenizer.model_max_length, LONGEST)}
    found = []
    for start in range(0, len(owners), PAIRS):
        block = slice(start, start + PAIRS)
        pairs = premises[block], [predictions[i] for i in owners[block]]
        batch = tokenizer(*pairs, **limits, padding=True, return_tensors="pt")
        with torch.no_grad():
            found.append(model(**batch).logits.float().softmax(dim=-1)[:, label].double().numpy())  # (PAIRS,)
    return {"entailment": best(np.concatenate(found), owners, len(answers))}


def entailment_label(name: str, labels: dict[int, str]) -> int:
    """The number of the label "entailment".

    Raises:
        ValueError: there is none.
    """
    numbers = [number for number, label in labels.items() if label.lower().startswith("entail")]
    if not numbers:
        raise ValueError(f"{name} has no label 'entailment' but {', '.join(labels.values())}: it was not trained for "
                         "natural language inference. Name another with --nli_model.")
    return numbers[0]


def best(values: np.ndarray, owners: np.ndarray, count: int) -> np.ndarray:
    """(count,) the largest of the values (m,) of every owner (m,); NaN stays."""
    largest = np.full(count, -np.inf)
    with np.errstate(invalid="ignore"):
        np.maximum.at(largest, owners, values)
    return largest


def needed(metric: str, name: str | None, flag: str, what: str) -> str:
    """The name of a model; ValueError if none was given."""
    if not name:
        raise ValueError(f"The metric {metric!r} needs {what}: pass {flag} with a folder, or a name on the Hub.")
    return name


def absent(metric: str, name: str, flag: str, error: Exception) -> ValueError:
    """What is said of a model that cannot be loaded."""
    kind = "folder" if Path(name).is_dir() else "name on the Hub that can be reached, and no folder"
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ValueError(f"The metric {metric!r} cannot load its model: {name!r} is a {kind} ({reason}). Check {flag}.")


TEXT_METRICS = {
    "rouge": rouge, "bleu": bleu, "bertscore": bertscore, "similarity": similarity, "entailment": entailment,
}  # fmt: skip
