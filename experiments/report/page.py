"""A report as one HTML file: inline style and pictures, nothing from elsewhere; light and dark."""

import html
from collections.abc import Iterable, Sequence

from markdown_it import MarkdownIt

STYLE = """
:root { color-scheme: light dark; --ink: #1d2228; --page: #fff; --soft: #5b6570; --line: #d8dde3;
  --band: #f4f6f8; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --page: #14181c; --soft: #9aa5b1;
  --line: #333c45; --band: #1c2228; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(.8rem, 3vw, 2.5rem) 3rem; max-width: 58rem;
  background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .6rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p, ul { margin: .5rem 0; }
ul { padding-left: 1.3rem; }
.verdict { font-size: 1.2rem; line-height: 1.4; font-weight: 600; margin: .8rem 0; }
details table { font-size: .82rem; }
details { margin: .6rem 0; border-top: 1px solid var(--line); padding-top: .5rem; }
summary { cursor: pointer; font-weight: 600; }
.soft, figcaption, dt { color: var(--soft); }
.finding { border-left: 4px solid var(--accent); padding: .1rem 1rem; background: var(--band); }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; margin: .6rem 0; }
table { border-spacing: 0; font-size: .88rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .35rem .5rem; text-align: left; white-space: nowrap; vertical-align: top; }
th { background: var(--band); font-weight: 600; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--page);
  border-right: 1px solid var(--line); white-space: normal; min-width: 10.8rem; }
th:first-child { background: var(--band); }
thead th { white-space: normal; min-width: 3.5rem; vertical-align: bottom; }
tr + tr td { border-top: 1px solid var(--line); }
tr.new td { border-top: 2px solid var(--soft); }
td.higher, td.lower { font-weight: 600; }
td.words { white-space: normal; min-width: 9.6rem; }
td.long { min-width: 16rem; }
small { display: block; color: var(--soft); font-size: .8rem; }
.figures { display: grid; gap: 0 2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 23rem), 1fr)); }
figure { margin: .8rem 0; min-width: 0; }
figure.many { grid-column: 1 / -1; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 23rem), 1fr));
  gap: .6rem 1.2rem; }
.panels svg { width: 100%; height: auto; max-width: 28rem; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; padding: 0; margin: .4rem 0;
  list-style: none; font-size: .88rem; max-width: none; }
.legend i { display: inline-block; width: 1.5rem; margin-right: .4rem; vertical-align: middle;
  border-top: 3px solid; }
.legend i.dashed { border-top-style: dashed; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .92rem; }
dd { margin: 0; overflow-wrap: anywhere; }
code { font-size: .9em; overflow-wrap: anywhere; }
@media (max-width: 30rem) {
  .many .panels { grid-template-columns: none; grid-auto-flow: column; grid-auto-columns: 88%;
    overflow-x: auto; scroll-snap-type: x proximity; }
  .many .panels svg { scroll-snap-align: start; }
  table { font-size: .8rem; }
  th, td { padding: .35rem .3rem; }
  th:first-child, td:first-child { min-width: 6.6rem; max-width: 7.4rem; }
  small { font-size: .74rem; }
  td.words { min-width: 7rem; }
  td.long { min-width: 14rem; }
  dl { grid-template-columns: 1fr; font-size: .84rem; }
  dd { margin-bottom: .4rem; }
}
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page of these parts, which are HTML."""
    body = "\n".join(parts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def element(name: str, text: str, kind: str = "") -> str:
    """An element with a text, which is escaped."""
    attribute = f' class="{kind}"' if kind else ""
    return f"<{name}{attribute}>{html.escape(text)}</{name}>"


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1, against: int | None = None
) -> str:
    """A table that scrolls by itself where the page is narrow; its first column stays in sight.

    Args:
      header: Heads of the columns.
      rows: Texts.
      names: So many columns name a row. They are shown as the first one, the last of them below the
        others; a line is drawn where the others change.
      against: The column of what a row is compared with, which is shown below its name.
    """
    lines = [f"<thead><tr>{_cells('th', header, names, against)}</tr></thead><tbody>"]
    for before, row in zip([None, *rows], rows, strict=False):
        new = before is not None and list(before[: names - 1]) != list(row[: names - 1])
        cells = _cells("td", row, names, against, "against ")
        lines.append(f"<tr{' class=new' if new else ''}>{cells}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</tbody></table></div>'


def _cells(kind: str, row: Sequence[str], names: int, against: int | None, word: str = "") -> str:
    """The cells of a row, of which the first has so many names and what the row is compared with."""
    *others, name = row[:names]
    above = element("small", ", ".join(others)) if others else ""
    below = element("small", word + row[against]) if against is not None and row[against] else ""
    rest = [text for column, text in enumerate(row) if column >= names and column != against]
    first = f"<{kind}>{above}{html.escape(name)}{below}</{kind}>"
    return first + "".join(element(kind, text, _kind(text)) for text in rest)


def _kind(text: str) -> str:
    """How a cell is shown: verdicts stand out, and long texts that are no numbers may be broken."""
    if text in ("higher", "lower"):
        return text
    if len(text) > 48:
        return "words long"
    return "words" if len(text) > 12 and not set("±[") & set(text) else ""


def folded(summary: str, inside: str) -> str:
    """Something that is shown when its summary is clicked."""
    return f"<details>{element('summary', summary)}{inside}</details>"


def figure(title: str, caption: str, panels: Sequence[str], legend: str = "") -> str:
    """Panels side by side under a title, above a caption."""
    kind = ' class="many"' if len(panels) > 1 else ""
    return (
        f"<figure{kind}>{element('h3', title)}{legend}"
        f'<div class="panels">{"".join(panels)}</div>{element("figcaption", caption)}</figure>'
    )


def legend(entries: Sequence[tuple[str, str, bool]]) -> str:
    """Names with their colours: (name, CSS colour, whether its line is dashed)."""
    items = [
        f'<li><i{" class=dashed" if dashed else ""} style="border-color:{color}"></i>'
        f"{html.escape(name)}</li>"
        for name, color, dashed in entries
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


def bullets(texts: Iterable[str]) -> str:
    """A list of texts."""
    return f"<ul>{''.join(element('li', text) for text in texts)}</ul>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and what they are."""
    inside = "".join(element("dt", name) + element("dd", text) for name, text in pairs)
    return f"<dl>{inside}</dl>"


def markdown(text: str) -> str:
    """Markdown as HTML; HTML in it is shown, not used."""
    return MarkdownIt("commonmark", {"html": False}).enable("table").render(text)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    line = lambda cells: "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"
    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)])
