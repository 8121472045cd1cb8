"""What each `--stage` trains, in one plain table: finetune.py reads it, and the flags name it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One way to train.

    Attributes:
        model: the class in modeling_graphllm.py.
        data: the layout of `--data_path` that it reads.
        metrics: what --do_predict scores the answers with, in evaluation/metrics.py.
    """

    model: str
    data: str
    metrics: str


STAGES = {"qa": Stage(model="GraphLLMForConditionalGeneration", data="questions or conversations", metrics="score")}
