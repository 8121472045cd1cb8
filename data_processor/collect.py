"""Documents to facts, and facts to questions with answers: chunks -> theme -> facts -> question -> roles -> rewrites.

    python -m data_processor collect --input my_texts/ --output DATA --backend api --base_url URL --model NAME

Why fact by fact: the same number of questions for every fact covers a text more evenly than questions written until a
budget of tokens is spent (Mecklenburg et al. 2024, arXiv 2404.00213).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from data_processor.chunking import Chunk
from data_processor.known_facts import KnownFacts
from data_processor.replies import Schema, Unusable, list_of, record, text
from data_processor.schema import Fact
from data_processor.stages import Stages
from data_processor.text_generator import Task, TextGenerator
from data_processor.wording import Wording, a_name, some_of

Value = TypeVar("Value")

STAGES = ("documents", "chunks", "themes", "fact_lists", "facts", "questions", "roles", "rewrites", "pairs")
LIMITS = {"theme": 64, "facts": 2048, "question": 512, "roles": 256, "rewrite": 2048}  # new tokens of a reply
TOKENS_A_FACT = 25  # of text, for the estimate: about one fact a sentence
SKIP = "SKIP"
SCHEMAS: dict[str, Schema] = {
    "theme": record(theme=text()),
    "facts": record(facts=list_of(text())),
    "question": record(question=text(), answer=text()),
    "roles": record(roles=list_of(text())),
    "rewrite": record(pairs=list_of(record(question=text(), answer=text()))),
}
PRONOUN = re.compile(
    r"(?:he|she|it|they|this|that|these|those|his|her|its|their|there)\b|[他她它]们?|该|此|这|那", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The numbers of a collection; the flags of the command bear the same names.

    A chunk of 512 tokens holds a dozen facts, as many as a small model lists without losing the thread. Ten questions
    a fact are what Mecklenburg et al. use; three roles make them differ in more than word order. Splits go by fact, so
    that one long document is divided too.
    """

    chunk_size_by_token: int = 512
    qa_amount_per_fact: int = 10
    role_amount_per_fact: int = 3
    similarity: float = 0.95
    split_by: str = "fact"
    validation_share: float = 0.05
    test_share: float = 0.1
    language: str = "auto"
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.chunk_size_by_token < 16:
            raise ValueError(f"--chunk_size_by_token {self.chunk_size_by_token}: a chunk needs at least 16 tokens")
        if self.qa_amount_per_fact < max(1, self.role_amount_per_fact) or self.role_amount_per_fact < 0:
            amounts = f"{self.qa_amount_per_fact} questions a fact by {self.role_amount_per_fact} roles"
            raise ValueError(f"{amounts}: every role writes at least one; raise --qa_amount_per_fact")
        if min(self.validation_share, self.test_share) < 0 or self.validation_share + self.test_share >= 1:
            raise ValueError("--validation_share and --test_share must be positive and leave something to train on")


def asked(wording: Wording, name: str, about: str, check: Callable[[Any], Value], **values: str) -> Task[Value]:
    """Task: the checked reply to one of the calls of SCHEMAS."""
    return wording.ask(wording.request(name, about, SCHEMAS[name], LIMITS[name], **values), about, check)


# -------------------------------------------------------------------------------------------- first pass: facts


class Distilled(NamedTuple):
    """What came of a chunk: its theme and facts, or the stage at which it ended and why."""

    chunk: Chunk
    theme: str = ""
    facts: tuple[str, ...] = ()
    ended: tuple[str, str] | None = None


def distil(chunk: Chunk, wording: Wording) -> Task[Distilled]:
    """Task: the theme of a chunk, then its facts."""
    try:
        theme = yield from asked(wording, "theme", chunk.text, a_name("theme", 80), text=chunk.text)
    except Unusable as error:
        return Distilled(chunk, ended=("themes", str(error)))
    try:
        facts = yield from asked(wording, "facts", chunk.text, some_of("facts"), text=chunk.text, theme=theme)
    except Unusable as error:
        return Distilled(chunk, theme, ended=("fact_lists", str(error)))
    return Distilled(chunk, theme, facts)


def facts_of(corpus: Iterable[Chunk], generator: TextGenerator, wording: Wording, known: KnownFacts,
             stages: Stages) -> Iterator[Fact]:
    """Yields the facts of all chunks that are new and understood alone, in order; counts every step."""
    for found in generator.run(distil(chunk, wording) for chunk in corpus):
        yield from new_facts(found, known, stages)
        generator.rejected = stages.rejected.count


