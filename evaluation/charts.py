"""Charts as SVG text for a page without scripts: lines or dots over two axes, values under the pointer."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666")  # Okabe and Ito's, ...
COLOURS += ("#8b4513", "#6a3d9a", "#7a9a01", "#e7298a", "#1f1f1f")  # ... and where they are not enough
GREY = "#9aa3ad"
WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 74, 16, 14, 46  # margins around the plot
LEGEND_ROW = 20
MOST_DOTS = 40  # of a line; more would hide it
LETTER = 6.6  # mean width of a letter of the legend, whose size is 12
WANTED_TICKS = 5


@dataclass(frozen=True)
class Axis:
    """What an axis shows.

    Attributes:
        label: with its unit.
        log: the numbers, all above 0, by their logarithms.
        names: values that are names: they stand at 0, 1, 2, ...
    """

    label: str
    log: bool = False
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series:
    """Points of one thing.

    Attributes:
        name: in the legend; "" keeps it out.
        points: (x, y).
        line: joined, in their order; else dots.
        told: what each dot says under the pointer.
        colour: of the series; None for the next of COLOURS.
        hollow: dots are rings, lines are dashed.
    """

    name: str
    points: Sequence[tuple[float, float]]
    line: bool = True
    told: Sequence[str] = field(default_factory=list)
    colour: str | None = None
    hollow: bool = False


@dataclass(frozen=True)
class Scale:
    """From numbers to places between `start` and `end`."""

    low: float
    high: float
    log: bool
    start: float
    end: float

    def __call__(self, value: float) -> float:
        low, high, at = (self._of(one) for one in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (at - low) / (high - low)

    def _of(self, value: float) -> float:
        return math.log10(value) if self.log else value


def chart(series: Sequence[Series], x: Axis, y: Axis, width: int = WIDTH, height: int = HEIGHT) -> str:
    """The chart as SVG text, or "" where no series has a point that is a number.

    Args:
        series: what is drawn, the first at the bottom.
        x, y: the axes.
        width, height: of its own coordinates; a page scales it.
    """
    series = [finite(one, x, y) for one in series]
    points = [point for one in series for point in one.points]
    if not points:
        return ""
    rows = legend_rows(series, width)
    top = TOP + LEGEND_ROW * len(rows)
    across = scale([point[0] for point in points], x, LEFT, width - RIGHT)
    up = scale([point[1] for point in points], y, height - BOTTOM, top)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(y.label)} over {escape(x.label)}" font-size="12" font-family="inherit">',
        *legend(rows),
        *frame(across, up, x, y),
        *(part for i, one in enumerate(series) for part in drawn(one, colour_of(one, i), across, up)),
    ]
    return "\n".join([*parts, "</svg>"])


def finite(series: Series, x: Axis, y: Axis) -> Series:
    """The series without points that cannot be drawn: not a number, or not above 0 on an axis of logarithms."""
    kept = [
        i
        for i, point in enumerate(series.points)
        if all(math.isfinite(value) and (value > 0 or not axis.log) for value, axis in zip(point, (x, y), strict=True))
    ]
    told = [series.told[i] for i in kept] if series.told else []
    points = [series.points[i] for i in kept]
    return Series(series.name, points, series.line, told, series.colour, series.hollow)


def colour_of(series: Series, place: int) -> str:
    return series.colour or COLOURS[place % len(COLOURS)]


def scale(values: Sequence[float], axis: Axis, start: float, end: float) -> Scale:
    """A scale that holds all values, with some room at both ends."""
    low, high = min(values), max(values)
    if axis.names:
        return Scale(-0.5, len(axis.names) - 0.5, False, start, end)
    if axis.log:
        room = (high / low) ** 0.04 if high > low else 2.0
        return Scale(low / room, high * room, True, start, end)
    room = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
    return Scale(low - room, high + room, False, start, end)


def ticks(scale: Scale, axis: Axis) -> list[tuple[float, str]]:
    """Places of an axis and what is written there."""
    if axis.names:
        return [(float(i), name) for i, name in enumerate(axis.names)]
    if not axis.log:
        return [(value, short(value)) for value in round_numbers(scale.low, scale.high)]
    powers = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5)):
        values = [digit * 10.0**power for power in powers for digit in digits]
        inside = [value for value in values if scale.low <= value <= scale.high]
        if len(inside) >= 3:
            return [(value, short(value)) for value in inside]
    return [(value, short(value)) for value in round_numbers(scale.low, scale.high)]


def round_numbers(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between the two."""
    rough = (high - low) / WANTED_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(i * step, 12) for i in range(first, last + 1)]


