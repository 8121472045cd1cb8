"""Recorded replies for the demonstration's texts: written by rules from its invented world, no model is behind them.

    python -m data_processor.demo_replies --output output/text        texts/ and replies.jsonl
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_processor.calls import CallLog, Request
from data_processor.chunking import words_and_marks
from data_processor.collect import STAGES, Settings
from data_processor.collection import collect
from data_processor.corpus import Corpus
from data_processor.demo_world import RELATIONS, Relation, World, make_world, name_pool
from data_processor.documents import Documents
from data_processor.extract import STAGES as GRAPH_STAGES
from data_processor.prompts import Prompts
from data_processor.schema import Rejected, atomic_write
from data_processor.stages import Stages
from data_processor.text_encoder import load_encoder
from data_processor.text_generator import ReplyFunction, TextGenerator
from data_processor.wording import Wording

MODEL = "demonstration"  # the name under which the replies are recorded
PEOPLE, SEED = 120, 0
PARAGRAPHS = 12  # a text file
SETTINGS = Settings(chunk_size_by_token=256, qa_amount_per_fact=1, role_amount_per_fact=1)
ODD = 20  # one reply in so many is not the JSON that was asked for, as a model's would be
SENTENCE = re.compile(r"[A-Z][^.]*\.")

Spoken = dict[str, tuple[str, Relation, str]]  # sentence -> head, relation, tail


def make_texts(world: World) -> Iterator[str]:
    """Yields the world told: a paragraph for each person, work and organisation, what is said of it and no more."""
    verbs = {relation.name: relation.verb for relation in RELATIONS}
    told: dict[int, list[str]] = {}
    for head, name, tail in world.facts:
        told.setdefault(head, []).append(f"{world.names[head]} {verbs[name]} {world.names[tail]}.")
    paragraphs = [" ".join(sentences) for _, sentences in sorted(told.items())]
    for start in range(0, len(paragraphs), PARAGRAPHS):
        yield "\n\n".join(paragraphs[start : start + PARAGRAPHS]) + "\n"


def spoken_facts(world: World) -> Spoken:
    """The facts of a world by the sentence that states them."""
    by_name = {relation.name: relation for relation in RELATIONS}
    facts = ((world.names[head], by_name[name], world.names[tail]) for head, name, tail in world.facts)
    return {f"{head} {relation.verb} {tail}.": (head, relation, tail) for head, relation, tail in facts}


class WorldReplies:
    """Request -> the reply that the world's own facts give.

    One reply in ODD, told by a hash of the request, is a plain list, a pronoun instead of a name, or no answer at all;
    asked once more, all but a few come right.
    """

    def __init__(self, world: World) -> None:
        self._facts = spoken_facts(world)

    def __call__(self, request: Request) -> str:
        value = self._value(request)
        words = request.messages[-1]["content"].encode()
        number = int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "big")
        if number % ODD:
            return json.dumps(value, ensure_ascii=False)
        if number % 3 == 0:
            return "I would rather not say."
        if "facts" in value and number % 3 == 1:
            return "\n".join(f"{place}. {fact}" for place, fact in enumerate(value["facts"], start=1))
        if "facts" in value:
            value["facts"].append("It is a quiet place.")
        return f"Here it is:\n```json\n{json.dumps(value, ensure_ascii=False)}\n```"

    def _value(self, request: Request) -> dict[str, Any]:
        values = request.values
        if request.name in ("theme", "facts", "entities", "triples"):
            return self._of_text(request.name, [one for one in SENTENCE.findall(values["text"]) if one in self._facts])
        if request.name == "roles":
            return {"roles": ["librarian", "student", "journalist", "traveller", "teacher"][: int(values["count"])]}
        head, relation, tail = self._facts[values["fact"]]
        pairs = [{"question": question.format(head), "answer": tail} for question in relation.questions]
        return pairs[0] if request.name == "question" else {"pairs": pairs[1 : 1 + int(values["count"])]}

    def _of_text(self, name: str, sentences: list[str]) -> dict[str, Any]:
        facts = [self._facts[one] for one in sentences]
        if name == "theme":
            return {"theme": f"{facts[0][0]} and others"}
        if name == "facts":
            return {"facts": sentences}
        if name == "entities":
            return {"entities": list(dict.fromkeys(one for head, _, tail in facts for one in (head, tail)))}
        return {"triples": [{"head": head, "relation": kind.name, "tail": tail} for head, kind, tail in facts]}


def write_demonstration(output: Path) -> int:
    """Writes texts/ and replies.jsonl; returns the number of replies."""
    names = name_pool(reserved=True)
    rng = random.Random(SEED)
    rng.shuffle(names)
    world = make_world(rng, names, PEOPLE)
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts"
        texts.mkdir()
        for number, text in enumerate(make_texts(world)):
            (texts / f"chapter-{number:02}.txt").write_text(text, encoding="utf-8")
        replies = record(Path(folder), texts, WorldReplies(world))
        shutil.rmtree(output / "texts", ignore_errors=True)
        shutil.copytree(texts, output / "texts")
        with atomic_write(output / "replies.jsonl") as temporary:
            shutil.copyfile(Path(folder) / "calls.jsonl", temporary)
    return replies


def record(folder: Path, texts: Path, reply: WorldReplies) -> int:
    """Runs a collection by the rules and leaves its call log in `folder`; returns the number of calls."""
    corpus = Corpus(Documents(texts), SETTINGS.chunk_size_by_token, words_and_marks)
    with Rejected(folder / "rejected.jsonl") as rejected:
        stages = Stages(rejected, (*STAGES, *GRAPH_STAGES))
        corpus.survey(stages)
        with TextGenerator(ReplyFunction(reply, MODEL), CallLog(folder / "calls.jsonl")) as generator:
            encoder = load_encoder("hashing:256")
            collect(corpus, generator, Wording(Prompts()), SETTINGS, encoder, stages, folder, with_graph=True)
            return generator.asked


def main() -> None:
    """Writes the demonstration's texts and replies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    replies = write_demonstration(arguments.output)
    texts = len(list((arguments.output / "texts").iterdir()))
    print(f"{arguments.output}: {texts} texts, {replies} replies recorded by rules from the world they tell of")


if __name__ == "__main__":
    main()
