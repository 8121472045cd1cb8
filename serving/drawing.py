"""Evidence as a picture: the layout of `data_processor.picture`, its nodes coloured by score."""

from collections.abc import Iterator, Sequence

import numpy as np

from data_processor.picture import clean, edge_parts, name_parts, opening, sheet, spread
from serving.evidence import Evidence, Node

MAX_NODES = 40
SHRUNK = 0.7  # of the sheet of a file: the column of a page is narrower, and names must be read
LOW, HIGH = (222, 235, 247), (8, 81, 156)  # colours of the lowest and the highest score
RING = "#dd6b20"  # around nodes that the question names


def picture(evidence: Evidence) -> str:
    """SVG text: the best nodes, with name, type and score under the pointer, and the edges between them."""
    nodes = evidence.nodes[:MAX_NODES]
    edges = [edge for edge in evidence.edges if max(edge.source, edge.target) < len(nodes)]
    edge_index = np.array([[edge.source for edge in edges], [edge.target for edge in edges]], dtype=np.int64)
    width, height = (round(SHRUNK * side) for side in sheet(len(nodes)))
    places = spread(len(nodes), edge_index, width, height)
    parts = [
        *opening(width, height),
        *legend(nodes, len(evidence.nodes)),
        *edge_parts(places, edge_index, [edge.relation for edge in edges]),
        *dots(places, nodes),
        *name_parts(places, [node.name for node in nodes]),
    ]
    return "\n".join([*parts, "</svg>"])


def dots(places: np.ndarray, nodes: Sequence[Node]) -> Iterator[str]:
    """A dot a node."""
    for (x, y), node, colour in zip(places, nodes, colours([node.score for node in nodes]), strict=True):
        kind = f", {node.kind}" if node.kind else ""
        told = f"<title>{clean(f'{node.name}{kind}', 500)}: {node.score:.4g}</title>"
        ring = f'stroke="{RING}" stroke-width="3"' if node.seed else 'stroke="#4a5568"'
        yield f'<circle class="node" cx="{x:.1f}" cy="{y:.1f}" r="9" fill="{colour}" {ring}>{told}</circle>'


def colours(scores: Sequence[float]) -> list[str]:
    """From LOW to HIGH by the root of a score's place between the lowest and the highest: walks leave small ones."""
    values = np.asarray(scores, dtype=np.float64)
    span = np.ptp(values) if len(values) else 0.0
    shares = np.sqrt((values - values.min()) / span) if span > 0 else np.full(len(values), 0.5)
    mixed = np.outer(1 - shares, LOW) + np.outer(shares, HIGH)
    return [f"rgb({round(red)},{round(green)},{round(blue)})" for red, green, blue in mixed]


def legend(nodes: Sequence[Node], retrieved: int) -> Iterator[str]:
    """What the colours and the ring mean, and how many nodes are not drawn."""
    scores = [node.score for node in nodes]
    left = 20
    if scores and max(scores) > min(scores):
        low, high = f"rgb{LOW}", f"rgb{HIGH}"
        yield f'<defs><linearGradient id="scores"><stop stop-color="{low}"/><stop offset="1" stop-color="{high}"/>'
        yield '</linearGradient></defs><rect x="20" y="20" width="120" height="12" fill="url(#scores)"/>'
        yield f'<text x="20" y="48">{min(scores):.3g}</text><text x="140" y="48" text-anchor="end">{max(scores):.3g}'
        yield '</text><text x="150" y="31">score</text>'
        left = 220
    if any(node.seed for node in nodes):
        yield f'<circle cx="{left + 8}" cy="26" r="8" fill="none" stroke="{RING}" stroke-width="3"/>'
        yield f'<text x="{left + 24}" y="31">named in the question</text>'
        left += 200
    if len(nodes) < retrieved:
        yield f'<text x="{left}" y="31">the best {len(nodes)} of {retrieved} nodes</text>'
