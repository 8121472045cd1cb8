"""A subgraph as a picture: SVG text, laid out by springs, with seeds and answers in colour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

import numpy as np

MAX_NODES = 60  # more would not be read; the best ones are drawn
FEW_NODES, WIDTH, HEIGHT = 20, 1200, 900  # the sheet of a small picture; a larger one grows with the root of its nodes
MARGIN, TOP = 115, 40  # beside the outermost dots there is room for half a name
COLOURS = {"seed": "#2b6cb0", "answer": "#2f855a", "both": "#805ad5", "other": "#a0aec0"}
WORDS = {"seed": "seed", "answer": "answer", "both": "seed and answer"}
NAME_LETTERS, RELATION_LETTERS = 28, 40
NAME_SIZE, RELATION_SIZE, LETTER = 13, 10, 0.58  # sizes of type; the mean width of a letter, in parts of its size
GREY = "#718096"
STEPS, GRAVITY = 200, 0.6
ALIKE = 5  # more edges of one relation at one node than this share one label


class Box(NamedTuple):
    """A rectangle that text or a dot covers, and how the text is anchored to it."""

    left: float
    top: float
    right: float
    bottom: float
    anchor: str = "middle"


def layout(count: int, edge_index: np.ndarray) -> np.ndarray:
    """Positions (n, 2) in the unit square (Fruchterman, Reingold 1991): nodes repel, edges pull; the same each time.

    A weak pull towards the middle keeps parts together that no edge joins.

    Args:
        count: n nodes. edge_index: (2, e) their numbers.
    """
    angles = 2 * np.pi * np.arange(count) / max(count, 1)
    places = 0.5 + 0.4 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    wanted = 0.8 / max(count, 1) ** 0.5
    for step in range(STEPS if count > 1 else 0):
        apart = places[:, None] - places[None]  # (n, n, 2)
        distance = np.maximum(np.linalg.norm(apart, axis=2, keepdims=True), 1e-3)
        force = (apart / distance * wanted**2 / distance).sum(axis=1) + GRAVITY * (0.5 - places)
        along = places[edge_index[0]] - places[edge_index[1]]  # (e, 2)
        pull = along * np.linalg.norm(along, axis=1, keepdims=True) / wanted
        np.add.at(force, edge_index[0], -pull)
        np.add.at(force, edge_index[1], pull)
        length = np.maximum(np.linalg.norm(force, axis=1, keepdims=True), 1e-9)
        places = places + force / length * np.minimum(length, 0.1 * (1 - step / STEPS))
    low, high = places.min(axis=0, initial=1.0), places.max(axis=0, initial=0.0)
    return (places - low) / np.maximum(high - low, 1e-9) if count > 1 else places


def draw(
    names: Sequence[str],
    edge_index: np.ndarray,
    relations: Sequence[str],
    kinds: Sequence[str],
    title: str,
    shrunk: float = 1.0,
) -> str:
    """The picture of a subgraph's best nodes and the edges between them, as the text of an SVG file.

    Args:
        names: (n,) best first. edge_index: (2, e) numbers of nodes, source above target. relations: (e,) names.
        kinds: (n,) "seed", "answer", "both" or "other".
        title: the line above it.
        shrunk: of the sheet; letters stay as they are, so a narrow page can hold them.
    """
    count = min(len(names), MAX_NODES)
    drawn = np.flatnonzero((edge_index < count).all(axis=0))
    width, height = (round(shrunk * side) for side in sheet(count))
    places = spread(count, edge_index[:, drawn], width, height)
    note = "" if count == len(names) else f" (the best {count} of {len(names)} nodes)"
    parts = [
        *opening(width, height),
        f'<text x="20" y="32" font-size="20">{clean(title, round(width / 12))}{note}</text>',
        *legend(kinds[:count]),
        *edge_parts(places, edge_index[:, drawn], [relations[edge] for edge in drawn.tolist()]),
        *node_parts(places, names[:count], kinds),
    ]
    return "\n".join([*parts, "</svg>\n"])


def sheet(count: int) -> tuple[int, int]:
    """Width and height of the picture of so many nodes."""
    scale = max(1.0, (count / FEW_NODES) ** 0.5)
    return round(WIDTH * scale), round(HEIGHT * scale)


def spread(count: int, edge_index: np.ndarray, width: int, height: int) -> np.ndarray:
    """The layout (n, 2) on a sheet, margins and the title's line left free."""
    return layout(count, edge_index) * [width - 2 * MARGIN, height - 2 * MARGIN - TOP] + [MARGIN, MARGIN + TOP / 2]


