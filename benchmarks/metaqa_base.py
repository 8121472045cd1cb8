"""The base models of the MetaQA record: the demonstration's, with other words, that learns to read facts about films.

The demonstration's model finds facts by what stands beside a name, whatever the name is: so its layers are kept
and the new words get embeddings like those of its names. That of two hops goes on from that of one hop. What they
read holds no fact of the graph: the texts of metaqa_texts.py and metaqa_paths.py give every entity another's name.
"""

from __future__ import annotations

import json
import logging
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.metaqa_lessons import Lessons
from benchmarks.metaqa_texts import Text
from data_processor.demo_base import load_checkpoint, write_checkpoint, write_model
from data_processor.demo_world import syllables
from data_processor.schema import write_json

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)
RIDGE = 0.01  # of the mean square of an embedding's dimension


@dataclass(frozen=True)
class Recipe:
    """All numbers of the base model's training."""

    seed: int = 0
    start: str = "data_processor/demo_base"
    learning_rate: float = 1.0e-3
    warmup_steps: int = 60
    steps: int = 1200
    batch_tokens: int = 2048
    round_texts: int = 256
    weight_decay: float = 0.1
    most_facts: int = 3  # of one relation in a text
    direct_until: float = 0.9  # share of right answers from which on questions are asked in words only


