"""STaRK's protocol over all candidates as a module of the library `evaluate`.

    metric = evaluate.load("evaluation/hf_metrics/stark")
    metric.compute(predictions=[[.9, .2, .1]], references=[[1, 0, 0]])    # a score and a 0 or 1 for every candidate
"""

import datasets
import evaluate
import numpy as np

from evaluation.ranked import dense_scores


class Stark(evaluate.Metric):
    """Means over all queries."""

    def _info(self) -> evaluate.MetricInfo:
        scores, gold = datasets.Sequence(datasets.Value("float64")), datasets.Sequence(datasets.Value("int8"))
        features = datasets.Features({"predictions": scores, "references": gold})
        return evaluate.MetricInfo(description=__doc__, citation="", features=features)

    def _compute(self, predictions: list[list[float]], references: list[list[int]]) -> dict[str, float]:
        pairs = zip(predictions, references, strict=True)
        rows = [dense_scores(np.array(scores), np.array(gold, dtype=bool)) for scores, gold in pairs]
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