def opening(width: int, height: int) -> list[str]:
    """What a picture begins with: the sheet and the tip of its arrows."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
        f' font-size="{NAME_SIZE}">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="16" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{GREY}"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]


def edge_parts(places: np.ndarray, edge_index: np.ndarray, relations: Sequence[str]) -> Iterator[str]:
    """The lines of the edges, and then the names of their relations."""
    lines = bundles(edge_index, relations)
    for (source, target), names in lines.items():
        yield line_svg(places[source], places[target], names)
    yield from edge_labels(places, lines)


def bundles(edge_index: np.ndarray, relations: Sequence[str]) -> dict[tuple[int, int], list[str]]:
    """The distinct relations of every (source, target): one line is drawn for all of them."""
    lines: dict[tuple[int, int], list[str]] = {}
    for source, target, relation in zip(*edge_index.tolist(), relations, strict=True):
        names = lines.setdefault((source, target), [])
        if relation not in names:
            names.append(relation)
    return lines


def legend(kinds: Sequence[str]) -> Iterator[str]:
    """A dot and a word for every kind of node that there is, below the title."""
    left = 26
    for kind, word in WORDS.items():
        if kind in kinds:
            mark = f'<circle cx="{left}" cy="56" r="7" fill="{COLOURS[kind]}"/>'
            yield f'{mark}<text x="{left + 13}" y="61">{word}</text>'
            left += 50 + round(LETTER * NAME_SIZE * len(word))


def line_svg(source: np.ndarray, target: np.ndarray, relations: Sequence[str]) -> str:
    """A line with an arrow, or a small ring where source and target are one; its relations show under the pointer."""
    (x1, y1), (x2, y2) = source, target
    told = f"<title>{clean(', '.join(relations), 500)}</title>"
    if np.allclose(source, target):
        return f'<circle cx="{x1 + 12:.1f}" cy="{y1 - 12:.1f}" r="12" fill="none" stroke="{GREY}">{told}</circle>'
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{GREY}" marker-end="url(#tip)">{told}</line>'


def edge_labels(places: np.ndarray, lines: dict[tuple[int, int], list[str]]) -> Iterator[str]:
    """The relations' names at the middles of their lines.

    Where more than ALIKE lines of a node bear the same label, one of them stands for all, near that node, with their
    number. The label of a line that has another one in the opposite direction stands nearer to its own target.
    """
    shared: dict[tuple[int, str], int] = {}
    for (source, target), relations in lines.items():
        for node in {source, target}:
            shared[node, ", ".join(relations)] = shared.get((node, ", ".join(relations)), 0) + 1
    told: set[tuple[int, str]] = set()
    for (source, target), relations in lines.items():
        label = ", ".join(relations)
        hub = max(((node, label) for node in (source, target)), key=lambda key: shared[key])
        if hub in told:
            continue
        share = 0.65 if (target, source) in lines else 0.5
        if shared[hub] > ALIKE:
            told.add(hub)
            label, share = f"{shared[hub]} x {label}", 0.75 if hub[0] == target else 0.25
        x, y = places[source] + share * (places[target] - places[source]) - [0, 3]
        x, y = (x + 12, y - 26) if source == target else (x, y)
        yield text_svg(x, y, clean(label, RELATION_LETTERS), "middle", True)


def node_parts(places: np.ndarray, names: Sequence[str], kinds: Sequence[str]) -> Iterator[str]:
    """The dots of the nodes, and then their names."""
    for place, name, kind in zip(places, names, kinds, strict=False):
        x, y = place
        told = f"<title>{clean(name, 500)}</title>"
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" fill="{COLOURS[kind]}">{told}</circle>'
    yield from name_parts(places, names)


def name_parts(places: np.ndarray, names: Sequence[str]) -> Iterator[str]:
    """The names of nodes, each below, above or beside its dot, where it covers least."""
    taken = [Box(x - 8, y - 8, x + 8, y + 8) for x, y in places.tolist()]
    for (x, y), name in zip(places.tolist(), names, strict=True):
        shown = name if len(name) <= NAME_LETTERS else name[: NAME_LETTERS - 3] + "..."
        boxes = name_boxes(x, y, LETTER * NAME_SIZE * len(shown))
        best = min(boxes, key=lambda box: sum(overlap(box, other) for other in taken))
        taken.append(best)
        side = {"middle": (best.left + best.right) / 2, "start": best.left, "end": best.right}[best.anchor]
        yield text_svg(side, best.bottom - 3, clean(name, NAME_LETTERS), best.anchor, False)


def name_boxes(x: float, y: float, width: float) -> list[Box]:
    """Where the name of a node at (x, y) may stand, the usual place first."""
    half, tall = width / 2, NAME_SIZE + 2
    return [
        Box(x - half, y + 10, x + half, y + 10 + tall),
        Box(x - half, y - 10 - tall, x + half, y - 10),
        Box(x + 11, y - tall / 2, x + 11 + width, y + tall / 2, "start"),
        Box(x - 11 - width, y - tall / 2, x - 11, y + tall / 2, "end"),
    ]


def overlap(one: Box, other: Box) -> float:
    """The area that both cover."""
    wide = min(one.right, other.right) - max(one.left, other.left)
    tall = min(one.bottom, other.bottom) - max(one.top, other.top)
    return max(wide, 0.0) * max(tall, 0.0)


def text_svg(x: float, y: float, text: str, anchor: str, small: bool) -> str:
    """A text (escaped) with a white rim, so that it is read where it crosses a line."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    if small:
        place += f' font-size="{RELATION_SIZE}"'
    rim = f'<text {place} stroke="white" stroke-width="3" stroke-linejoin="round" aria-hidden="true">{text}</text>'
    return f"{rim}<text {place}{f' fill={chr(34)}{GREY}{chr(34)}' if small else ''}>{text}</text>"


def clean(text: str, letters: int) -> str:
    """Text as XML allows it: control characters are spaces, a long one ends in dots."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return escape(text if len(text) <= letters else text[: letters - 3] + "...")
