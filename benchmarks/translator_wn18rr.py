"""WN18RR's places and texts aligned: which synset stands here, when all that is shown is what is joined to it?

    python benchmarks/translator_wn18rr.py --data ../shared/data/wn18rr --json results/wn18rr_text.json

The graph of a synset is its neighbours with their hashed texts and relations. All synsets whose text is to be
found, in training and held out, have zeros for a vector, as themselves and as neighbours. Beside the Q-Former:
ridge regression from the same graph to hashed words, and the commonest text of training as a description of
everything. A small Q-Former, from scratch, on some of the synsets: what one core does in minutes, no measure of a
large one with BERT's weights. Then: are two synsets related, yes or no? An encoder of the whole graph learns links,
and tells held-out ones from as many random pairs. A stage that ended is not run again.
"""

import argparse
import json
import os
import platform
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import finetune  # noqa: E402
from data_processor.graph_store import KnowledgeGraph, embed_graph, write_graph  # noqa: E402
from data_processor.node_pairs import NodePairs  # noqa: E402
from data_processor.node_stars import FILE  # noqa: E402
from data_processor.node_vectors import write_vectors  # noqa: E402
from data_processor.producer import sample_neighbours  # noqa: E402
from data_processor.schema import NodeSummary, read_jsonl, to_json, write_json, write_jsonl  # noqa: E402
from data_processor.text_encoder import load_encoder  # noqa: E402
from evaluation.metrics import token_f1  # noqa: E402
from modeling_aligner import GraphAligner  # noqa: E402
from training.align import EncodedPairs, collate  # noqa: E402
from training.record import commit  # noqa: E402

WIDTH = 256  # of hashed texts: node features
HELD_OUT = 500
LEAST_DEGREE = 3
NEIGHBOURS = 10
WORDS = 4000  # of the tokenizer
FLAGS = [
    *("--stage", "align", "--graph_encoder", "mpnn", "--graph_hidden_dim", "64", "--graph_num_layers", "1"),
    *("--num_graph_tokens", "4", "--state_layers", "all", "--qformer_dim", "128", "--qformer_num_layers", "2"),
    *("--qformer_num_heads", "4", "--qformer_intermediate_dim", "256", "--qformer_dropout", "0.1"),
    *("--cross_attention_every", "1", "--align_dim", "64", "--align_text_tokens", "28"),
    *("--per_device_train_batch_size", "64", "--per_device_eval_batch_size", "64", "--learning_rate", "1e-3"),
    *("--lr_scheduler_type", "cosine", "--warmup_steps", "0.05", "--weight_decay", "0.05", "--max_grad_norm", "1"),
    *("--logging_steps", "20", "--save_strategy", "no", "--do_predict", "True", "--use_cpu", "True"),
]

LINKS = [
    *("--stage", "graph", "--graph_encoder", "sage", "--graph_hidden_dim", "64", "--graph_num_layers", "2"),
    *("--neighbours_per_node", "10", "--nodes_per_batch", "256", "--max_steps", "400", "--learning_rate", "3e-3"),
    *("--logging_steps", "50", "--save_strategy", "no", "--do_predict", "True", "--use_cpu", "True"),
]


def write_data(source: Path, folder: Path, train: int, seed: int, hide: bool) -> KnowledgeGraph:
    """Writes graph/ of the training triples, hashed features, and summaries.jsonl of train and held-out synsets, whose
    own features are zero with `hide`."""
    names = dict(line.split("\t", 1) for line in (source / "entity2text.txt").read_text().splitlines())
    places = {name: place for place, name in enumerate(names)}
    rows = [line.split("\t") for line in (source / "train.txt").read_text().splitlines()]
    relations = sorted({relation for _, relation, _ in rows})
    edges = np.array([(places[head], relations.index(relation), places[tail]) for head, relation, tail in rows])
    nodes = ({"name": name, "text": text} for name, text in names.items())
    ties = [{"name": one.strip("_").replace("_", " ")} for one in relations]
    graph = write_graph(folder / "graph", nodes, ties, edges)
    degrees = np.diff(graph.out_offsets) + np.diff(graph.in_offsets)
    chosen = np.random.default_rng(seed).permutation(np.flatnonzero(degrees >= LEAST_DEGREE))[: HELD_OUT + train]
    splits = dict.fromkeys(chosen[:HELD_OUT].tolist(), "test") | dict.fromkeys(chosen[HELD_OUT:].tolist(), "train")
    texts = list(names.values())
    around = {node: sample_neighbours(graph, node, NEIGHBOURS, seed) for node in splits}
    summaries = (NodeSummary(node, texts[node], split=splits[node], neighbour_nodes=around[node]) for node in splits)
    write_jsonl(folder / FILE, map(to_json, summaries))
    graph = embed_graph(graph.path, load_encoder(f"hashing:{WIDTH}"))
    if not hide:
        return graph
    vectors = np.array(graph.node_features)
    vectors[list(splits)] = 0
    return write_vectors(graph.path, vectors, "hidden synsets")


