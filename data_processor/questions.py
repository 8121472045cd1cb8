"""Questions without a graph: from a table, or of a dataset folder whose graph is left out; documents beside them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from data_processor.dataset import SOFT_PROMPT, Example, assistant_message, digest, read_split, user_message
from data_processor.passages import DocumentSearch, Passages
from data_processor.schema import QAPair, Rejected, to_json
from data_processor.tables import Table, is_table, open_table

logger = logging.getLogger(__name__)


class QuestionDataset(Dataset):
    """Questions and answers; an item is `{"id", "question", "answers", "type", "messages"}`.

    Args:
        pairs: the questions.
        path: where they were read.
        facts: for each question the text that is shown with it, or an empty one.
        soft_prompt: put learned tokens in front of the text.
    """

    def __init__(
        self, pairs: Sequence[QAPair], path: str | Path, facts: Sequence[str], soft_prompt: bool = False
    ) -> None:
        self.pairs, self.path, self.facts, self.soft_prompt = list(pairs), Path(path), list(facts), soft_prompt

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        pair = self.pairs[index]
        prompt = user_message(pair.question, self.facts[index], self.graphs(index))
        return {
            "id": pair.id,
            "question": pair.question,
            "answers": list(pair.answers),
            "type": pair.type,
            "messages": [prompt, assistant_message(pair.answers)],
        }

    def graphs(self, index: int) -> list[dict[str, torch.Tensor]]:
        """The learned tokens, if there are any."""
        return [SOFT_PROMPT] if self.soft_prompt else []

    @property
    def fingerprint(self) -> str:
        """A digest of everything that an item depends on."""
        return digest([to_json(pair) for pair in self.pairs], self.facts, self.soft_prompt)


def without_graph(path: str, context: str | None, columns: Sequence[str] | None = None) -> bool:
    """Whether a data set is read by `open_questions`: a table, or a folder whose graph is absent or not asked for."""
    if is_table(path, columns):
        return True
    graph = (Path(path) / "graph").exists()
    return Path(path).is_dir() and (context in ("none", "documents") or context is None and not graph)


def open_questions(
    path: str,
    wanted: Mapping[str, str | None],
    flags: Mapping[str, Any],
    rejected: Rejected,
    tokenizer: Any = None,
    cache: Path | None = None,
) -> dict[str, QuestionDataset]:
    """The splits of a data set that is read without a graph.

    Args:
        path: a dataset folder, a table or a name on the Hub.
        wanted: key -> name of the split, None for one that is not read.
        flags: those of `Table` and `DocumentSearch` by name, and `context`, `prompt_tuning`, `max_text_tokens`.
        rejected: takes unusable rows of a table.
        tokenizer: counts `max_text_tokens`. cache: folder for embeddings of documents.

    Raises:
        ValueError: see `open_table`, `read_split` and `Passages`.
    """
    context = flags.get("context") or "none"
    if context not in ("none", "documents"):
        raise ValueError(f"--context {context} shows a graph, and {path} has none. Use none or documents.")
    if Path(path).is_dir():
        splits = {key: read_split(Path(path), name)[1] for key, name in wanted.items() if name}
    else:
        splits = open_table(path, Table.of(flags), wanted, rejected)
    passages = Passages(DocumentSearch.of(flags), path, cache) if context == "documents" else None
    opened = {}
    for key, pairs in splits.items():
        found = passages.find([pair.question for pair in pairs]) if passages else [[] for _ in pairs]
        facts = [within(texts, flags.get("max_text_tokens"), tokenizer) for texts in found]
        if passages and (bare := facts.count("")):
            told = "%d of %d questions of %s are shown no document: none found fits into --max_text_tokens."
            logger.warning(told, bare, len(facts), key)
        opened[key] = QuestionDataset(pairs, path, facts, bool(flags.get("prompt_tuning")))
    return opened


def within(texts: Sequence[str], budget: int | None, tokenizer: Any) -> str:
    """The texts, best first and a line each, that fit into a budget of tokens together; others are left out."""
    joined = ""
    for text in texts:
        longer = f"{joined}\n{' '.join(text.split())}".lstrip("\n")
        if budget is not None and len(tokenizer(longer, add_special_tokens=False)["input_ids"]) > budget:
            continue
        joined = longer
    return joined
