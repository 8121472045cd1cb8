"""Questions and conversations -> training examples: the first place where examples become tensors.

dataset = GraphQADataset("DATA", "train")
dataset[0]["messages"]                                   # what a user of the processor would write by hand
encoded = EncodedDataset(dataset, processor, max_length=512, cache_dir="CACHE")
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from data_processor.graph_store import KnowledgeGraph, SubgraphStore
from data_processor.schema import QAPair, Subgraph, read_qa

ANSWER_SEPARATOR = " | "
CENTRED = ("ho", "nd", "qformer")  # read-outs that take the first node for the one that is asked about
# tokens that are learnt and the same in every prompt: the null vector of a reader that sees no graph
SOFT_PROMPT = {"node_features": torch.zeros(0, 1), "edge_index": torch.zeros(2, 0, dtype=torch.long)}
Example = dict[str, Any]
Message = dict[str, Any]


def user_message(question: str, facts: str = "", graphs: Sequence[dict[str, torch.Tensor]] = ()) -> Message:
    """The user's turn: graphs, facts as text, the question."""
    content: list[dict[str, Any]] = [{"type": "graph", "graph": graph} for graph in graphs]
    # apart from the question: if both are too long, the facts lose their last rows and the question stays
    content += [{"type": "text", "text": f"{facts}\n"}] if facts else []
    return {"role": "user", "content": [*content, {"type": "text", "text": question}]}


def assistant_message(answers: Sequence[str]) -> Message:
    """The assistant's turn: all answers."""
    return {"role": "assistant", "content": [{"type": "text", "text": ANSWER_SEPARATOR.join(answers)}]}


class PromptWriter:
    """What the model is shown of a question: the same for a split and for a live question.

    Args:
        graph: the graph.
        use_graph: put the graph into the message; needs an embedded graph.
        use_text: put the facts into the message, except for questions with `"text": false`.
        text_style: `triples` or `tables`, see `KnowledgeGraph.to_text`.
        max_text_tokens: whole rows of the text, worst score first, are left out until it fits.
        tokenizer: counts those tokens.
        soft_prompt: put learned tokens where a graph would stand.
        readout: of the model; for one of CENTRED a seed node becomes the first node of the tensors.

    Raises:
        ValueError: the graph has no features.
    """

    def __init__(
        self,
        graph: KnowledgeGraph,
        use_graph: bool = True,
        use_text: bool = True,
        text_style: str = "triples",
        max_text_tokens: int | None = None,
        tokenizer: Any = None,
        soft_prompt: bool = False,
        readout: str = "mean",
    ) -> None:
        if use_graph and graph.node_features is None:
            raise ValueError(
                f"The graph in {graph.path} has no features. Run: python -m data_processor embed --graph "
                f"{graph.path} --encoder hashing"
            )
        self.graph, self.use_graph, self.use_text = graph, use_graph, use_text
        self.text_style, self.max_text_tokens, self.tokenizer = text_style, max_text_tokens, tokenizer
        self.soft_prompt, self.centred = soft_prompt, use_graph and readout in CENTRED

    def prompt(
        self, question: str, subgraph: Subgraph, text: bool = True, seeds: Sequence[int] = ()
    ) -> dict[str, Any]:
        """The user's message: the graph, then the facts as text (not with `text=False`), then the question.

        `seeds`: nodes that the question is about.
        """
        facts = self._facts(subgraph) if self.use_text and text else ""
        return user_message(question, facts, self.graphs(subgraph, seeds))

    def graphs(self, subgraph: Subgraph | None, seeds: Sequence[int] = ()) -> list[dict[str, torch.Tensor]]:
        """What stands in front of the text: the graph, or the learned tokens, or nothing."""
        if self.centred:
            subgraph = seed_first(subgraph, seeds)
        return [self.tensors(subgraph)] if self.use_graph else [SOFT_PROMPT] if self.soft_prompt else []

    def _facts(self, subgraph: Subgraph) -> str:
        return self.graph.to_text(subgraph, self.max_text_tokens, self.tokenizer, self.text_style).rstrip("\n")

    def tensors(self, subgraph: Subgraph) -> dict[str, torch.Tensor]:
        """`node_features` (n, F) and `edge_features` (e, F') float32, `edge_index` (2, e) int64 with local ids."""
        edge_index, relations = self.graph.local(subgraph)
        return {
            "node_features": torch.from_numpy(self.graph.node_features[subgraph.nodes].astype(np.float32)),
            "edge_index": torch.from_numpy(edge_index),
            "edge_features": torch.from_numpy(self.graph.relation_features[relations].astype(np.float32)),
        }


def seed_first(subgraph: Subgraph, seeds: Sequence[int]) -> Subgraph:
    """The subgraph with the first seed among its nodes in front of them, as it is where there is none."""
    places = np.flatnonzero(np.isin(subgraph.nodes, seeds))
    if not len(places) or places[0] == 0:
        return subgraph
    order = np.r_[places[0], np.delete(np.arange(len(subgraph.nodes)), places[0])]
    return replace(subgraph, nodes=subgraph.nodes[order], node_scores=subgraph.node_scores[order])