def new_facts(found: Distilled, known: KnownFacts, stages: Stages) -> Iterator[Fact]:
    """Yields the facts of a chunk that are kept, with their ids."""
    document, line = found.chunk.document, found.chunk.number + 1
    for stage in ("themes", "fact_lists"):
        if found.ended and found.ended[0] == stage:
            stages.reject(stage, document, line, found.ended[1], found.chunk.text)
            return
        stages.keep(stage)
    alone = [fact for fact in found.facts if not PRONOUN.match(fact)]
    reasons = iter(known.check(alone, document))
    for number, fact in enumerate(found.facts):
        dependent = PRONOUN.match(fact)
        reason = "it begins with a pronoun and is not understood alone" if dependent else next(reasons)
        if reason is not None:
            stages.reject("facts", document, line, reason, fact)
            continue
        stages.keep("facts")
        yield Fact(f"{document}#{found.chunk.number}-{number}", fact, document, found.chunk.number, found.theme)


# ---------------------------------------------------------------------------------------- second pass: questions


class Pair(NamedTuple):
    """A question with its answer, and the role that asks (none for the standard pair)."""

    question: str
    answer: str
    role: str | None = None


class Inquiry(NamedTuple):
    """What came of a fact: its standard pair, its rewritten pairs, and (stage, reason or None, row) of every step."""

    fact: Fact
    standard: Pair | None
    pairs: list[Pair]
    steps: list[tuple[str, str | None, Any]]


def inquire(fact: Fact, settings: Settings, wording: Wording) -> Task[Inquiry]:
    """Task: the standard question of a fact, the roles of its theme, and each role's rewrites."""
    found = Inquiry(fact, None, [], [])
    try:
        pair = yield from asked(wording, "question", fact.text, a_pair, fact=fact.text)
    except Unusable as error:
        found.steps.append(("questions", str(error), fact.text))
        return found
    if SKIP in (pair.question.upper().strip(". "), pair.answer.upper().strip(". ")):
        found.steps.append(("questions", "SKIP: not worth asking, says the model", fact.text))
        return found
    found.steps.append(("questions", None, fact.text))
    found = found._replace(standard=pair)
    if settings.role_amount_per_fact:
        yield from rewrite(found, settings, wording)
    return found


def rewrite(found: Inquiry, settings: Settings, wording: Wording) -> Task[None]:
    """Task: adds the pairs of all roles."""
    assert found.standard is not None
    theme, fact, count = found.fact.theme or found.fact.text, found.fact.text, settings.role_amount_per_fact
    try:
        roles = yield from asked(wording, "roles", theme, some_of("roles", count), count=str(count), theme=theme)
    except Unusable as error:
        found.steps.append(("roles", str(error), theme))
        return
    found.steps.append(("roles", None, theme))
    values = {"fact": fact, "question": found.standard.question, "answer": found.standard.answer}
    for place, role in enumerate(roles[:count]):
        amount = settings.qa_amount_per_fact // count + (place >= count - settings.qa_amount_per_fact % count)
        try:
            enough = EnoughPairs(amount)
            pairs = yield from asked(wording, "rewrite", fact, enough, role=role, count=str(amount), **values)
        except Unusable as error:
            found.steps.append(("rewrites", str(error), role))
            continue
        found.steps.append(("rewrites", None, role))
        add_pairs(found, [pair._replace(role=role) for pair in pairs], amount)


def add_pairs(found: Inquiry, pairs: list[Pair], amount: int) -> None:
    """Adds the pairs of one role: no question twice, no more than asked for."""
    asked = {pair.question.casefold() for pair in found.pairs}
    added = 0
    for pair in pairs:
        reason = "the same question was written before" if pair.question.casefold() in asked else None
        reason = reason or (f"more than the {amount} asked for" if added == amount else None)
        found.steps.append(("pairs", reason, [pair.question, pair.answer]))
        if reason is None:
            asked.add(pair.question.casefold())
            found.pairs.append(pair)
            added += 1


def inquiries(facts: Iterable[Fact], generator: TextGenerator, wording: Wording, settings: Settings,
              stages: Stages) -> Iterator[Inquiry]:
    """Yields what came of every fact, in order; counts every step."""
    for found in generator.run(inquire(fact, settings, wording) for fact in facts):
        for stage, reason, row in found.steps:
            if reason is None:
                stages.keep(stage)
            else:
                stages.reject(stage, found.fact.document, (found.fact.chunk or 0) + 1, reason, row)
        generator.rejected = stages.rejected.count
        yield found


# --------------------------------------------------------------------------------------------- checks of replies


def a_pair(value: dict[str, str]) -> Pair:
    """Checks that neither question nor answer is empty."""
    pair = Pair(value["question"].strip(), value["answer"].strip())
    if not pair.question or not pair.answer:
        raise Unusable("the question or the answer is empty")
    return pair


class EnoughPairs:
    """Checks that there are as many pairs as asked for; of a repaired reply also fewer are taken, but not none."""

    def __init__(self, amount: int) -> None:
        self._least = amount

    def __call__(self, value: dict[str, list[dict[str, str]]]) -> list[Pair]:
        least, self._least = self._least, 1
        pairs = [a_pair(pair) for pair in value["pairs"]]
        if len(pairs) < least:
            raise Unusable(f"{least} pairs are needed, there are {len(pairs)}")
        return pairs
