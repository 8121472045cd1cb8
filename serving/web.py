"""A page for questions: the answer, the subgraph as a picture, facts and documents; by Gradio, for this machine alone.

Everything that the page shows comes from this process: no font, script or figure is fetched from elsewhere.
"""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from serving.flags import load, parser

if TYPE_CHECKING:
    from gradio import Blocks

    from serving.evidence import Evidence
    from serving.pipeline import GraphQAPipeline

HOST = "127.0.0.1"
FACTS, EXAMPLES = 30, 4
STYLE = """
.facts {width: 100%; border-collapse: collapse}
.facts, .facts tr, .facts td {border: 0 !important} .facts td {padding: 3px 8px !important}
.facts tr + tr td {border-top: 1px solid #e2e8f0 !important}
.facts .score, .document .score {color: #718096; font-variant-numeric: tabular-nums}
.document {margin: 0 0 .8em} .picture svg {width: 100%; height: auto; max-height: 70vh; border: 1px solid #e2e8f0}
"""
Shown = tuple[str, str, str, str]  # answer, picture, facts, documents; the last three are HTML


def web(argv: Sequence[str]) -> None:
    """Serves a page: question, answer, subgraph drawn, documents."""
    flags = parser("web", "Serve a page for questions on 127.0.0.1.")
    flags.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    arguments = flags.parse_args(argv)
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the page needs Gradio: pip install gradio; or ask in the terminal: python -m serving chat")
    blocks = serve(load(arguments), arguments.port)
    print(f"{blocks.local_url}  Ctrl-C ends it.", flush=True)
    blocks.block_thread()


def serve(pipeline: "GraphQAPipeline", port: int) -> "Blocks":
    """Serves the page from a thread; `local_url` is its address.

    Raises:
        ValueError: the port is taken.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    import gradio

    local = gradio.themes.Default(font=["sans-serif"], font_mono=["monospace"])  # the usual ones are Google's
    blocks = page(pipeline)
    try:
        blocks.launch(
            server_name=HOST, server_port=port, share=False, inbrowser=False, prevent_thread_lock=True, quiet=True,
            footer_links=[], theme=local, css=STYLE, ssr_mode=False, enable_monitoring=False, mcp_server=False,
        )  # fmt: skip
    except OSError as error:
        raise ValueError(f"port {port} of {HOST} cannot be used ({error}); choose another with --port") from error
    return blocks


def page(pipeline: "GraphQAPipeline") -> "Blocks":
    """The page: what is asked on the left, what the graph says on the right."""
    import gradio

    def respond(question: str, without_graph: bool) -> Iterator[Shown]:
        yield from answered(pipeline, question, without_graph)

    with gradio.Blocks(title="GraphLLM", analytics_enabled=False) as blocks:
        gradio.Markdown(f"## Ask the graph\n{pipeline.finder.graph.num_nodes:,} nodes, "
                        f"{pipeline.finder.graph.num_edges:,} facts")  # fmt: skip
        with gradio.Row():
            with gradio.Column(scale=2):
                question = gradio.Textbox(label="Question", elem_id="question", autofocus=True)
                without_graph = gradio.Checkbox(label="without graph", elem_id="without_graph")
                ask = gradio.Button("Ask", variant="primary", elem_id="ask")
                answer = gradio.Textbox(label="Answer", elem_id="answer", interactive=False, lines=2)
                documents = gradio.HTML(elem_id="documents")
            with gradio.Column(scale=3):
                drawn = gradio.HTML(elem_id="picture", elem_classes="picture")
                facts = gradio.HTML(elem_id="facts")
        known = pipeline.finder.examples(EXAMPLES)
        if known:
            gradio.Examples(known, inputs=question, cache_examples=False)
        for event in (ask.click, question.submit):
            event(respond, [question, without_graph], [answer, drawn, facts, documents], show_progress="minimal",
                  api_name=False)  # fmt: skip
    return blocks


def answered(pipeline: "GraphQAPipeline", question: str, without_graph: bool) -> Iterator[Shown]:
    """What the page shows, first the evidence, then more and more of the answer; what cannot be answered is said."""
    try:
        evidence = None if without_graph else pipeline.find(question)
        if without_graph and not question.strip():
            raise ValueError("the question is empty; ask about something")
    except ValueError as error:
        yield str(error), "", "", ""
        return
    shown = ("", "", "") if evidence is None else html(evidence)
    yield "", *shown
    text = ""
    for piece in pipeline.stream(question, evidence):
        text += piece
        yield text, *shown


def html(evidence: "Evidence") -> tuple[str, str, str]:
    """Picture, facts and documents; every text of the graph is escaped."""
    from serving.drawing import picture

    return picture(evidence), facts_html(evidence), documents_html(evidence)


def facts_html(evidence: "Evidence") -> str:
    """A row a fact, best first."""
    named = "" if evidence.named else "<p>The question names nothing in the graph; what is nearest was taken.</p>"
    rows = "".join(
        f'<tr>{score_cell(score) if evidence.scored else ""}{"".join(f"<td>{safe(name)}</td>" for name in names)}</tr>'
        for *names, score in evidence.facts[:FACTS]
    )
    more = len(evidence.facts) - FACTS
    left_out = f"<p>and {more} more</p>" if more > 0 else ""
    counts = f"{len(evidence.nodes)} nodes, {len(evidence.edges)} facts by {safe(evidence.method)}"
    return f'{named}<h4>Facts</h4><table class="facts">{rows}</table>{left_out}<p>{counts}</p>'


def score_cell(score: float) -> str:
    """A cell with a score."""
    return f'<td class="score">{score:.3f}</td>'


def documents_html(evidence: "Evidence") -> str:
    """A paragraph a document, best first."""
    heading = "<h4>Documents</h4>" if evidence.documents else ""
    return heading + "".join(
        f'<div class="document"><b>{safe(one.title or one.id)}</b> <span class="score">{one.score:.3f}</span><br>'
        f"{safe(one.text)}</div>"
        for one in evidence.documents
    )


def safe(text: Any) -> str:
    """Text as HTML shows it, whatever stands in it."""
    return escape(str(text))
