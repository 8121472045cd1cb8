"""A dataset folder of twenty nodes and thirty-six questions, and the flags of a run on it that takes seconds."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from data_processor.graph_store import embed_graph, write_graph
from data_processor.schema import QAPair, to_json, write_jsonl
from data_processor.subgraph_store import write_subgraphs
from data_processor.text_encoder import load_encoder

SIZES = {"train": 24, "validation": 6, "test": 6}


def write_dataset(folder: Path) -> Path:
    """Node i has edges to i + 1 and i + 5; question i asks where its first edge leads."""
    nodes = [{"name": f"thing{i}", "type": "thing"} for i in range(20)]
    edges = [[i, relation, (i + step) % 20] for i in range(20) for relation, step in ((0, 1), (1, 5))]
    graph = write_graph(folder / "graph", nodes, [{"name": "next_to"}, {"name": "far_from"}], np.array(edges))
    embed_graph(folder / "graph", load_encoder("hashing:8"))
    first = 0
    for split, size in SIZES.items():
        starts = [(first + i) % 20 for i in range(size)]
        pairs = [
            QAPair(f"{split}-{i}", f"what is next to thing{start}?", (f"thing{(start + 1) % 20}",), type="look_up")
            for i, start in enumerate(starts)
        ]
        subgraphs = [graph.subgraph([start], [2 * start, 2 * start + 1]) for start in starts]
        manifest = {"graph": "graph", "method": "test", "parameters": {}}
        write_jsonl(folder / "qa" / f"{split}.jsonl", (to_json(pair) for pair in pairs))
        write_subgraphs(folder / "subgraphs" / split, [pair.id for pair in pairs], subgraphs, {}, manifest)
        first += size
    return folder


def flags(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    """A run of four steps of four examples on a CPU; `more` overrides."""
    return [
        *("--model_name_or_path", str(model), "--data_path", str(data), "--output_dir", str(output)),
        *("--use_cpu", "True", "--max_steps", "4", "--per_device_train_batch_size", "4", "--learning_rate", "1e-2"),
        *("--graph_hidden_dim", "8", "--graph_num_layers", "2", "--graph_num_heads", "2", "--num_graph_tokens", "2"),
        *("--projector_hidden_dim", "8", "--lora_r", "4", "--lora_dropout", "0", "--save_strategy", "no"),
        *("--logging_steps", "1", "--disable_tqdm", "True", "--lr_scheduler_type", "constant", *more),
    ]


def write_model(folder: Path, trained: dict[str, Any]) -> Path:
    """A model for the tiny world that nobody trained: it says letters at random, other ones to every other prompt.

    Args:
        folder: gets `model`, which is returned, and the language model beside it.
        trained: the flags of a training, for its run.json.
    """
    import torch

    from modeling_graphllm import GraphConfig, GraphLLMForConditionalGeneration
    from processing_graphllm import GraphLLMProcessor
    from tests.conftest import build_language_model, build_tokenizer

    tokenizer = build_tokenizer()
    language_model = build_language_model(tie_word_embeddings=False, initializer_range=0.4)
    letters = tokenizer.convert_tokens_to_ids(list("abcdefghijklmnopqrstuvwxyz\u0120"))  # the last one is the space
    silent = [place for place in range(len(tokenizer)) if place not in letters]
    with torch.no_grad():
        language_model.lm_head.weight[silent] = 0  # never the first choice
        language_model.lm_head.weight[letters[-1]] *= 2  # words are short
    language_model.save_pretrained(folder / "language_model")
    tokenizer.save_pretrained(folder / "language_model")
    graph = GraphConfig(feature_dim=8, edge_feature_dim=8, hidden_dim=8, num_layers=2, num_heads=2, num_tokens=3)
    processor = GraphLLMProcessor.from_tokenizer(tokenizer, num_graph_tokens=3)
    model = GraphLLMForConditionalGeneration.from_components(
        str(folder / "language_model"), graph, processor.graph_token_id, feature_encoder="hashing:8"
    )
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    (folder / "model" / "run.json").write_text(json.dumps({"arguments": trained}))
    return folder / "model"
