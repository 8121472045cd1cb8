"""The stage `align`: a Q-Former that reads a node's graph and its text, trained to tell which belong together."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Trainer

from data_processor.node_pairs import NodePairs
from modeling_aligner import GraphAligner, GraphAlignerConfig
from processing_graphllm import join_graphs
from serving.card import write_card
from training.align_model import build_aligner
from training.align_predict import retrieve
from training.arguments import Arguments
from training.data import explained
from training.dry_run import stage_report
from training.parts import Opened, Parts


class EncodedPairs(Dataset):
    """Pairs with their texts as ids: `text_start`, the text, `text_end`.

    Args:
        pairs: of one split.
        tokenizer: reads the texts.
        config: of the model.
    """

    def __init__(self, pairs: NodePairs, tokenizer: PreTrainedTokenizerBase, config: GraphAlignerConfig) -> None:
        self.pairs = pairs
        rows = tokenizer([one.text for one in pairs.pairs], add_special_tokens=False)["input_ids"]
        longest = config.max_text_tokens - 2
        self.ids = [[config.text_start, *row[:longest], config.text_end] for row in rows]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.pairs[index], "input_ids": self.ids[index]}


def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """B encoded pairs -> the arguments of GraphAligner.forward, texts right-padded."""
    ids = [item["input_ids"] for item in items]
    width = max(map(len, ids))
    return {
        "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in ids]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids]),
        "text_index": torch.tensor([item["text_index"] for item in items]),
        **join_graphs([item["graph"] for item in items]),
    }


def open_pairs(arguments: Arguments) -> Opened:
    """The tokenizer of the texts, and the pairs of the splits that the run reads."""
    training, data = arguments.training, arguments.data
    name = arguments.model.model_name_or_path or arguments.run.init_from
    wanted = {
        "train": data.train_split if training.do_train or arguments.run.dry_run else None,
        "validation": data.validation_split if training.do_eval else None,
        "test": data.test_split if training.do_predict else None,
    }
    with explained(arguments.run.init_from):
        hide = hides_node(arguments)
    splits = {key: NodePairs(data.path, split, hide) for key, split in wanted.items() if split}
    with explained(name):
        tokenizer = AutoTokenizer.from_pretrained(name, cache_dir=arguments.model.cache_dir)
    return Opened(splits, tokenizer)


def hides_node(arguments: Arguments) -> bool:
    """Whether graphs are shown without their node's vector: as --init_from was trained, or as the flag says."""
    start = arguments.run.init_from
    return GraphAlignerConfig.from_pretrained(start).hide_node if start else arguments.align.hide_node


def build(arguments: Arguments, opened: Opened) -> Parts:
    """The model and the encoded pairs."""
    model = build_aligner(arguments, next(iter(opened.splits.values())), opened.tokenizer)
    encoded = {name: EncodedPairs(pairs, opened.tokenizer, model.config) for name, pairs in opened.splits.items()}
    return Parts(
        model=model,
        splits={name: split for name, split in encoded.items() if name != "test"},
        test=encoded.get("test"),
        collator=collate,
        write_companions=partial(write_companions, model, opened.tokenizer),
    )


def dry_run(arguments: Arguments, parts: Parts) -> tuple[str, dict[str, float]]:
    """The parameter table, the first pair, and the steps of the run."""
    train = parts.splits["train"]
    first = train[0]
    nodes = f"a graph of {len(first['graph']['node_features'])} nodes, a text of {len(first['input_ids'])} tokens:"
    return stage_report(arguments, parts.model, len(train), f"the first pair: {nodes}\n{first['text']}")


def check(arguments: Arguments, parts: Parts) -> None:
    """Everything is trained but the head of a loss that is left out."""
    frozen = [name for name, one in parts.model.named_parameters() if not one.requires_grad]
    heads = ("graph_projection", "text_projection", "scale", "matching_head", "caption_head", "caption_bias")
    assert all(name.startswith(heads) for name in frozen), frozen


def write_companions(model: GraphAligner, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """What makes a folder of weights loadable: configuration and tokenizer."""
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save(arguments: Arguments, parts: Parts, trainer: Trainer) -> None:
    """A loadable folder at the top of the output; every process takes part, the first one writes."""
    folder = Path(arguments.training.output_dir)
    for path in folder.glob("model*.safetensors*") if trainer.is_world_process_zero() else ():
        path.unlink()
    trainer.save_model(str(folder), _internal_call=True)
    if trainer.is_world_process_zero():
        parts.write_companions(folder)
        write_card(folder)


def predict(arguments: Arguments, parts: Parts, trainer: Trainer) -> dict[str, float]:
    """Finds the text of each test graph among all test texts, and the graph of each text."""
    train = parts.splits["train"].pairs if "train" in parts.splits else NodePairs(
        arguments.data.path, arguments.data.train_split, parts.test.pairs.hide_node
    )  # fmt: skip
    return retrieve(trainer.model, parts.test, train, collate, arguments.training)
