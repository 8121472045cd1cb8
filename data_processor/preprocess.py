"""EncodedDataset: examples -> token ids and label masks, once and cached, or one by one.

encoded = EncodedDataset(GraphQADataset("DATA", "train"), processor, max_length=512, cache_dir="CACHE")
"""

from __future__ import annotations

import inspect
import json
import logging
import sys
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import load_file, save_file
from torch.utils.data import Dataset
from tqdm import tqdm

from data_processor import dataset, graph_text
from data_processor.dataset import SOFT_PROMPT, ConversationDataset, Example, GraphQADataset, digest
from data_processor.schema import Rejected, atomic_write, write_json

logger = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]
LeftOut = tuple[int, str, str]  # number from 1, reason, id


class Processor(Protocol):
    """What this file needs of GraphLLMProcessor."""

    tokenizer: Any
    chat_template: str

    def encode(self, messages: list[dict[str, Any]], max_length: int | None = None) -> dict[str, Any]: ...

    def to_dict(self) -> dict[str, Any]: ...


class EncodedDataset(Dataset):
    """Examples as token ids and label masks, ready for the collator.

    Eagerly (the default) every example is tokenised once, before training, and kept in a file of `cache_dir` whose
    name is a digest of all that changes the result; examples that cannot be used go to `rejected`, also when they are
    known from the cache (a .json beside the arrays). Lazily each is tokenised when it is asked for, in the data
    loader's workers, and one that cannot be used is an error.

    Args:
        dataset: a GraphQADataset or ConversationDataset.
        processor: the GraphLLMProcessor.
        max_length: longest input in tokens; the prompt side is shortened, never the answer.
        lazy: tokenise on demand.
        cache_dir: where eager results are kept; None keeps them in memory only.
        rejected: the JSON lines file for examples left out.

    Raises:
        ValueError: no example is left.
    """

    def __init__(
        self,
        dataset: GraphQADataset | ConversationDataset,
        processor: Processor,
        max_length: int | None = None,
        lazy: bool = False,
        cache_dir: str | Path | None = None,
        rejected: str | Path = "rejected.jsonl",
    ) -> None:
        self.dataset, self.processor, self.max_length, self.lazy = dataset, processor, max_length, lazy
        if lazy:
            self.index = np.arange(len(dataset))
            return
        cache = None if cache_dir is None else Path(cache_dir) / f"{self.fingerprint}.safetensors"
        if cache is not None and cache.is_file():
            self.arrays, left_out, truncated = read_cache(cache)
        else:
            self.arrays, left_out, truncated = self._encode_all()
            if cache is not None:
                write_cache(cache, self.arrays, left_out, truncated)
        self.index = self.arrays["index"]
        self._tell(left_out, truncated, Path(rejected))

    @property
    def fingerprint(self) -> str:
        """A digest of all that changes the result: data, tokenizer, template, settings, and the code that makes it."""
        named = (type(one).__module__ for one in (self.dataset, self.processor))
        modules = (sys.modules[__name__], dataset, graph_text, *(sys.modules[name] for name in named))
        code = [inspect.getsource(module) for module in modules]
        tokenizer = self.processor.tokenizer
        vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        backend = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else vocabulary
        settings = {name: value for name, value in self.processor.to_dict().items() if isinstance(value, str | int)}
        return digest(code, backend, settings, self.processor.chat_template, self.max_length, self.dataset.fingerprint)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Example:
        source = int(self.index[index])
        if self.lazy:
            return encode_example(self.dataset[source], self.processor, self.max_length)
        return {
            "input_ids": self._row("input_ids", index),
            "labels": self._row("labels", index),
            "graphs": self.dataset.graphs(source),
        }

    def _row(self, name: str, index: int) -> list[int]:
        start, stop = self.arrays[f"{name}_offsets"][index : index + 2]
        return self.arrays[name][start:stop].tolist()

    def _encode_all(self) -> tuple[Arrays, list[LeftOut], int]:
        """The arrays, the examples that cannot be used, and how many prompts were shortened."""
        kept, ids, labels, empty, left_out, truncated = [], [], [], [], [], 0
        for i in tqdm(range(len(self.dataset)), desc="tokenising", unit="example", mininterval=1.0):
            example = self.dataset[i]
            try:
                encoded = encode_example(example, self.processor, self.max_length)
            except ValueError as error:
                left_out.append((i + 1, str(error), example["id"]))
                continue
            kept.append(i)
            ids.append(encoded["input_ids"])
            labels.append(encoded["labels"])
            graphs = [graph for graph in encoded["graphs"] if graph is not SOFT_PROMPT]
            empty.append(sum(len(graph["node_features"]) == 0 for graph in graphs))
            truncated += encoded["truncated"] > 0
        arrays = {
            "index": np.array(kept, dtype=np.int64),
            "empty_graphs": np.array(empty, dtype=np.int64),
            **flattened("input_ids", ids),
            **flattened("labels", labels),  # of an encoder-decoder they have a length of their own
        }
        return arrays, left_out, truncated

    def _tell(self, left_out: list[LeftOut], truncated: int, path: Path) -> None:
        """Writes down and logs what was left out or shortened; ValueError if no example is left."""
        with Rejected(path) as rejected:
            for line, reason, name in left_out:
                rejected.add(self.dataset.path, line, reason, {"id": name})
        if not len(self.index):
            raise ValueError(f"None of {len(self.dataset)} examples can be used; the reasons are in {path}.")
        if left_out:
            logger.warning("%d of %d examples left out, reasons in %s", len(left_out), len(self.dataset), path)
        if truncated:
            logger.warning("%d of %d prompts shortened to %s tokens", truncated, len(self.index), self.max_length)
        if empty := int(self.arrays["empty_graphs"].sum()):
            logger.warning("%d graphs have no node: the model reads its learned null vector instead", empty)


def write_cache(path: Path, arrays: Arrays, left_out: list[LeftOut], truncated: int) -> None:
    """Writes what was left out and shortened as .json beside `path`, then the arrays, which make the cache valid."""
    write_json(path.with_suffix(".json"), {"left_out": left_out, "truncated": truncated})
    with atomic_write(path) as temporary:
        save_file(arrays, temporary)


def read_cache(path: Path) -> tuple[Arrays, list[LeftOut], int]:
    """What `write_cache` wrote."""
    told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return load_file(path), told["left_out"], told["truncated"]


def flattened(name: str, rows: list[list[int]]) -> dict[str, np.ndarray]:
    """Rows of different lengths one after another, and where each begins."""
    return {
        name: np.concatenate([np.array(row, dtype=np.int32) for row in [[], *rows]]),
        f"{name}_offsets": np.cumsum([0, *map(len, rows)], dtype=np.int64),
    }


def encode_example(example: Example, processor: Processor, max_length: int | None) -> Example:
    """Token ids, labels and graphs of one example.

    Raises:
        ValueError: nothing in it is to be learnt, or its answer does not fit; the message names the example.
    """
    try:
        encoded = processor.encode(example["messages"], max_length)
    except ValueError as error:
        raise ValueError(f"example {example['id']!r}: {error}") from error
    if all(label < 0 for label in encoded.get("labels", [])):
        raise ValueError(
            f"example {example['id']!r}: no word is the assistant's, so there is nothing to learn from it."
        )
    return encoded
