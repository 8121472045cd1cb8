"""A terminal chat: the answer as it comes, and under it what it was given from the graph."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from serving.flags import load, parser

if TYPE_CHECKING:
    from serving.evidence import Evidence
    from serving.pipeline import GraphQAPipeline

FACTS, LETTERS = 12, 300  # facts that are shown, and characters of a document


def chat(argv: Sequence[str]) -> None:
    """Asks in the terminal; the answer, and the facts that it was given."""
    flags = parser("chat", "Ask in the terminal. Ctrl-D or Ctrl-C ends it.")
    flags.add_argument("--question", help="answer this one and end")
    flags.add_argument("--without_graph", action="store_true", help="the model sees the bare question")
    flags.add_argument("--node", help="talk about the node of this name, in turns: answers know what was said before")
    arguments = flags.parse_args(argv)
    pipeline = load(arguments)
    asked = [arguments.question] if arguments.question else questions()
    try:
        if arguments.node is not None:
            talk(pipeline, None if arguments.without_graph else pipeline.about(arguments.node), asked)
            return
        for question in asked:
            show(pipeline, question, arguments.without_graph)
    except KeyboardInterrupt:
        print()


def questions() -> Iterator[str]:
    """Lines of the terminal, or of a pipe, until it ends; blank ones are passed over."""
    if sys.stdin.isatty():
        print("Ask about the graph; Ctrl-D ends.")
    while True:
        if sys.stdin.isatty():
            print("? ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            break
        if line.strip():
            yield line.strip()


def talk(pipeline: "GraphQAPipeline", evidence: "Evidence | None", asked: Iterable[str]) -> None:
    """Prints what the graph says about the node, then each answer while it comes."""
    if evidence is not None:
        print(*map(harmless, lines(evidence)), "", sep="\n", flush=True)
    conversation = pipeline.converse(evidence)
    for question in asked:
        for piece in conversation.stream(question):
            print(harmless(piece), end="", flush=True)
        print(flush=True)


def show(pipeline: "GraphQAPipeline", question: str, without_graph: bool) -> None:
    """Prints the answer while it comes, then its evidence; a question that cannot be answered is one sentence."""
    try:
        evidence = None if without_graph else pipeline.find(question)
    except ValueError as error:
        print(error)
        return
    for piece in pipeline.stream(question, evidence):
        print(harmless(piece), end="", flush=True)
    said = [] if evidence is None else map(harmless, lines(evidence))
    print("", *said, "", sep="\n", flush=True)


def lines(evidence: "Evidence") -> Iterator[str]:
    """What the model was given, best first: facts with their scores, then documents."""
    if not evidence.named:
        yield "  The question names nothing in the graph; what is nearest to its text was taken."
    if not evidence.nodes:
        yield "  The graph says nothing about it."
    elif not evidence.facts:
        yield f"  No fact, only {', '.join(node.name for node in evidence.nodes[:FACTS])}."
    for head, relation, tail, score in evidence.facts[:FACTS]:
        yield f"  {score:7.3f}  {head} | {relation} | {tail}" if evidence.scored else f"  {head} | {relation} | {tail}"
    more = len(evidence.facts) - FACTS
    if more > 0:
        yield f"  and {more} more"
    for one in evidence.documents:
        yield f"  {one.score:7.3f}  {one.title or one.id}: {short(one.text)}"
    if evidence.nodes:
        yield f"  {len(evidence.nodes)} nodes, {len(evidence.edges)} facts by {evidence.method}"


def harmless(text: str) -> str:
    """The text without control characters, with which a name of the graph could drive the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def short(text: str) -> str:
    """The text in one line, its end cut off."""
    text = " ".join(text.split())
    return text if len(text) <= LETTERS else text[: LETTERS - 3] + "..."
