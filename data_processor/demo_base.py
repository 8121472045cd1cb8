"""Train the demonstration's base language model until it looks facts up, test it on unseen names, and save it.

    python -m data_processor.demo_base configs/demo_base.yaml
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import platform
import random
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_processor.demo_gate import evaluate
from data_processor.demo_model import build_model, build_tokenizer
from data_processor.demo_texts import Text, random_text
from data_processor.demo_world import name_pool
from data_processor.schema import atomic_write, write_json

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Stage:
    """Texts of up to `facts` facts of the kinds in `mix`, until the share of right first syllables is `until`."""

    facts: int
    until: float
    mix: dict[str, float]


@dataclass(frozen=True)
class Recipe:
    """All numbers of a run; the YAML file has exactly these keys."""

    seed: int
    threads: int
    model: dict[str, Any]
    learning_rate: float
    warmup_steps: int
    steps: int
    batch_tokens: int
    texts_per_round: int  # texts that are sorted by length into batches; a checkpoint follows each round
    weight_decay: float
    stages: tuple[Stage, ...]
    gate: float
    work_dir: Path
    output_dir: Path
    result: Path


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file.

    Raises:
        ValueError: a missing or an unknown key.
    """
    import yaml

    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    known = set(Recipe.__dataclass_fields__)
    if set(values) != known:
        raise ValueError(f"{path}: missing or unknown: {sorted(set(values) ^ known)}; a recipe has {sorted(known)}")
    values["stages"] = tuple(Stage(**stage) for stage in values["stages"])
    values |= {name: Path(values[name]) for name in ("work_dir", "output_dir", "result")}
    return Recipe(**values)


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    round: int = 0
    step: int = 0
    stage: int = 0
    accuracy: float = 0.0  # running share of right first syllables in dialogues
    tokens: int = 0
    seconds: float = 0.0


class Run:
    """Model, optimizer and progress of one run."""

    def __init__(self, recipe: Recipe) -> None:
        import torch

        torch.set_num_threads(recipe.threads)
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.tokenizer = build_tokenizer()
        self.encode = lru_cache(maxsize=None)(lambda piece: self.tokenizer.encode(piece, add_special_tokens=False))
        self.model = build_model(self.tokenizer, **recipe.model)
        decayed = [p for name, p in self.model.named_parameters() if p.ndim == 2 and "layers" in name]
        others = [p for name, p in self.model.named_parameters() if p.ndim != 2 or "layers" not in name]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
        self.progress = Progress()
        self.names = name_pool(reserved=False)

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine to a tenth."""
        step, recipe = self.progress.step, self.recipe
        done = max(0.0, (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps))
        warm = min(1.0, (step + 1) / recipe.warmup_steps)
        return recipe.learning_rate * warm * (0.55 + 0.45 * math.cos(math.pi * min(1.0, done)))

    def batches(self) -> Iterator[list[tuple[str, Text]]]:
        """The batches of this round, each of texts of like length."""
        recipe, rng = self.recipe, random.Random(f"{self.recipe.seed} {self.progress.round}")
        stage = recipe.stages[self.progress.stage]
        texts = [random_text(rng, self.names, stage.facts, stage.mix) for _ in range(recipe.texts_per_round)]
        texts.sort(key=lambda text: len(text[1]))
        batch: list[tuple[str, Text]] = []
        found = []
        for kind, text in texts:
            size = sum(len(self.encode(piece)) for piece, _ in text)
            if batch and (len(batch) + 1) * size > recipe.batch_tokens:
                found.append(batch)
                batch = []
            batch.append((kind, text))
        found.append(batch)
        rng.shuffle(found)
        yield from found

    def tensors(self, texts: list[Text]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and loss weights, both (batch, length), padded on the right with weight 0."""
        import torch

        rows = [[(token, weight) for piece, weight in text for token in self.encode(piece)] for text in texts]
        length = max(len(row) for row in rows)
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        weights = torch.zeros(len(rows), length)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor([token for token, _ in row])
            weights[i, : len(row)] = torch.tensor([weight for _, weight in row])
        return ids, weights

    def train_step(self, batch: list[tuple[str, Text]]) -> float:
        """One update; returns the loss."""
        import torch
        from torch.nn.functional import cross_entropy

        ids, weights = self.tensors([text for _, text in batch])
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        logits = self.model(input_ids=ids).logits[:, :-1]
        target, weight = ids[:, 1:], weights[:, 1:]
        losses = cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
        loss = (losses * weight.flatten()).sum() / weight.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        begins = (weight == 1.0) & (weights[:, :-1] != 1.0)  # the first token of an answer
        asked = begins & torch.tensor([kind == "dialogue" for kind, _ in batch])[:, None]
        if asked.any():
            right = float((logits.argmax(-1) == target)[asked].float().mean())
            self.progress.accuracy += 0.03 * (right - self.progress.accuracy)
        self.progress.step += 1
        self.progress.tokens += ids.numel()
        return float(loss.detach())

    def advance(self) -> None:
        """Go to the next stage when this one is learnt."""
        stages = self.recipe.stages
        if self.progress.stage + 1 < len(stages) and self.progress.accuracy >= stages[self.progress.stage].until:
            self.progress.stage += 1

    def train(self) -> None:
        """Run to the last step, from the last checkpoint if there is one."""
        from tqdm import tqdm

        self.restore()
        bar = tqdm(total=self.recipe.steps, initial=self.progress.step, unit="step", mininterval=5)
        while self.progress.step < self.recipe.steps:
            start = time.monotonic()
            for batch in self.batches():
                loss = self.train_step(batch)
                self.advance()
                bar.set_postfix(stage=self.progress.stage, loss=f"{loss:.2f}", right=f"{self.progress.accuracy:.2f}",
                                refresh=False)
                bar.update()
            self.progress.round += 1
            self.progress.seconds += time.monotonic() - start
            self.save()
        bar.close()

    def save(self) -> None:
        """Write the checkpoint."""
        write_checkpoint(self.recipe.work_dir, self.model, self.optimizer, asdict(self.progress))

    def restore(self) -> None:
        """Load the checkpoint if there is one."""
        state = load_checkpoint(self.recipe.work_dir, self.model, self.optimizer)
        if state is not None:
            self.progress = Progress(**state)
            logger.info("resumed after step %d", self.progress.step)