class Reader:
    """Model, optimizer and texts of one run; `train` goes on from the last checkpoint in `folder`."""

    def __init__(self, lessons: Lessons, model: LlamaForCausalLM, folder: Path, recipe: Recipe) -> None:
        import torch

        self.lessons, self.tokenizer, self.model = lessons, lessons.tokenizer, model
        self.recipe, self.folder = recipe, folder
        self.state = {"step": 0, "right": 0.0, "tokens": 0, "seconds": 0.0}
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), betas=(0.9, 0.95), weight_decay=recipe.weight_decay
        )
        self.tokens: dict[str, list[int]] = {}

    def encode(self, piece: str) -> list[int]:
        """The tokens of a piece; remembered."""
        if piece not in self.tokens:
            self.tokens[piece] = self.tokenizer.encode(piece, add_special_tokens=False)
        return self.tokens[piece]

    def batches(self) -> Iterator[list[Text]]:
        """The batches that follow this step, each of texts of like length."""
        recipe, rng = self.recipe, random.Random(f"{self.recipe.seed} {self.state['step']}")
        writer = self.lessons.writers[self.state["right"] >= recipe.direct_until]
        texts = [writer.write(rng) for _ in range(recipe.round_texts)]
        yield from batched(texts, [sum(len(self.encode(p)) for p, _ in text) for text in texts], recipe, rng)

    def tensors(self, texts: list[Text]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and loss weights, both (batch, length), padded on the right with weight 0."""
        import torch

        rows = [[(token, weight) for piece, weight in text for token in self.encode(piece)] for text in texts]
        length = max(map(len, rows))
        padded = [row + [(self.tokenizer.pad_token_id, 0.0)] * (length - len(row)) for row in rows]
        return torch.tensor([[t for t, _ in row] for row in padded]), torch.tensor([[w for _, w in r] for r in padded])

    def predict(self, texts: list[Text]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
        """Logits (k, V), targets (k,) and weights (k,) where a weight stands; the share of answers wholly right."""
        ids, weights = self.tensors(texts)
        kept = weights[:, 1:] > 0
        hidden = self.model.model(input_ids=ids).last_hidden_state[:, :-1][kept]
        logits, target, weight = self.model.lm_head(hidden), ids[:, 1:][kept], weights[:, 1:][kept]
        answer = weight == 1.0
        wrong = ((logits.argmax(-1) != target) & answer).cumsum(0)
        ends = answer & (target == self.tokenizer.eos_token_id)
        counts = wrong[ends]
        share = float((counts.diff(prepend=counts.new_zeros(1)) == 0).float().mean())
        self.state["tokens"] += ids.numel() * self.model.training
        return logits, target, weight, share

    def step(self, texts: list[Text]) -> float:
        """One update; returns the loss."""
        import torch
        from torch.nn.functional import cross_entropy

        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.state["step"])
        logits, target, weight, share = self.predict(texts)
        loss = (cross_entropy(logits, target, reduction="none") * weight).sum() / weight.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state["right"] += 0.03 * (share - self.state["right"])
        self.state["step"] += 1
        return float(loss.detach())

    def held_out_accuracy(self, count: int) -> float:
        """The share of questions, asked in words about names that were never read, answered to the last token."""
        import torch

        rng = random.Random("held out")
        texts = sorted((self.lessons.held_out.write(rng) for _ in range(count)), key=len)
        self.model.eval()
        with torch.no_grad():
            shares = [self.predict(texts[start : start + 16])[3] for start in range(0, count, 16)]
        self.model.train()
        return float(np.mean(shares))

    def train(self) -> None:
        """Runs to the last step and writes a checkpoint and a line of the log after every round."""
        from tqdm import tqdm

        self.restore()
        self.model.train()
        bar = tqdm(total=self.recipe.steps, initial=self.state["step"], unit=" steps", mininterval=10)
        said = time.monotonic()
        while self.state["step"] < self.recipe.steps:
            begun = time.monotonic()
            for texts in self.batches():
                loss = self.step(texts)
                bar.update()
            self.state["seconds"] += time.monotonic() - begun
            if time.monotonic() - said > 60:
                said = time.monotonic()
                logger.info("%s loss %.3f held out %.3f", json.dumps(self.state), loss, self.held_out_accuracy(32))
                self.save()
        self.save()
        bar.close()

    def save(self) -> None:
        """Writes the checkpoint."""
        write_checkpoint(self.folder, self.model, self.optimizer, self.state)

    def restore(self) -> None:
        """Loads the checkpoint if there is one."""
        self.state = load_checkpoint(self.folder, self.model, self.optimizer) or self.state


def transplant(start: str, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The model in the folder `start` with another vocabulary: its layers are kept.

    Marks, line ends and the tokens of relations take over embeddings that `start` has for such. Every other token gets
    a random one with the mean and covariance of those of its syllables, and the row of the output matrix that belongs
    to it: the scaled rotation that takes the syllables' embeddings nearest to their rows (orthogonal Procrustes).
    """
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    model, old = LlamaForCausalLM.from_pretrained(start), AutoTokenizer.from_pretrained(start).get_vocab()
    tables = [model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()]
    names = torch.tensor([old[token] for token in dict.fromkeys(sum(syllables(), []))])
    means = [table[names].mean(0) for table in tables]
    spread, rows = (table[names] - mean for table, mean in zip(tables, means, strict=True))
    left, strength, right = torch.linalg.svd(spread.T @ rows)
    drawn = torch.randn(len(tokenizer), len(names)) @ spread / math.sqrt(len(names))
    fresh = [means[0] + drawn, means[1] + drawn @ left @ right * (strength.sum() / spread.square().sum())]
    for token, place in tokenizer.get_vocab().items():
        twin = old.get(tokenizer.convert_tokens_to_string([token])) if len(token) == 1 else old.get(token)
        for table, source in zip(fresh, tables, strict=True) if twin is not None else ():
            table[place] = source[twin]
    relations = [place for token, place in old.items() if token.startswith(" | ") and len(token) > 3]
    ours = [place for token, place in tokenizer.get_vocab().items() if token.startswith(" | ")]
    for place, twin in zip(sorted(ours), sorted(relations), strict=False):
        for table, source in zip(fresh, tables, strict=True):
            table[place] = source[twin]
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(fresh[0])
        model.get_output_embeddings().weight.copy_(fresh[1])
    model.config.pad_token_id, model.config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    return model


def realign(model: LlamaForCausalLM, frequent: torch.Tensor, rare: torch.Tensor) -> None:
    """Gives rare tokens the rows of the output matrix that a linear map of their embeddings predicts; in place.

    A row whose token is hardly ever right is only pushed away, and Adam makes the small pushes as large as any: rare
    pieces of names are found and yet cannot be written. The map is fitted to frequent tokens by ridge regression.

    Args:
        frequent, rare: token ids (n,) and (m,).
    """
    import torch

    embeddings, rows = model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()
    means = embeddings[frequent].mean(0), rows[frequent].mean(0)
    given, wanted = embeddings[frequent] - means[0], rows[frequent] - means[1]
    ridge = RIDGE * given.square().sum() / given.shape[1] * torch.eye(given.shape[1])
    linear = torch.linalg.solve(given.T @ given + ridge, given.T @ wanted)
    rows[rare] = means[1] + (embeddings[rare] - means[0]) @ linear


def batched(texts: list[Text], sizes: list[int], recipe: Recipe, rng: random.Random) -> Iterator[list[Text]]:
    """The texts in batches of at most `batch_tokens` tokens with padding, in random order."""
    groups: list[list[int]] = [[]]
    for i in sorted(range(len(texts)), key=sizes.__getitem__):
        if groups[-1] and (len(groups[-1]) + 1) * sizes[i] > recipe.batch_tokens:
            groups.append([])
        groups[-1].append(i)
    rng.shuffle(groups)
    for group in groups:
        yield [texts[i] for i in group]


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine to a twentieth."""
    done = min(1.0, max(0.0, (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)))
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    return recipe.learning_rate * warm * (0.525 + 0.475 * math.cos(math.pi * done))


def build_base(data: Path, folder: Path, recipe: Recipe, hops: int) -> dict[str, float]:
    """Trains the base model and saves it in `folder`, once; returns what was reached."""
    import torch
    from transformers import LlamaForCausalLM

    record = folder / "base.json"
    if record.is_file():
        return json.loads(record.read_text(encoding="utf-8"))
    torch.manual_seed(recipe.seed)
    if hops == 1:
        lessons = Lessons.one_hop(data, recipe.seed, recipe.most_facts)
        model = transplant(recipe.start, lessons.tokenizer)
    else:
        lessons = Lessons.paths(data, recipe.seed, recipe.start)
        model = LlamaForCausalLM.from_pretrained(recipe.start)
        load_checkpoint(Path(recipe.start), model)  # as training left it, before `realign`
    reader = Reader(lessons, model, folder, recipe)
    reader.train()
    before = reader.held_out_accuracy(160)
    realign(model, *lessons.frequent_and_rare())
    figures = {
        "base_held_out": reader.held_out_accuracy(160),
        "base_held_out_unaligned": before,
        "base_steps": reader.state["step"],
        "base_tokens": reader.state["tokens"],
        "base_minutes": reader.state["seconds"] / 60,
        "base_parameters": sum(parameter.numel() for parameter in reader.model.parameters()),
    }
    write_model(reader.model.eval(), reader.tokenizer, folder)
    write_json(record, figures)
    return figures
