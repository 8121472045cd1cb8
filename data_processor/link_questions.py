"""Questions whether two nodes are linked, half of them about links of the graph, which the shown part leaves out.

    python -m data_processor ask_links --data DATA
    python -m evaluation classify --model M --data DATA --type link --output links/predictions.jsonl
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np

from data_processor.files import MANIFEST
from data_processor.graph_store import KnowledgeGraph, SubgraphStore, write_subgraphs
from data_processor.neighbours import neighbourhood, pair_keys
from data_processor.node_batches import linked_keys, split_links, unlinked
from data_processor.schema import QAPair, Subgraph, read_qa, to_json, write_jsonl

logger = logging.getLogger(__name__)

TYPE = "link"
QUESTION = "Are {} and {} linked?"
COUNT = 1000  # of training
METHOD = {"graph": "graph", "method": "neighbours", "parameters": {}}


def add_ask_links(commands: argparse._SubParsersAction) -> None:
    """The command `ask_links`."""
    command = commands.add_parser("ask_links", help="questions whether two nodes are linked -> qa/, subgraphs/")
    command.add_argument("--data", type=Path, required=True, help="dataset folder with graph/")
    command.add_argument("--count", type=int, default=COUNT, help="of training; a fifth for the others "
                         "(default: %(default)s)")  # fmt: skip
    command.add_argument("--neighbours", type=int, default=10, help="of each node (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="the --data_seed of --stage graph; its states hide "
                         "held-out links only by --graph_objective link (default: %(default)s)")  # fmt: skip
    command.set_defaults(run=run_ask_links)


def run_ask_links(arguments: argparse.Namespace) -> str:
    """Adds the questions; returns their counts."""
    counts = ask_links(arguments.data, arguments.count, arguments.neighbours, arguments.seed)
    told = ", ".join(f"{count} {split}" for split, count in counts.items())
    return f"{told} questions about links in {arguments.data}"


def ask_links(data: Path, count: int = COUNT, most: int = 10, seed: int = 0) -> dict[str, int]:
    """Adds questions of the type `link` to each split, those of an earlier call replaced; returns how many.

    Validation and test links are held out as in `--stage graph --graph_objective link` with the same --data_seed; the
    states of `--graph_objective label` have seen them. No subgraph shows a link that is held out, nor the one that is
    asked for.

    Args:
        data: a dataset folder. count: of training, half of them links; a fifth of it in the other splits.
        most: neighbours of both nodes in their subgraph, which begins with the two. seed: of what is drawn.
    """
    graph, rng = KnowledgeGraph.open(data / "graph"), np.random.default_rng(seed)
    if (graph.text_encoder or "").startswith("given:"):
        logger.warning(
            "%s has the vectors %s. Where they were made from its links, only --stage graph --graph_objective link "
            "with --data_seed %d hides those of validation and test; any others know the answers.",
            graph.path, graph.text_encoder, seed,
        )  # fmt: skip
    links, linked = split_links(graph, seed), linked_keys(graph)
    held_out = pair_keys(*np.concatenate([links["validation"], links["test"]]).T, graph.num_nodes)
    counts = {}
    for split, wanted in (("train", count), ("validation", count // 5), ("test", count // 5)):
        positive = rng.permutation(links[split])[: max(1, wanted // 2)]
        negative = unlinked(linked, graph.num_nodes, len(positive), rng)
        asked = [(pair, "yes") for pair in positive.tolist()] + [(pair, "no") for pair in negative.tolist()]
        order = rng.permutation(len(asked))
        chosen = [asked[place] for place in order]
        pairs = [question(graph, split, number, *one) for number, one in enumerate(chosen)]
        shown = [around(graph, pair, most, held_out, rng) for pair, _ in chosen]
        add_questions(data, split, pairs, shown)
        counts[split] = len(pairs)
    return counts


def question(graph: KnowledgeGraph, split: str, number: int, pair: list[int], answer: str) -> QAPair:
    """One question about two nodes."""
    text = QUESTION.format(*graph.node_name(pair))
    return QAPair(f"{TYPE}-{split}-{number}", text, (answer,), seed_nodes=tuple(pair), type=TYPE)


def around(
    graph: KnowledgeGraph, pair: list[int], most: int, held_out: np.ndarray, rng: np.random.Generator
) -> Subgraph:
    """Two nodes, which come first, with their neighbours, as far as they may be seen."""
    hidden = np.union1d(held_out, pair_keys(np.array(pair[:1]), np.array(pair[1:]), graph.num_nodes))
    found = neighbourhood(graph, np.array(pair), 1, most, rng, hidden)
    return graph.subgraph(found.nodes, found.rows)


def add_questions(data: Path, split: str, added: list[QAPair], shown: list[Subgraph]) -> None:
    """Writes qa/ and subgraphs/ of a split: the questions of other types first, with the subgraphs they have."""
    path, folder = data / "qa" / f"{split}.jsonl", data / "subgraphs" / split
    kept = [pair for pair in read_qa(path) if pair.type != TYPE] if path.is_file() else []
    subgraphs: list[Subgraph] = []
    manifest = METHOD
    if kept and not (folder / MANIFEST).is_file():
        raise ValueError(f"the {len(kept)} questions of {path} have no subgraphs yet; run retrieve for them first")
    if kept:
        store = SubgraphStore.open(folder)
        subgraphs = [store.get(pair.id) for pair in kept]
        manifest = {name: store.manifest[name] for name in METHOD}
    pairs, subgraphs = [*kept, *added], [*subgraphs, *shown]
    report = {"mean_nodes": float(np.mean([len(one.nodes) for one in subgraphs]))}
    report["mean_edges"] = float(np.mean([len(one.edges) for one in subgraphs]))
    write_subgraphs(folder, [pair.id for pair in pairs], subgraphs, report, manifest)
    write_jsonl(path, map(to_json, pairs))
