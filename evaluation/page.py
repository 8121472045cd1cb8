"""A report as one HTML page that needs no network, and as Markdown: headings, sentences, tables, drawings."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_processor.schema import atomic_write

STYLE = """
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; max-width: 50rem; margin: 2.5rem auto 5rem;
  padding: 0 1.25rem; color: #1f2328; background: #fff; }
h1 { font-size: 1.65rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .6rem; padding-top: .7rem; border-top: 1px solid #d8dce1; }
p { margin: .55rem 0; }
.note { color: #57606a; }
.wide { overflow-x: auto; margin: .9rem 0; }
table { border-collapse: collapse; font-size: .875rem; line-height: 1.4; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #e3e6ea; }
.dense { font-size: .8rem; }
.dense th, .dense td { padding-right: .5rem; }
th { border-bottom: 1px solid #8c959f; font-weight: 600; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
td.n { white-space: nowrap; }
figure { margin: 1.1rem 0; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { font-size: .875rem; color: #57606a; margin-top: .25rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: .4rem 1.6rem; }
.grid figure { margin: .4rem 0; }
pre { background: #f6f8fa; padding: .7rem .9rem; overflow-x: auto; font-size: .875rem; line-height: 1.45; }
"""
MANY_COLUMNS = 9  # more are set smaller
ONE = r"[+-]?(\d[\d,]*\.?\d*|\.\d+)(e[+-]?\d+)?"
NUMBER = re.compile(
    rf"-|{ONE}|({ONE}\n)?{ONE} to {ONE}"
)  # nothing, a number, an interval, a number above its interval


@dataclass(frozen=True)
class Text:
    """A sentence or several; a `note` is set in grey."""

    text: str
    note: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells, the first one its header; no more than a header is not shown."""

    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """SVG text, which is ours and escaped, and what it shows; an empty one is not shown."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Grid:
    """Small figures side by side, where the page is wide enough."""

    figures: Sequence[Figure]


@dataclass(frozen=True)
class Code:
    """Lines to be copied."""

    text: str


Block = Text | Table | Figure | Grid | Code


@dataclass(frozen=True)
class Section:
    """A heading (possibly none) and what stands below it; without anything below, it is left out."""

    title: str
    blocks: Sequence[Block]

    @property
    def table(self) -> Sequence[Sequence[str]]:
        """The rows of its first table."""
        return next((block.rows for block in self.blocks if isinstance(block, Table)), [])


def shown(sections: Sequence[Section]) -> list[Section]:
    """The sections that have something to show, with the blocks that do."""
    kept = [Section(one.title, [block for block in one.blocks if has_content(block)]) for one in sections]
    return [one for one in kept if one.blocks]


def has_content(block: Block) -> bool:
    if isinstance(block, Table):
        return len(block.rows) > 1
    if isinstance(block, Figure):
        return bool(block.svg)
    return any(one.svg for one in block.figures) if isinstance(block, Grid) else bool(block.text)


# -------------------------------------------------------------------------------------------------------------- HTML
def to_html(title: str, sections: Sequence[Section], subtitle: str = "") -> str:
    """The report as one HTML page without scripts, links or anything else that is fetched."""
    body = [f"<h1>{html.escape(title)}</h1>"]
    body += [f'<p class="note">{html.escape(subtitle)}</p>'] if subtitle else []
    for section in shown(sections):
        body += [f"<h2>{html.escape(section.title)}</h2>"] if section.title else []
        body += [block_html(block) for block in section.blocks]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    return "\n".join(["<!doctype html>", f'<html lang="en"><head>{head}</head><body>', *body, "</body></html>", ""])


def block_html(block: Block) -> str:
    if isinstance(block, Text):
        return f"<p{' class=' + chr(34) + 'note' + chr(34) if block.note else ''}>{html.escape(block.text)}</p>"
    if isinstance(block, Code):
        return f"<pre>{html.escape(block.text)}</pre>"
    if isinstance(block, Table):
        rows = [row_html(row, "td" if i else "th", numeric(block.rows)) for i, row in enumerate(block.rows)]
        kind = ' class="dense"' if len(block.rows[0]) > MANY_COLUMNS else ""
        return "\n".join([f'<div class="wide"><table{kind}>', *rows, "</table></div>"])
    if isinstance(block, Grid):
        return "\n".join(['<div class="grid">', *(block_html(one) for one in block.figures if one.svg), "</div>"])
    return f"<figure>{block.svg}<figcaption>{html.escape(block.caption)}</figcaption></figure>"


def numeric(rows: Sequence[Sequence[str]]) -> list[bool]:
    """Which columns hold numbers, and nothing else, below the header."""
    return [all(NUMBER.fullmatch(cell) for cell in column) for column in zip(*rows[1:], strict=True)]


def row_html(cells: Sequence[str], tag: str, numbers: Sequence[bool]) -> str:
    parts = []
    for cell, number in zip(cells, numbers, strict=True):
        kind = ' class="n"' if number else ""
        text = html.escape(cell).replace("\n", "<br>")
        text = (
            re.sub(r"(?<=[_@])", "<wbr>", text) if tag == "th" else text
        )  # names of metrics and flags may break there
        parts.append(f"<{tag}{kind}>{text}</{tag}>")
    return f"<tr>{''.join(parts)}</tr>"


# ---------------------------------------------------------------------------------------------------------- Markdown
def to_markdown(title: str, sections: Sequence[Section], subtitle: str = "") -> str:
    """The report as Markdown; drawings are in the HTML page, their captions in both."""
    lines = [f"# {title}", ""] + ([subtitle, ""] if subtitle else [])
    for section in shown(sections):
        lines += [f"## {section.title}", ""] if section.title else []
        for block in section.blocks:
            lines += [*block_markdown(block), ""]
    return "\n".join(lines)


def block_markdown(block: Block) -> list[str]:
    if isinstance(block, Text):
        return [block.text]
    if isinstance(block, Code):
        return ["```", block.text, "```"]
    if isinstance(block, Figure):
        return [f"*Drawn in the page: {block.caption}*"]
    if isinstance(block, Grid):
        return [line for one in block.figures if one.svg for line in block_markdown(one)]
    lines = []
    for i, row in enumerate(block.rows):
        cells = [cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>") for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
        lines += ["|" + " --- |" * len(row)] if i == 0 else []
    return lines


def write_page(output: str | Path, title: str, sections: Sequence[Section], subtitle: str = "") -> Path:
    """Writes `output` (HTML) and the same as Markdown beside it; returns `output`."""
    output = Path(output)
    texts = {output: to_html(title, sections, subtitle)}
    texts[output.with_suffix(".md")] = to_markdown(title, sections, subtitle)
    for path, text in texts.items():
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return output
