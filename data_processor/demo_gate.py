"""The gate of the demonstration's base language model: does it find a fact about names it never read?"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from data_processor.demo import make_splits
from data_processor.demo_texts import conversation, lines, look_up, sample_facts
from data_processor.demo_world import name_pool

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


def exact_match(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str], answers: list[str]
) -> float:
    """Share of the prompts (user messages) that greedy generation answers to the letter."""
    import torch

    model.eval()
    tokenizer.padding_side = "left"
    right = 0
    for start in range(0, len(prompts), 50):
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts[start : start + 50]]
        batch = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        )
        with torch.no_grad():
            output = model.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], do_sample=False, max_new_tokens=8
            )
        replies = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        right += sum(reply == answer for reply, answer in zip(replies, answers[start : start + 50], strict=True))
    return right / len(prompts)


def demonstration_prompts(seed: int = 0, questions: int = 4200) -> tuple[list[str], list[str]]:
    """The look-ups of the demonstration's test split as user messages, and their answers; names never read."""
    split = make_splits(seed, questions)["test"]
    names, facts = split.world.names, split.world.facts
    prompts, answers = [], []
    for question in split.questions:
        if question.type == "look_up":
            rows = [facts[row] for row in question.facts]
            listed = "\n".join(f"{names[head]} | {relation} | {names[tail]}" for head, relation, tail in rows)
            prompts.append(f"{listed}\n\n{question.text}")
            answers.append(question.answer)
    return prompts, answers


def held_out_prompts(facts: int, count: int) -> tuple[list[str], list[str]]:
    """Look-ups among exactly `facts` facts with reserved names, subject and relation both needed."""
    rng, names = random.Random(f"held out {facts}"), name_pool(reserved=True)
    prompts, answers = [], []
    for _ in range(count):
        sample = sample_facts(rng, names, facts, "both")
        fact = rng.choice(sample)
        pieces = conversation(lines(sample), [look_up(rng, fact)])
        prompts.append("".join(piece for piece, _ in pieces[1:-4]))  # without the marks of the turns and the answer
        answers.append(fact[2])
    return prompts, answers


def evaluate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Exact match by greedy generation: the demonstration's test look-ups; 4, 8 and 12 facts, unseen names."""
    metrics = {"exact_match": exact_match(model, tokenizer, *demonstration_prompts())}
    for facts in (4, 8, 12):
        metrics[f"exact_match_{facts}_facts"] = exact_match(model, tokenizer, *held_out_prompts(facts, 300))
    return metrics
