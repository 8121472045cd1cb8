"""Choosing one of forty classes: by the likelihood of each label, beside generating up to 64 tokens and reading them.

A random Llama (256 wide, four layers, 32,000 words) is asked about nodes of a graph whose vectors lie in a memory map;
an answer of 64 tokens is what a model needs that names its choice and says why, as GraphTranslator asks (arXiv
2402.07197), and a random one never ends earlier. Labels have one to four words. Both ways get the same prompts:

    one at a time   as GraphTranslator, LLaGA and GraphGPT generate; `speedup_vs_generate`
    in batches      of 8 prompts, both

Processor time of one thread, medians over the rounds. Scores are compared with those of passes over prompt and label
together, where nothing is shared: `largest_difference`, in log-probability.

Also: a node's vector from the memory map, and out of a line of text as GraphTranslator's CSV holds it.

    python benchmarks/label_scoring.py --json results/label_scoring.json
"""

import argparse
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.arms import FEATURES, GRAPH_TOKENS, HIDDEN, VOCABULARY, write_language_model
from data_processor.files import read_npy, write_npy
from data_processor.schema import write_json
from evaluation.generation import PLAIN_SEARCH
from evaluation.label_scoring import label_scores
from training.record import commit

CLASSES, ANSWER, WORDS, NODES, BATCH = 40, 64, 100, 20_000, 8
Prompt = list[dict[str, Any]]


def build(folder: Path) -> tuple[Any, Any]:
    """The model and its processor; the node's own vector is the graph."""
    from transformers import AutoTokenizer

    from modeling_graphllm import GraphConfig, GraphLLMForConditionalGeneration
    from processing_graphllm import GraphLLMProcessor

    write_language_model(folder)
    config = GraphConfig(encoder="none", feature_dim=FEATURES, num_tokens=GRAPH_TOKENS, projector_hidden_dim=HIDDEN)
    processor = GraphLLMProcessor.from_tokenizer(AutoTokenizer.from_pretrained(folder), num_graph_tokens=GRAPH_TOKENS)
    model = GraphLLMForConditionalGeneration.from_components(str(folder), config, processor.graph_token_id)
    return model.eval(), processor


def make_labels(rng: np.random.Generator) -> list[str]:
    """CLASSES labels of one to four words."""
    drawn = (" ".join(f"w{i}" for i in rng.integers(VOCABULARY - 100, size=1 + k % 4)) for k in range(CLASSES))
    return list(drawn)


def make_prompts(vectors: np.ndarray, labels: list[str], count: int, rng: np.random.Generator) -> list[Prompt]:
    """Questions about `count` nodes: the vector, a text of WORDS words, and the classes."""
    prompts = []
    for node in rng.integers(len(vectors), size=count):
        words = " ".join(f"w{i}" for i in rng.integers(VOCABULARY - 100, size=WORDS))
        graph = {"node_features": torch.from_numpy(vectors[[node]]), "edge_index": torch.zeros(2, 0, dtype=torch.long)}
        text = {"type": "text", "text": f"{words} {' '.join(labels)}"}
        prompts.append([{"role": "user", "content": [{"type": "graph", "graph": graph}, text]}])
    return prompts


@torch.no_grad()
def generate(model: Any, processor: Any, prompts: Sequence[Prompt]) -> torch.Tensor:
    """ANSWER new tokens a prompt."""
    batch = processor.pad([processor.encode(prompt) for prompt in prompts])
    pad = processor.tokenizer.pad_token_id
    tokens = model.generate(**batch, **PLAIN_SEARCH, max_new_tokens=ANSWER, pad_token_id=pad)
    return tokens[:, batch["input_ids"].shape[1] :]


