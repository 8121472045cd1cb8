"""A subgraph as a picture: SVG text, laid out by springs, with seeds and answers in colour."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

import numpy as np

MAX_NODES = 60  # more would not be read; the best ones are drawn
WIDTH, HEIGHT, MARGIN = 1200, 900, 90
COLOURS = {"seed": "#2b6cb0", "answer": "#2f855a", "both": "#805ad5", "other": "#a0aec0"}
NAME_LETTERS = 28
STEPS = 200


def layout(count: int, edge_index: np.ndarray) -> np.ndarray:
    """Positions (n, 2) in the unit square (Fruchterman, Reingold 1991): nodes repel, edges pull; the same each time.

    Args:
        count: n nodes. edge_index: (2, e) their numbers.
    """
    angles = 2 * np.pi * np.arange(count) / max(count, 1)
    places = 0.5 + 0.4 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    wanted = 0.8 / max(count, 1) ** 0.5
    for step in range(STEPS if count > 1 else 0):
        apart = places[:, None] - places[None]  # (n, n, 2)
        distance = np.maximum(np.linalg.norm(apart, axis=2, keepdims=True), 1e-3)
        force = (apart / distance * wanted**2 / distance).sum(axis=1)
        along = places[edge_index[0]] - places[edge_index[1]]  # (e, 2)
        pull = along * np.linalg.norm(along, axis=1, keepdims=True) / wanted
        np.add.at(force, edge_index[0], -pull)
        np.add.at(force, edge_index[1], pull)
        length = np.maximum(np.linalg.norm(force, axis=1, keepdims=True), 1e-9)
        places = places + force / length * np.minimum(length, 0.1 * (1 - step / STEPS))
    low, high = places.min(axis=0, initial=1.0), places.max(axis=0, initial=0.0)
    return (places - low) / np.maximum(high - low, 1e-9) if count > 1 else places


def draw(
    names: Sequence[str], edge_index: np.ndarray, relations: Sequence[str], kinds: Sequence[str], title: str
) -> str:
    """The picture of a subgraph's best nodes and the edges between them, as the text of an SVG file.

    Args:
        names: (n,) best first. edge_index: (2, e) numbers of nodes, source above target. relations: (e,) names.
        kinds: (n,) "seed", "answer", "both" or "other".
        title: the line above it.
    """
    count = min(len(names), MAX_NODES)
    drawn = np.flatnonzero((edge_index < count).all(axis=0))
    places = layout(count, edge_index[:, drawn]) * [WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN] + MARGIN
    note = "" if count == len(names) else f" ({count} of {len(names)} nodes drawn)"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
        ' font-size="13">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="16" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#718096"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="20" y="30" font-size="18">{clean(title, 110)}{note}</text>',
    ]
    for edge in drawn.tolist():
        parts.append(edge_svg(places[edge_index[0, edge]], places[edge_index[1, edge]], relations[edge]))
    for place, name, kind in zip(places, names, kinds, strict=False):
        parts.append(node_svg(place, name, kind))
    return "\n".join([*parts, "</svg>\n"])


def edge_svg(source: np.ndarray, target: np.ndarray, relation: str) -> str:
    """A line with an arrow and its relation's name; a small ring where source and target are one."""
    (x1, y1), (x2, y2) = source, target
    label = clean(relation, NAME_LETTERS)
    if np.allclose(source, target):
        ring = f'<circle cx="{x1 + 12:.1f}" cy="{y1 - 12:.1f}" r="12" fill="none" stroke="#718096"/>'
        return f'{ring}<text x="{x1 + 26:.1f}" y="{y1 - 14:.1f}" font-size="10" fill="#718096">{label}</text>'
    line = f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#718096" marker-end="url(#tip)"/>'
    middle = f'x="{(x1 + x2) / 2:.1f}" y="{(y1 + y2) / 2 - 3:.1f}"'
    return f'{line}<text {middle} font-size="10" fill="#718096" text-anchor="middle">{label}</text>'


def node_svg(place: np.ndarray, name: str, kind: str) -> str:
    """A dot in the colour of its kind and its name."""
    x, y = place
    dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" fill="{COLOURS[kind]}"><title>{clean(name, 500)}</title></circle>'
    return f'{dot}<text x="{x:.1f}" y="{y + 22:.1f}" text-anchor="middle">{clean(name, NAME_LETTERS)}</text>'


def clean(text: str, letters: int) -> str:
    """Text as XML allows it: control characters are spaces, a long one ends in dots."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return escape(text if len(text) <= letters else text[: letters - 3] + "...")
