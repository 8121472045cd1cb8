"""Held-out graphs and texts find each other: by the aligned model, and by a linear map for comparison."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import TrainingArguments

from data_processor.node_pairs import NodePairs
from data_processor.schema import write_jsonl
from data_processor.text_encoder import load_encoder
from modeling_aligner import GraphAligner, similarity

TEXT_WIDTH = 1024  # of the hashed words and trigrams that the linear map aims at: wide enough that few collide
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the ridge, times the number of rows
HELD_OUT = 0.2  # share of the training rows that chooses the strength
DEPTHS = (1, 5, 10)


def retrieve(
    model: GraphAligner,
    test: Any,
    train: NodePairs,
    collate: Callable[..., dict[str, Tensor]],
    training: TrainingArguments,
) -> dict[str, float]:
    """Ranks all test texts for each test graph; equal texts are one candidate. Writes predictions.jsonl.

    Args:
        model: trained.
        test: the encoded test pairs. train: what the linear map is fitted on.
        collate: pairs -> a batch.
        training: batch size, and the output folder.

    Returns:
        `retrieval_r1`, `_r5`, `_r10`, `_mrr`; the same of texts that look for their graphs as `text_to_graph_r1` and
        so on; of two ridge regressions `retrieval_r1_linear`, ... (node, neighbours and edges) and
        `retrieval_r1_linear_node`, ... (the node alone); `candidates`; `texts_in_training`, the share of
        test texts that stand word for word in training; and the three losses on the test pairs.
    """
    graphs, texts, losses = embed(model.eval(), test, collate, training.per_device_eval_batch_size)
    pairs, index = test.pairs, torch.tensor(test.pairs.text_index)
    first = first_rows(index)
    scores = similarity(graphs, texts[first])  # (n, candidates)
    ranks = ranks_of(scores, index)
    if training.process_index == 0:
        write_jsonl(Path(training.output_dir) / "predictions.jsonl", rows_of(pairs, scores, ranks, first))
    metrics = recalls(ranks, "retrieval", "")
    metrics |= recalls(graph_ranks(scores, index), "text_to_graph", "")
    aims = load_encoder(f"hashing:{TEXT_WIDTH}").encode
    known, asked = train.pooled(), pairs.pooled()
    targets = aims([one.text for one in train.pairs])
    candidates = torch.from_numpy(aims([pairs.pairs[row].text for row in first.tolist()]))
    own = slice(pairs.feature_dim)
    for suffix, columns in (("_linear", slice(None)), ("_linear_node", own)):
        found = torch.from_numpy(ridge(known[:, columns], targets, asked[:, columns]))
        metrics |= recalls(ranks_of(cosine(found, candidates), index), "retrieval", suffix)
    told = {one.text for one in train.pairs}
    metrics["texts_in_training"] = float(np.mean([one.text in told for one in pairs.pairs]))
    return metrics | {"candidates": float(len(first))} | losses


@torch.no_grad()
def embed(
    model: GraphAligner, pairs: Any, collate: Callable[..., dict[str, Tensor]], batch_size: int
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Graphs (n, K, P) and texts (n, P) in the common space, and the mean losses."""
    graphs, texts, sums = [], [], dict.fromkeys(("loss", "contrastive", "matching", "captioning"), 0.0)
    for start in tqdm(range(0, len(pairs), batch_size), desc="embed pairs", unit="batch", delay=2):
        items = [pairs[i] for i in range(start, min(start + batch_size, len(pairs)))]
        batch = {name: one.to(model.device) for name, one in collate(items).items()}
        out = model(**batch)
        for name in sums:
            sums[name] += float(out[name]) * len(items) if name in out else 0.0
        ids, seen = batch.pop("input_ids"), batch.pop("attention_mask")
        del batch["text_index"]
        batch.setdefault("graph_edge_features", None)
        graphs.append(model.embed_graphs(*model.graph_states(**batch)).float().cpu())
        texts.append(model.embed_texts(ids, seen).float().cpu())
    return torch.cat(graphs), torch.cat(texts), {f"test_{name}": one / len(pairs) for name, one in sums.items()}