def short(value: float) -> str:
    """A number as an axis shows it."""
    if value and not 1e-3 <= abs(value) < 1e5:
        digits, power = f"{value:.3g}".split("e") if "e" in f"{value:.3g}" else (f"{value:.3g}", "")
        return f"{digits}e{int(power)}" if power else digits
    return f"{value:.6g}"


def frame(across: Scale, up: Scale, x: Axis, y: Axis) -> Iterator[str]:
    """Grid, ticks and labels of both axes."""
    left, right, bottom, top = across.start, across.end, up.start, up.end
    for value, text in ticks(up, y):
        place = up(value)
        yield f'<line x1="{left}" x2="{right}" y1="{place:.1f}" y2="{place:.1f}" stroke="#e3e6ea"/>'
        yield f'<text x="{left - 8}" y="{place + 4:.1f}" text-anchor="end" fill="#444">{escape(text)}</text>'
    yield f'<line x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}" stroke="#555"/>'
    for value, text in ticks(across, x):
        place = across(value)
        yield f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{bottom}" y2="{bottom + 5}" stroke="#555"/>'
        yield f'<text x="{place:.1f}" y="{bottom + 18}" text-anchor="middle" fill="#444">{escape(text)}</text>'
    middle = (top + bottom) / 2
    yield f'<text x="{(left + right) / 2}" y="{bottom + 38}" text-anchor="middle" fill="#222">{escape(x.label)}</text>'
    turned = f'transform="translate(14 {middle}) rotate(-90)" text-anchor="middle" fill="#222"'
    yield f"<text {turned}>{escape(y.label)}</text>"


def drawn(series: Series, colour: str, across: Scale, up: Scale) -> Iterator[str]:
    """A line with a small dot at each point, or the dots alone."""
    places = [(across(x), up(y)) for x, y in series.points]
    if series.line and len(places) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dashed = ' stroke-dasharray="5 3"' if series.hollow else ""
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dashed}/>'
    radius = (2.5 if len(places) <= MOST_DOTS else 0) if series.line else 5
    fill = f'fill="white" stroke="{colour}" stroke-width="1.8"' if series.hollow else f'fill="{colour}"'
    for i, (x, y) in enumerate(places if radius else []):
        said = series.told[i] if series.told else f"{short(series.points[i][0])}: {series.points[i][1]:.4g}"
        said = f"{series.name}, {said}" if series.name and not series.told else said
        dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" {fill}>'
        yield f"{dot}<title>{escape(said)}</title></circle>"


def legend_rows(series: Sequence[Series], width: int) -> list[list[tuple[float, str, str, bool]]]:
    """(left, name, colour, hollow) of what the legend shows, broken into rows; one series alone needs none."""
    named = [(one.name, colour_of(one, i), one.hollow) for i, one in enumerate(series) if one.name and one.points]
    rows: list[list[tuple[float, str, str, bool]]] = []
    left = width
    for name, colour, hollow in named if len(named) > 1 else []:
        room = 34 + LETTER * len(name)
        if left + room > width - RIGHT:
            rows.append([])
            left = LEFT
        rows[-1].append((left, name, colour, hollow))
        left += room
    return rows


def legend(rows: Sequence[Sequence[tuple[float, str, str, bool]]]) -> Iterator[str]:
    """A dot and a name for every series."""
    for i, row in enumerate(rows):
        place = TOP + LEGEND_ROW * i
        for left, name, colour, hollow in row:
            fill = f'fill="white" stroke="{colour}" stroke-width="1.8"' if hollow else f'fill="{colour}"'
            yield f'<circle cx="{left + 5:.1f}" cy="{place - 4}" r="4.5" {fill}/>'
            yield f'<text x="{left + 15:.1f}" y="{place}" fill="#222">{escape(name)}</text>'