def read_split(folder: Path, split: str) -> tuple[Path, list[QAPair]]:
    """The file of a split's questions, and the questions.

    Raises:
        ValueError: there is no such file, or no question in it.
    """
    path = folder / "qa" / f"{split}.jsonl"
    if not path.is_file():
        splits = sorted(file.stem for file in path.parent.glob("*.jsonl"))
        raise ValueError(f"{folder} has no questions for {split!r}: {path} is not there. Splits: {splits}.")
    pairs = read_qa(path)
    if not pairs:
        raise ValueError(f"{path} holds no question.")
    return path, pairs


class GraphQADataset(Dataset):
    """The questions of one split with their retrieved subgraphs.

    An item is `{"id", "question", "answers", "type", "messages"}`; the user's message holds the graph, then the facts
    as text and, after an empty line, the question; the assistant's holds the answers.

    Args:
        data_path: a folder with graph/, qa/{split}.jsonl and subgraphs/{split}/.
        split: train, validation or test.
        use_graph, use_text, text_style, max_text_tokens, tokenizer, soft_prompt, readout: see `PromptWriter`.

    Raises:
        ValueError: a part of the folder is missing, or the graph has no features.
    """

    def __init__(
        self,
        data_path: str | Path,
        split: str,
        use_graph: bool = True,
        use_text: bool = True,
        text_style: str = "triples",
        max_text_tokens: int | None = None,
        tokenizer: Any = None,
        soft_prompt: bool = False,
        readout: str = "mean",
    ) -> None:
        folder = Path(data_path)
        self.path, self.pairs = read_split(folder, split)
        self.graph = KnowledgeGraph.open(folder / "graph")
        self.subgraphs = SubgraphStore.open(folder / "subgraphs" / split)
        shown = (use_graph, use_text, text_style, max_text_tokens, tokenizer, soft_prompt, readout)
        self.writer = PromptWriter(self.graph, *shown)

    @property
    def feature_dim(self) -> int:
        """F, width of the node features."""
        return self.graph.node_features.shape[1]

    @property
    def edge_feature_dim(self) -> int:
        """F', width of the edge features: the embedded relation texts."""
        return self.graph.relation_features.shape[1]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        pair = self.pairs[index]
        subgraph = self.subgraph(pair)
        return {
            "id": pair.id,
            "question": pair.question,
            "answers": list(pair.answers),
            "type": pair.type,
            "messages": self._messages(pair, subgraph),
        }

    def subgraph(self, pair: QAPair) -> Subgraph:
        """The retrieved subgraph of a question."""
        subgraph = self.subgraphs.get(pair.id)
        if (
            subgraph.nodes.max(initial=-1) >= self.graph.num_nodes
            or subgraph.edges.max(initial=-1) >= self.graph.num_edges
        ):
            raise ValueError(
                f"The subgraph of question {pair.id!r} names a node or edge beyond the graph's {self.graph.num_nodes} "
                f"nodes and {self.graph.num_edges} edges: it was retrieved from another graph. Run retrieve again."
            )
        return subgraph

    def _messages(self, pair: QAPair, subgraph: Subgraph) -> list[dict[str, Any]]:
        asked = self.writer.prompt(pair.question, subgraph, pair.text, pair.seed_nodes)
        return [asked, assistant_message(pair.answers)]

    def graphs(self, index: int) -> list[dict[str, torch.Tensor]]:
        """The graphs of item `index` in the order of its messages."""
        pair = self.pairs[index]
        return self.writer.graphs(self.subgraph(pair) if self.writer.use_graph else None, pair.seed_nodes)

    def without_centre(self) -> int:
        """How many questions have no seed node in their subgraph, for a read-out that is centred on one; else 0."""
        if not self.writer.centred:
            return 0
        return sum(not np.isin(self.subgraphs.get(pair.id).nodes, pair.seed_nodes).any() for pair in self.pairs)

    @property
    def fingerprint(self) -> str:
        """A digest of everything that an item depends on."""
        writer = self.writer
        settings = [writer.use_graph, writer.use_text, writer.text_style, writer.max_text_tokens, writer.soft_prompt]
        settings += ["centred"] if writer.centred else []
        return digest(self.path.read_bytes(), self.graph.manifest, self.subgraphs.manifest, settings)


class ConversationDataset(Dataset):
    """Conversations without graphs.

    Args:
        rows: `{"id", "messages"}` each, as `data_processor.importers.conversations` reads them.
        path: where they were read.
    """

    def __init__(self, rows: Sequence[Example], path: str | Path) -> None:
        self.rows, self.path = rows, Path(path)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        return self.rows[index]

    def graphs(self, index: int) -> list[dict[str, torch.Tensor]]:
        """No item has a graph."""
        return []

    @property
    def fingerprint(self) -> str:
        """A digest of all rows."""
        return digest(*self.rows)


def digest(*parts: Any) -> str:
    """A short hash of bytes and JSON-serialisable values."""
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, default=str).encode()
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()