@torch.no_grad()
def unshared(model: Any, processor: Any, prompt: Prompt, labels: list[str]) -> torch.Tensor:
    """(C,) scores from one pass a label over prompt and label together."""
    found = []
    for label in labels:
        batch = dict(processor.pad([processor.encode([*prompt, {"role": "assistant", "content": label}])]))
        targets = batch.pop("labels")[0, 1:]
        logits = model(**batch).logits[0, :-1].log_softmax(-1)
        places = (targets != -100).nonzero()[:, 0]
        found.append(logits[places, targets[places]].sum())
    return torch.stack(found)


def seconds(call: Callable[[], Any]) -> tuple[Any, float]:
    """(what it returns, processor seconds)."""
    begun = time.process_time()
    value = call()
    return value, time.process_time() - begun


def measure(model: Any, processor: Any, vectors: np.ndarray, rounds: int) -> dict[str, float]:
    """Answers a second of both ways, one at a time and in batches, in interleaved rounds; the first warms up."""
    rng = np.random.default_rng(0)
    labels, times = make_labels(rng), {name: [] for name in ("score_one", "generate_one", "score", "generate")}
    for number in range(rounds + 1):
        prompts = make_prompts(vectors, labels, BATCH, rng)
        for name, size in (("one", 1), ("", BATCH)):
            rows = size * CLASSES
            score, scored = seconds(lambda: label_scores(model, processor, prompts[:size], labels, batch_size=rows))  # noqa: B023
            tokens, generated = seconds(lambda: generate(model, processor, prompts[:size]))  # noqa: B023
            assert score.shape == (size, CLASSES) and tokens.shape == (size, ANSWER)
            if number:
                suffix = f"_{name}" if name else ""
                times[f"score{suffix}"].append(scored / size)
                times[f"generate{suffix}"].append(generated / size)
        print(f"{number}/{rounds}", end="\r", file=sys.stderr)
    median = {name: statistics.median(values) for name, values in times.items()}
    reference = unshared(model, processor, prompts[0], labels)
    scores = label_scores(model, processor, prompts, labels, batch_size=BATCH * CLASSES)[0]
    return {
        "speedup_vs_generate": median["generate_one"] / median["score_one"],
        f"speedup_vs_generate_batches_of_{BATCH}": median["generate"] / median["score"],
        "largest_difference": float((scores - reference).abs().max()),
        "smallest_score": float(reference.min()),
        **{f"{name}_ms": 1000 * value for name, value in median.items()},
    }


def measure_vectors(vectors: np.ndarray, folder: Path) -> dict[str, float]:
    """Microseconds to get one node's vector from the memory map, and by parsing its text."""
    rng = np.random.default_rng(1)
    rows = rng.integers(len(vectors), size=1000)
    texts = [", ".join(map(str, vectors[row].tolist())) for row in rows]
    _, mapped = seconds(lambda: [vectors[row].copy() for row in rows])
    parsed, text = seconds(lambda: [np.array(one.split(", "), dtype=np.float32) for one in texts])
    assert all(np.array_equal(one, vectors[row]) for one, row in zip(parsed, rows, strict=True))
    return {"vector_mapped_us": 1000 * mapped, "vector_text_us": 1000 * text, "vector_speedup": text / mapped}


def main(argv: list[str] | None = None) -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description="Label scoring beside generating, for forty classes.")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    begun = time.time()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        model, processor = build(Path(name))
        write_npy(Path(name) / "vectors.npy", np.random.default_rng(2).normal(size=(NODES, FEATURES)).astype("f4"))
        vectors = read_npy(Path(name) / "vectors.npy")
        figures = measure(model, processor, vectors, arguments.rounds) | measure_vectors(vectors, Path(name))
    for key, value in figures.items():
        print(f"{key:44}{value:12.6f}")
    if arguments.json:
        write_json(arguments.json, {
            "speedup_vs_generate": figures["speedup_vs_generate"],
            "command": shlex.join(["python", *sys.argv]),
            "commit": commit(),
            "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, 1 used",
            "minutes": (time.time() - begun) / 60,
            "seeds": [0],
            "metrics": figures,
        })  # fmt: skip


if __name__ == "__main__":
    main()
