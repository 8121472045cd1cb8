"""The stages `gfm_pretrain` and `gfm_finetune`: a graph retriever that completes graphs, then finds for questions."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from accelerate.utils import pad_across_processes
from torch import Tensor
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data_processor.completion import HeldOutQueries, TrainingQueries
from data_processor.completion_graph import open_completion
from data_processor.gfm_dataset import QuestionBatches, QuestionSet
from data_processor.schema import Rejected
from evaluation.ranking import TIE_POLICY, question_metrics, rank_metrics
from training.arguments import Arguments
from training.data import folder_of_rejected
from training.dry_run import stage_report
from training.gfm_model import attachable, build_model, check_embedded, masks_seeds, reads_tokens
from training.gfm_output import save_retriever, write_companions
from training.gfm_predict import answer
from training.parts import Opened, Parts

logger = logging.getLogger(__name__)

Batches = TrainingQueries | HeldOutQueries | QuestionBatches


# ---------------------------------------------------------------------------------------------------------------- data
def open_completions(arguments: Arguments) -> Opened:
    """Queries for missing triples: those of --data_path's graphs, and of what is held out from them."""
    gfm, training = arguments.gfm, arguments.training
    graphs = [open_completion(path, training.data_seed or 0) for path in arguments.data.data_path]
    check_embedded(arguments, [one.graph for one in graphs])
    size, seed = gfm.questions_per_batch, training.seed
    splits: dict[str, Any] = {}
    if training.do_train or arguments.run.dry_run:
        splits["train"] = TrainingQueries(graphs, size, gfm.num_negatives, seed, gfm.max_batches_per_epoch)
        listed = [(one.graph.path / "edges.npy", row, "every node is a right answer of it, from both ends", "")
                  for one, row in splits["train"].unusable]  # fmt: skip
        reject(arguments, listed, "training triples")
    if training.do_eval:
        splits["validation"] = HeldOutQueries(graphs, "validation", size, gfm.validation_sample)
    if training.do_predict:
        splits["test"] = HeldOutQueries(graphs, "test", size)
    return Opened(splits)


def open_questions(arguments: Arguments) -> Opened:
    """Questions of --data_path's splits, with what is right in their graphs."""
    gfm, training, data = arguments.gfm, arguments.training, arguments.data
    with training.main_process_first(desc="embedding questions"):
        how = (gfm.target_nodes, masks_seeds(arguments), gfm.on_subgraphs, reads_tokens(arguments))
        sets = {
            name: [QuestionSet(path, split, *how) for path in data.data_path]
            for name, split, wanted in (
                ("train", data.train_split, training.do_train or arguments.run.dry_run),
                ("validation", data.validation_split, training.do_eval),
                ("test", data.test_split, training.do_predict),
            )
            if wanted
        }
        for one in (one for several in sets.values() for one in several):
            one.embed()
    size, settings = gfm.questions_per_batch, {
        "train": {"shuffle": True, "seed": training.seed, "max_batches": gfm.max_batches_per_epoch},
        "validation": {"sample": gfm.validation_sample},
        "test": {},
    }  # fmt: skip
    splits = {name: QuestionBatches(several, size, **settings[name]) for name, several in sets.items()}
    reject(arguments, [(one.path, row.line, row.unusable, row.pair.question) for split in splits.values()
                       for one, row in split.unusable], "questions")  # fmt: skip
    return Opened(splits)


def reject(arguments: Arguments, rows: Sequence[tuple[Any, int, str, str]], what: str) -> None:
    """Lists (file, line, reason, row) in rejected.jsonl and says how many there are."""
    if arguments.training.process_index > 0:
        return
    with Rejected(folder_of_rejected(arguments) / "rejected.jsonl") as rejected:
        for row in rows:
            rejected.add(*row)
    if rejected.count:
        logger.warning("%d %s cannot be used, the reasons are in %s", rejected.count, what, rejected.path)


# --------------------------------------------------------------------------------------------------------------- model
def build_pretraining(arguments: Arguments, opened: Opened) -> Parts:
    """The model with the training triples' graphs, and ranks as the evaluation's figures."""
    graphs = next(iter(opened.splits.values())).graphs
    model = build_model(arguments, [one.graph for one in graphs])
    model.attach_graphs([attachable(one.graph, one.edges, one.name) for one in graphs])
    return parts_of(model, opened.splits, completion_figures)


