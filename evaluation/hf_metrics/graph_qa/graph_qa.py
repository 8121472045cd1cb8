"""Every metric of answers as a module of the library `evaluate`, from a checkout of this project and without network.

    metric = evaluate.load("evaluation/hf_metrics/graph_qa", "token_f1")
    metric.compute(predictions=["Jane Austen"], references=[["Jane Austen", "Austen"]])     # {"token_f1": 1.0}
    metric = evaluate.load("evaluation/hf_metrics/graph_qa", "mrr")                         # of rankings, best first
    metric.compute(predictions=[["Emma", "Persuasion"]], references=[["Persuasion"]])
    evaluate.load("evaluation/hf_metrics/graph_qa", "bertscore").compute(..., bertscore="FOLDER")
"""

from typing import Any

import datasets
import evaluate
import numpy as np

from evaluation.metrics import answer_metrics
from evaluation.ranked import ranked_metrics
from evaluation.text_metrics import TEXT_METRICS, TextModels, corpus_bleu, text_columns

OF_ANSWERS, OF_RANKINGS = tuple(answer_metrics("", [""])), tuple(ranked_metrics([], [""]))
ALL = "default"  # every metric of answers that needs no library


class GraphQA(evaluate.Metric):
    """One metric, named by the configuration; without a name all that need no library."""

    def _info(self) -> evaluate.MetricInfo:
        known = (ALL, *OF_ANSWERS, *OF_RANKINGS, *TEXT_METRICS)
        if self.config_name not in known:
            raise ValueError(f"The metric {self.config_name!r} is not known. Choose from {', '.join(known[1:])}.")
        text = datasets.Value("string")
        given = datasets.Sequence(text) if self.config_name in OF_RANKINGS else text
        features = datasets.Features({"predictions": given, "references": datasets.Sequence(text)})
        return evaluate.MetricInfo(description=__doc__, citation="", features=features)

    def _compute(self, predictions: list, references: list[list[str]], **models: Any) -> dict[str, float]:
        """Averages over all predictions; `models`: the fields of `TextModels`."""
        if self.config_name in TEXT_METRICS:
            rows = [
                {"id": i, "prediction": given, "answers": golds}
                for i, (given, golds) in enumerate(zip(predictions, references, strict=True))
            ]
            means = average(text_columns(rows, [self.config_name], TextModels(**models)))
            whole = {"corpus_bleu": corpus_bleu(predictions, references)} if self.config_name == "bleu" else {}
            return means | whole
        metric = ranked_metrics if self.config_name in OF_RANKINGS else answer_metrics
        scored = [metric(given, golds) for given, golds in zip(predictions, references, strict=True)]
        names = OF_ANSWERS if self.config_name == ALL else (self.config_name,)
        return average({name: np.array([row[name] for row in scored]) for name in names})


def average(columns: dict[str, np.ndarray]) -> dict[str, float]:
    """The mean of every column."""
    return {name: float(values.mean()) for name, values in columns.items()}