def write_checkpoint(
    folder: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Weights, the optimizer's moments and the state of a run, in one file of the folder."""
    from safetensors.torch import save_file

    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        tensors |= {f"{key}.{name}": value for key, value in optimizer.state[parameter].items()}
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / CHECKPOINT) as temporary:
        save_file(tensors, temporary, metadata={"state": json.dumps(state)})


def load_checkpoint(
    folder: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer | None = None
) -> dict[str, Any] | None:
    """Gives model and optimizer what `write_checkpoint` left in the folder; returns the state, None without a file."""
    import torch
    from safetensors import safe_open

    if not (folder / CHECKPOINT).exists():
        return None
    with safe_open(folder / CHECKPOINT, "pt") as file, torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(file.get_tensor(f"model.{name}"))
            if optimizer is not None:
                moments = ("step", "exp_avg", "exp_avg_sq")
                optimizer.state[parameter] = {key: file.get_tensor(f"{key}.{name}") for key in moments}
        return json.loads(file.metadata()["state"])


def write_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save weights, config, tokenizer and chat template; what was there is overwritten file by file."""
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    model.generation_config.update(do_sample=False, **ends)
    model.save_pretrained(folder)
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Train, test, and save the model if it passes its gate."""
    parser = argparse.ArgumentParser(description="Train the demonstration's base language model.")
    parser.add_argument("recipe", type=Path)
    path = parser.parse_args().recipe
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = read_recipe(path)
    run = Run(recipe)
    run.train()
    metrics = evaluate(run.model, run.tokenizer)
    print(json.dumps(metrics))
    if metrics["exact_match"] < recipe.gate:
        raise SystemExit(
            f"exact match {metrics['exact_match']:.3f} is under the gate of {recipe.gate}: nothing was saved; "
            f"set more `steps` in {path} and start again, the run goes on from {recipe.work_dir}"
        )
    write_model(run.model, run.tokenizer, recipe.output_dir)
    write_result(recipe, path, run.progress, metrics)
    print(f"saved {recipe.output_dir} and {recipe.result}")


def write_result(recipe: Recipe, path: Path, progress: Progress, metrics: dict[str, float]) -> None:
    """Write the record of the run."""
    import torch

    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    record = {
        "command": f"python -m data_processor.demo_base {path}",
        "commit": found.stdout.strip() or None,
        "machine": f"{platform.machine()}, {recipe.threads} of {os.cpu_count()} cores, torch {torch.__version__}",
        "minutes": round(progress.seconds / 60, 1),
        "seeds": [recipe.seed],
        "format": "user message: 4 to 6 lines `head | relation | tail`, an empty line, the question",
        "metrics": {**metrics, "steps": progress.step, "tokens": progress.tokens},
    }
    write_json(recipe.result, record)


if __name__ == "__main__":
    main()