def build_finetuning(arguments: Arguments, opened: Opened) -> Parts:
    """The model with the whole graphs, and questions answered as the evaluation's figures."""
    sets = next(iter(opened.splits.values())).sets
    model = build_model(arguments, [one.graph for one in sets])
    model.attach_graphs([attachable(one.graph, one.graph.edges, str(one.folder)) for one in sets])
    figures = partial(question_figures, opened.splits["validation"]) if "validation" in opened.splits else None
    return parts_of(model, opened.splits, figures)


def parts_of(model: Any, splits: dict[str, Batches], figures: Any) -> Parts:
    """What both stages hand to the Trainer."""
    return Parts(
        model=model,
        splits={name: split for name, split in splits.items() if name != "test"},
        test=splits.get("test"),
        collator=the_only,
        write_companions=partial(write_companions, model),
        compute_metrics=figures,
        prepare_metrics=as_row,
        callbacks=[NewBatches(splits["train"])] if "train" in splits else [],
    )


def the_only(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The batch that an item is."""
    (item,) = items
    return item


class NewBatches(TrainerCallback):
    """Regroups the training batches at every epoch; a resumed run finds those that it left."""

    def __init__(self, batches: TrainingQueries | QuestionBatches) -> None:
        self.batches = batches

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.batches.set_epoch(int(state.epoch + 1e-6))


# ------------------------------------------------------------------------------------------------------------- metrics
def as_row(ranks: Tensor, labels: Any) -> Tensor:
    """The ranks (T, 2) of a batch as one row (1, T', 2), as long on every process: the Trainer gathers rows."""
    return pad_across_processes(ranks[None], dim=1, pad_index=-100)


def flat_ranks(rows: np.ndarray) -> np.ndarray:
    """(T, 2) from rows (n, T', 2) filled up with -100."""
    ranks = rows.reshape(-1, 2)
    return ranks[ranks[:, 0] > 0]


def completion_figures(prediction: EvalPrediction) -> dict[str, float]:
    """`mrr`, `mr`, `hits@k` and so on of an evaluation's ranks."""
    return rank_metrics(flat_ranks(prediction.predictions))


def question_figures(batches: QuestionBatches, prediction: EvalPrediction) -> dict[str, float]:
    """`hits@1` and so on of an evaluation's ranks; questions that cannot be used count as missed."""
    return question_metrics(flat_ranks(prediction.predictions), *batches.targets())


def complete(arguments: Arguments, parts: Parts, trainer: Trainer) -> dict[str, float]:
    """Ranks of the held-out test triples; of several graphs also each graph's own, as NAME/metric.

    `tie_policy` is the share of equally scored candidates that the plain names count as ranked above: .5.
    """
    rows = trainer.predict(parts.test).predictions
    metrics = rank_metrics(flat_ranks(rows)) | {"tie_policy": TIE_POLICY}
    graphs = parts.test.graphs
    for place, one in enumerate(graphs if len(graphs) > 1 else ()):
        mine = flat_ranks(rows[parts.test.places == place])
        if len(mine):
            metrics |= {f"{one.name}/{name}": value for name, value in rank_metrics(mine).items()}
    return metrics


def retrieve(arguments: Arguments, parts: Parts, trainer: Trainer) -> dict[str, float]:
    """Ranks nodes and documents for the test questions into predictions.jsonl, and scores the ranking."""
    return answer(trainer.model, parts.test, arguments.training.output_dir)


# ------------------------------------------------------------------------------------------------------ the rest of it
def dry_run(arguments: Arguments, parts: Parts) -> tuple[str, dict[str, float]]:
    """The parameter table, what a batch holds, and the steps of the run."""
    train = parts.splits["train"]
    first = "\n".join(f"{name:<24}{tuple(one.shape)}" for name, one in train[0].items())
    return stage_report(arguments, parts.model, len(train), f"the first batch\n{first}")


def check(arguments: Arguments, parts: Parts) -> None:
    """Every parameter is trained: nothing can be marked wrongly."""
    assert all(one.requires_grad for one in parts.model.parameters())


def save(arguments: Arguments, parts: Parts, trainer: Trainer) -> None:
    """A loadable folder at the top of the output; every process takes part, the first one writes."""
    weights = partial(trainer.save_model, _internal_call=True)
    save_retriever(trainer.model, arguments.training, weights, trainer.is_world_process_zero())
