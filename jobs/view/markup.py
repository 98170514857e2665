"""The page's HTML: tables, pictures inside of it, and text of others made text. No script, and nothing is loaded."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path

from data.files import plain, read_bytes, read_object
from jobs.run.rundir import RunDir

MAX_PICTURE = 16 << 20  # bytes of a picture that goes into the page
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1200px; margin: 0 auto; padding: 0 1em 2em; color: #222;
  background: #fff; }
h1 { font-size: 1.4em; margin: .6em 0 0; }
h2 { font-size: 1.2em; margin: 1.4em 0 .4em; border-bottom: 1px solid #ccc; padding-bottom: .2em; }
h3 { font-size: 1em; margin: 1.1em 0 .3em; }
section { scroll-margin-top: 2.6em; }
nav { position: sticky; top: 0; z-index: 5; background: #fff; border-bottom: 1px solid #ccc; padding: .5em 0;
  white-space: nowrap; overflow-x: auto; }
nav a { margin-right: 1.1em; color: #05a; text-decoration: none; }
table { border-collapse: collapse; margin: .5em 0; }
td, th { padding: .15em 1.1em .15em 0; text-align: left; vertical-align: top; }
th { border-bottom: 1px solid #999; font-weight: 600; }
td:first-child { color: #555; }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; display: block; }
figure { margin: 0; min-width: 0; }
figcaption, .quiet { color: #666; font-size: 13px; }
.wide { overflow-x: auto; }
.cards, .curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 1em; }
.card { border: 1px solid #ccc; border-radius: 6px; padding: .6em .9em .9em; min-width: 0; }
.card h2 { margin: 0 0 .2em; border: 0; padding: 0; overflow-wrap: anywhere; }
.card p { margin: .2em 0; overflow-wrap: anywhere; }
.state { font-size: 13px; font-weight: 600; padding: .1em .6em; border-radius: 1em; background: #ddd; }
.good { background: #cfe8cf; }
.bad { background: #f6c9c4; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 200px), 1fr)); gap: .7em;
  margin-top: .6em; max-width: 900px; }
.grids { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(45%, 180px), 1fr)); gap: .8em; }
.pictures { display: flex; flex-wrap: wrap; gap: 1em; align-items: flex-end; margin-bottom: 1em; }
.pictures figure { max-width: 100%; }
.pictures img { max-height: 230px; width: auto; }
.curves figcaption { display: none; }
details { margin: .6em 0; }
summary { cursor: pointer; }
label { cursor: zoom-in; display: block; }
label input { position: absolute; opacity: 0; width: 1px; height: 1px; }
input:focus-visible + span img { outline: 2px solid #05a; }
input:checked + span { position: fixed; inset: 0; z-index: 9; overflow: auto; padding: 1em; background: #000c;
  display: grid; place-items: safe center; cursor: zoom-out; }
input:checked + span img { max-width: none; max-height: none; }
"""


def page(title: str, body: str) -> str:
    """A whole page of HTML; both are HTML already."""
    head = f'<meta charset="utf-8"><title>{title}</title><meta name="viewport" content="width=device-width">'
    return f"<!doctype html>\n<html lang=en><head>{head}<style>{STYLE}</style></head>\n<body>\n{body}</body></html>\n"


def table(head: list, rows: list[list], numbers: bool = False) -> str:
    """Cells are escaped; `numbers` aligns all but the first column to the right."""

    def line(cells: list, tag: str) -> str:
        aligned = [f'{tag} class="n"' if numbers and i else tag for i in range(len(cells))]
        return (
            "<tr>"
            + "".join(f"<{a}>{escape(str(c)[:500])}</{tag}>" for a, c in zip(aligned, cells, strict=True))
            + "</tr>"
        )

    lines = (line(head, "th") if head else "") + "".join(line(row, "td") for row in rows)
    return f'<div class="wide"><table>{lines}</table></div>'


def folded(title: str, values: dict) -> str:
    """A table of a JSON object behind a title; nested values as JSON."""
    if not values:
        return ""
    rows = [[k, v if isinstance(v, str) else json.dumps(v)] for k, v in sorted(values.items())]
    return f"<details><summary>{escape(title)}</summary>{table([], rows)}</details>"


def figure(content: bytes, caption: str, kind: str = "png") -> str:
    """A picture inside of the page, with its caption. A click shows it in its own size, the next one puts it back: a
    box that is ticked, so that no script is needed."""
    data = base64.b64encode(content).decode()
    image = f'<img src="data:image/{kind};base64,{data}" alt="{escape(caption)}">'
    zoom = f'<label><input type="checkbox"><span>{image}</span></label>'
    return f"<figure>{zoom}<figcaption>{escape(caption)}</figcaption></figure>"


def picture(path: Path, caption: str, inside: Path | None = None) -> str:
    """A PNG or GIF file as a figure; '' where there is none, or something else under its name, or a link that leads out
    of `inside`."""
    try:
        content = read_bytes(path, MAX_PICTURE, inside)
    except OSError:
        return ""
    kinds = {b"\x89PNG\r\n\x1a\n": "png", b"GIF89a": "gif", b"GIF87a": "gif"}
    return next((figure(content, caption, kind) for start, kind in kinds.items() if content.startswith(start)), "")


def json_of(run: RunDir, name: str) -> dict:
    """A JSON object of the run; {} where there is none. Figures that are not finite are None."""
    return read_object(run.path / name, run.path, nonfinite=True)[0]


def escape(text: object) -> str:
    """Text of others as text of a page, what does not print spelled out."""
    return html.escape(plain(text, keep="\n\t"))


def child(parent: dict, key: str) -> dict:
    """parent[key] where that is an object, else {}."""
    value = parent.get(key)
    return value if isinstance(value, dict) else {}
