"""A graph retriever's answers to questions: nodes and documents in order, predictions.jsonl, and what they score."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor
from tqdm.auto import tqdm

from data_processor.gfm_dataset import Asked, QuestionBatches, QuestionSet
from data_processor.schema import write_jsonl
from evaluation.ranking import filtered_recall, question_metrics, set_recall
from modeling_gfm import GFMForRetrieval, rank_documents

NODES, DOCUMENTS = 20, 20  # that predictions.jsonl lists of each question
RECALLS = (2, 5)
Row = dict[str, Any]


@torch.no_grad()
def answer(model: GFMForRetrieval, batches: QuestionBatches, folder: str | Path) -> dict[str, float]:
    """Writes predictions.jsonl and returns its scores.

    Args:
        model: with the graphs of `batches` attached.
        batches: in an order that stands; under torch.distributed each process answers its share of them.
        folder: where predictions.jsonl is written.

    Returns:
        `hits@1`, `mrr` and `filtered_recall@k` of nodes (`question_metrics`), `hits@1/TYPE`; where the questions have
        supporting documents `set_recall@k` and `document_filtered_recall@k`. Questions that cannot be used count as
        missed in all of them.
    """
    rank, world = rank_and_world()
    found: list[Any] = []
    for number in tqdm(range(rank, len(batches), world), desc="rank", unit="batch", disable=rank > 0, delay=2):
        found += answer_batch(model.eval(), batches, number)
    found = sorted(gather_object(found), key=lambda one: one[:2])
    rows = [row for *_, row in found] + [nothing_found(one, asked) for one, asked in batches.unusable]
    if rank == 0:
        write_jsonl(
            Path(folder) / "predictions.jsonl", ({k: v for k, v in row.items() if k[0] != "_"} for row in rows)
        )
    return scores(rows, batches)


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def answer_batch(model: GFMForRetrieval, batches: QuestionBatches, number: int) -> list[tuple[int, int, Row]]:
    """(number of the batch, place in it, row) of each question of a batch."""
    place, rows = batches.rows(number)
    one, batch = batches.sets[place], {name: part.to(model.device) for name, part in batches[number].items()}
    output = model(**batch)
    logits = output.logits
    if one.subgraphs is not None:
        logits = on_whole_graph(logits, batch["node_batch"], [one.asked[row] for row in rows], one)
    nodes = logits.topk(min(NODES, logits.shape[1]), 1).indices.tolist()
    documents = best_documents(model, logits, place)
    ranks, owners = output.ranks.cpu().numpy(), batch["target_batch"].cpu().numpy()
    found = []
    for i, row in enumerate(rows):
        asked = one.asked[row]
        names = one.graph.node_name(nodes[i])
        ids = [one.document_ids[document] for document in documents[i]] if documents else []
        answers = {"prediction": names[0], "ranked_answers": names, "retrieved": ids}
        hidden = {"_ranks": ranks[owners == i].tolist(), "_documents": documents[i] if documents else []}
        found.append((number, i, question_row(asked) | answers | hidden | {"_gold": asked.documents.tolist()}))
    return found


def on_whole_graph(logits: Tensor, node_batch: Tensor, asked: list[Asked], one: QuestionSet) -> Tensor:
    """(B, N) from scores of a union of subgraphs (n,): nodes outside stand below all others."""
    scores = torch.full((len(asked), one.graph.num_nodes), float(logits.min()) - 1, device=logits.device)
    nodes = np.concatenate([one.subgraphs.get(row.pair.id).nodes for row in asked])
    scores[node_batch, torch.from_numpy(nodes).to(logits.device)] = logits
    return scores


def best_documents(model: GFMForRetrieval, logits: Tensor, place: int) -> list[list[int]]:
    """The best documents of each question, none for a graph without documents."""
    graph = model.graphs[place]
    if not graph.num_documents:
        return []
    order, _ = rank_documents(logits, graph, model.config.ranker, model.config.top_entities)
    return order[:, :DOCUMENTS].tolist()


def question_row(asked: Asked) -> Row:
    """The part of a prediction that the question brings along."""
    row = {"id": asked.pair.id, "question": asked.pair.question, "answers": list(asked.pair.answers)}
    return row | ({"type": asked.pair.type} if asked.pair.type else {})


def nothing_found(one: QuestionSet, asked: Asked) -> Row:
    """The row of a question that cannot be asked: an empty answer, counted as missed."""
    empty: Row = {"prediction": "", "ranked_answers": [], "retrieved": [], "_ranks": [], "_documents": []}
    return question_row(asked) | empty | {"_gold": asked.documents.tolist() or list(asked.pair.supporting_documents)}


def scores(rows: list[Row], batches: QuestionBatches) -> dict[str, float]:
    """The figures of `answer`."""
    counts = batches.targets()[1]
    metrics = node_scores(rows, counts)
    kinds = defaultdict(list)
    for place, row in enumerate(rows):
        kinds[row.get("type")].append(place)
    for kind, places in kinds.items() if len(kinds) > 1 else ():
        metrics[f"hits@1/{kind}"] = node_scores([rows[place] for place in places], counts[places])["hits@1"]
    gold = [row for row in rows if row["_gold"]]
    if gold and any(one.graph.num_documents for one in batches.sets):
        for k in RECALLS:
            lists = [(row["_documents"], row["_gold"], k) for row in gold]
            metrics[f"set_recall@{k}"] = float(np.mean([set_recall(*one) for one in lists]))
            metrics[f"document_filtered_recall@{k}"] = float(np.mean([filtered_recall(*one) for one in lists]))
    return metrics


def node_scores(rows: list[Row], counts: np.ndarray) -> dict[str, float]:
    """`question_metrics` of rows."""
    owners = np.repeat(np.arange(len(rows)), [len(row["_ranks"]) for row in rows])
    ranks = np.array([pair for row in rows for pair in row["_ranks"]]).reshape(-1, 2)
    return question_metrics(ranks, owners, counts)