def first_rows(index: Tensor) -> Tensor:
    """The first row of each text. (n,) -> (candidates,); text i is candidate i"""
    rows = torch.full((int(index.max()) + 1,), len(index))
    return rows.scatter_reduce(0, index, torch.arange(len(index)), "amin")


def ranks_of(scores: Tensor, index: Tensor) -> Tensor:
    """Rank from 1 of each row's own column; equal scores count half above. (n, c), (n,) -> (n,)"""
    own = scores.gather(1, index[:, None])
    ties = (scores == own).sum(dim=1) - 1
    return 1 + (scores > own).sum(dim=1) + ties / 2


def graph_ranks(scores: Tensor, index: Tensor) -> Tensor:
    """For each text the rank of the best of its graphs; equal scores count half above. (n, c), (n,) -> (c,)"""
    own = torch.arange(scores.shape[1])[None] == index[:, None]  # (n, c)
    best = scores.masked_fill(~own, -torch.inf).amax(dim=0)  # (c,)
    return 1 + ((scores > best) & ~own).sum(dim=0) + ((scores == best) & ~own).sum(dim=0) / 2


def recalls(ranks: Tensor, name: str, suffix: str) -> dict[str, float]:
    """Shares of ranks up to 1, 5 and 10, and their mean reciprocal."""
    found = {f"{name}_r{depth}{suffix}": float((ranks <= depth).float().mean()) for depth in DEPTHS}
    return found | {f"{name}_mrr{suffix}": float((1 / ranks).mean())}


def cosine(found: Tensor, candidates: Tensor) -> Tensor:
    """(n, w), (c, w) -> (n, c)"""
    return torch.nn.functional.normalize(found, dim=-1) @ torch.nn.functional.normalize(candidates, dim=-1).T


def ridge(known: np.ndarray, targets: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Linear least squares with a penalty whose strength a held-out fifth of the rows chooses.

    Args:
        known: (n, f) of training rows. targets: (n, w) what they should map to. asked: (m, f).

    Returns:
        (m, w)
    """
    mean, spread = known.mean(axis=0), known.std(axis=0)
    spread = np.where(spread > 1e-6, spread, 1)  # a column that never varied says nothing, whatever it is later
    known, asked = ((one - mean) / spread for one in (known, asked))
    cut = max(1, int(len(known) * HELD_OUT))
    order = np.random.default_rng(0).permutation(len(known))
    fit, check = order[cut:], order[:cut]
    errors = [
        np.square(solve(known[fit], targets[fit], strength, known[check]) - targets[check]).sum()
        for strength in STRENGTHS
    ]
    return solve(known, targets, STRENGTHS[int(np.argmin(errors))], asked)


def solve(known: np.ndarray, targets: np.ndarray, strength: float, asked: np.ndarray) -> np.ndarray:
    """Ridge regression of one strength. (n, f), (n, w), (m, f) -> (m, w)"""
    middle = targets.mean(axis=0)
    gram = known.T @ known + strength * len(known) * np.eye(known.shape[1], dtype=known.dtype)
    return asked @ np.linalg.solve(gram, known.T @ (targets - middle)) + middle


def rows_of(pairs: NodePairs, scores: Tensor, ranks: Tensor, first: Tensor) -> list[dict[str, Any]]:
    """What was found for each graph: its node, the best text, its own text and that one's rank."""
    best = scores.argmax(dim=1).tolist()
    return [
        {"id": str(one.node), "question": "text of the node", "prediction": pairs.pairs[int(first[best[row]])].text,
         "answers": [one.text], "rank": float(ranks[row])}
        for row, one in enumerate(pairs.pairs)
    ]  # fmt: skip
