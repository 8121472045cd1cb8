"""The Translator's demonstration: questions about nodes of an invented world, and recorded replies that describe them.

    python -m data_processor.demo_nodes --output output/translator_demo      data/ and replies.jsonl

Rules write the replies from the prompts alone, no model is behind them. Nodes are embedded by their kind, and
described by it and by how many neighbours of which kind are joined to them how: to find its text one has to read a
graph.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from data_processor.calls import CallLog, Request
from data_processor.chunking import words_and_marks
from data_processor.demo import make_splits, write_questions, write_world
from data_processor.demo_world import RELATIONS, TYPES
from data_processor.graph_store import KnowledgeGraph, embed_graph
from data_processor.producer import KEY_WORDS, STAGES, Settings, Splits, shown_nodes, summaries
from data_processor.prompts import Prompts
from data_processor.schema import Rejected, atomic_write
from data_processor.stages import Stages
from data_processor.text_encoder import load_encoder
from data_processor.text_generator import ReplyFunction, TextGenerator
from data_processor.wording import Wording

MODEL = "demonstration"  # the name under which the replies are recorded
SETTINGS = Settings(max_neighbours=8, types=("person", "place", "organisation"), language="en")
ASKED = {"train": 900, "validation": 60, "test": 210}  # questions that only a graph answers
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
LINE = re.compile(r"- (?P<ties>.*) (?P<kind>\w+)$")


def reply(request: Request) -> str:
    """What the rules say to a prompt of the Producer."""
    return json.dumps(VALUES[request.name](request.values))


def node_value(values: dict[str, str]) -> dict[str, Any]:
    """The kind of a node, which is all that its text holds."""
    kind = values["text"]
    ties = [relation.name for relation in RELATIONS if kind in (relation.head, relation.tail)]
    others = [other for other in TYPES if other != kind]
    return {"summary": f"{kind}.", "key_words": [kind, *ties, *others][:KEY_WORDS]}


def neighbours_value(values: dict[str, str]) -> dict[str, str]:
    """How many neighbours of a kind are joined in the same way: "work | written by | two\none | lives in | place"."""
    counts: Counter[tuple[str, str]] = Counter()
    for line in values["text"].splitlines():
        match = LINE.match(line)
        assert match, line
        counts[match["ties"], match["kind"]] += 1
    lines = []
    for (ties, kind), count in sorted(counts.items()):
        ends = (kind, NUMBERS[count]) if ties.startswith("←") else (NUMBERS[count], kind)
        lines.append(f" | {ties.strip('← →')} | ".join(ends))
    return {"summary": "\n".join(lines)}


def common_value(values: dict[str, str]) -> dict[str, str]:
    """The kinds that both texts name."""
    kinds = [kind for kind in TYPES if kind in values["summary"] + values["neighbours"]]
    return {"common": f"{' '.join(kinds)}."}


VALUES = {"node": node_value, "neighbours": neighbours_value, "common": common_value}


def write_demonstration(output: Path, seed: int, questions: int) -> tuple[KnowledgeGraph, int]:
    """Writes data/ (graph, questions that only the graph answers, their subgraphs) and replies.jsonl."""
    splits = make_splits(seed, questions)
    data = output / "data"
    graph = write_world(data, splits, kinds_alone=True)
    for name, split in splits.items():
        closed = [question for question in split.questions if question.answer_node is None][: ASKED[name]]
        write_questions(data, name, dataclasses.replace(split, questions=closed), graph)
    graph = embed_graph(graph.path, load_encoder("hashing"))
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "calls.jsonl"
        with Rejected(Path(folder) / "rejected.jsonl") as rejected:
            with TextGenerator(ReplyFunction(reply, MODEL), CallLog(log)) as generator:
                nodes = shown_nodes(graph, SETTINGS, words_and_marks)
                wording = Wording(Prompts(), SETTINGS.language)
                for _ in summaries(
                    nodes, generator, wording, SETTINGS, Splits(data, SETTINGS), Stages(rejected, STAGES)
                ):
                    pass
        with atomic_write(output / "replies.jsonl") as temporary:
            shutil.copyfile(log, temporary)
    return graph, generator.asked


def main() -> None:
    """Writes the demonstration's data and replies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--questions", type=int, default=3600, help="that the world is large enough for")
    arguments = parser.parse_args()
    graph, replies = write_demonstration(arguments.output, arguments.seed, arguments.questions)
    print(f"{arguments.output}: {graph.num_nodes} nodes, {graph.num_edges} edges, {replies} replies recorded by rules")


if __name__ == "__main__":
    main()