def write_tokenizer(folder: Path, texts: list[str]) -> PreTrainedTokenizerFast:
    """A BPE tokenizer of the training texts."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=WORDS, special_tokens=["<pad>", "<unk>"]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>")
    tokenizer.save_pretrained(folder)
    return tokenizer


def run_stage(output: Path, words: list[str]) -> dict[str, float]:
    """A run of finetune.py, once; its metrics."""
    if not (output / "metrics.json").is_file():
        finetune.main([*words, "--output_dir", str(output), "--resume_from_checkpoint", "none"])
    return json.loads((output / "metrics.json").read_text(encoding="utf-8"))


@torch.no_grad()
def described(model: GraphAligner, pairs: EncodedPairs, longest: int = 24) -> list[list[int]]:
    """The text of each graph that the captioning writes, the likeliest token each time."""
    texts = []
    for start in range(0, len(pairs), 64):
        batch = collate([pairs[i] for i in range(start, min(start + 64, len(pairs)))])
        graph = {name: one for name, one in batch.items() if name.startswith("graph_")}
        states, mask = model.eval().graph_states(**{"graph_edge_features": None, **graph})
        ids = torch.full((len(states), 1), model.config.text_start)
        for _ in range(longest):
            last = model.caption(states, mask, ids, torch.ones_like(ids))[:, -1].argmax(dim=-1, keepdim=True)
            ids = torch.cat([ids, last], dim=1)
        for row in ids[:, 1:].tolist():
            texts.append(row[: row.index(model.config.text_end)] if model.config.text_end in row else row)
    return texts


def main() -> None:
    """Builds, trains, retrieves and describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("output/translator_wn18rr"))
    parser.add_argument("--train", type=int, default=4000, help="synsets that are trained on")
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = arguments.output
    known, hidden = folder / "data", folder / "hidden"
    graph = write_data(arguments.data, known, arguments.train, arguments.seed, hide=False)
    write_data(arguments.data, hidden, arguments.train, arguments.seed, hide=True)
    rows = [row for _, row in read_jsonl(hidden / FILE)]
    texts = [row["summary"] for row in rows if row.get("split", "train") == "train"]
    tokenizer = write_tokenizer(folder / "tokenizer", texts)
    seed = ["--seed", str(arguments.seed)]
    links = run_stage(folder / "links", [*LINKS, *seed, "--data_path", str(known)])
    words = ["--model_name_or_path", str(folder / "tokenizer"), "--num_train_epochs", str(arguments.epochs)]
    metrics = run_stage(folder / "stage1", [*FLAGS, *seed, *words, "--data_path", str(hidden)])
    model, test = GraphAligner.from_pretrained(folder / "stage1"), NodePairs(hidden, "test")
    written = [tokenizer.decode(ids) for ids in described(model, EncodedPairs(test, tokenizer, model.config))]
    gold = [one.text for one in test.pairs]
    # what is written comes out in tokens with spaces between: gold is put through the tokenizer, too
    golds = [tokenizer.decode(tokenizer(text)["input_ids"]) for text in gold]
    seen = Counter(tokenizer.decode(tokenizer(text)["input_ids"]) for text in texts)
    commonest = seen.most_common(1)[0][0]
    found = {name: value for name, value in metrics.items() if re.match(r"retrieval|text_to|candidates|test_", name)}
    found |= {
        "description_f1": float(np.mean([token_f1(one, [two]) for one, two in zip(written, golds, strict=True)])),
        "description_f1_commonest": float(np.mean([token_f1(commonest, [two]) for two in golds])),
        "descriptions_distinct": float(len(set(written))), "nodes": float(graph.num_nodes),
        "train_synsets": float(len(texts)), "chance_r1": 1 / len(set(gold)),
        "related_auc": links["link_auc"], "related_auc_features": links["link_auc_features"],
        "related_average_precision": links["link_average_precision"],
    }  # fmt: skip
    minutes = metrics["minutes"] + links["minutes"]
    words = f"--data {arguments.data} --json {arguments.json} --train {arguments.train} --epochs {arguments.epochs:g}"
    write_json(arguments.json, {
        "command": f"python benchmarks/translator_wn18rr.py {words}", "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores busy with other work, one thread",
        "minutes": round(minutes, 2), "seeds": [arguments.seed], "metrics": found,
    })  # fmt: skip
    print(json.dumps(found, indent=1))
    for one, two in list(zip(written, gold, strict=True))[:3]:
        print(f"written: {one}\ngold:    {two}")


if __name__ == "__main__":
    main()
