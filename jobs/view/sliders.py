"""The page of `explore`: sliders beside the pictures that they make. It loads nothing, and asks this server alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.view.loopback import Refused
from jobs.view.markup import escape

STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, CanvasText 22%, transparent); }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1240px; margin: 0 auto; padding: 0 1em 2em; }
h1 { font-size: 1.4em; margin: .6em 0 0; overflow-wrap: anywhere; }
main { margin-bottom: 1em; }
.quiet { opacity: .75; font-size: 13px; margin: 0 0 .8em; }
main { display: grid; grid-template-columns: minmax(0, 1fr) 380px; gap: 1.6em; align-items: start; }
.shown { display: grid; grid-template-columns: repeat(auto-fit, minmax(0, 1fr)); grid-auto-flow: column; gap: 1em; }
figure { margin: 0; min-width: 0; max-width: 480px; }
figure img { width: 100%; height: auto; display: block; background: #111; image-rendering: pixelated; }
figcaption { overflow-wrap: anywhere; white-space: pre-line; min-height: 6.2em; }
figcaption b { display: block; margin-top: .3em; }
.busy figure { opacity: .5; transition: opacity .2s .4s; }
form div { display: flex; flex-wrap: wrap; align-items: center; gap: .2em .6em; border-top: 1px solid var(--line);
  padding: .45em 0 .6em; }
form b { flex-basis: 100%; }
input, select { font: inherit; accent-color: #26c; }
input[type=range] { flex: 1; min-width: 0; }
input[type=number] { width: 5.5em; }
select { flex: 1; }
label { white-space: nowrap; }
#message { min-height: 1.5em; margin: 0; }
pre { font-size: 13px; margin: 0 0 1em; white-space: pre-wrap; border: 1px solid var(--line); border-radius: 6px;
  padding: .6em .8em; user-select: all; }
pre span { display: inline-block; max-width: 100%; overflow-wrap: anywhere; }
@media (max-width: 800px) {
  main { grid-template-columns: minmax(0, 1fr); gap: .4em; }
  .shown { position: sticky; top: 0; background: Canvas; padding-top: .4em; gap: .5em; }
  figcaption { font-size: 13px; min-height: 8em; }
}
"""

# Each move asks at once. The server makes one picture at a time and drops all but the newest of those that wait (409),
# also for a second page of the same server, so that a page waits before it asks again.
SCRIPT = """
const form = document.querySelector("form"), main = document.querySelector("main");
const token = new URLSearchParams(location.search).get("token");
const [message, command] = ["message", "command"].map(name => document.getElementById(name));
let newest = 0, asked = new AbortController();
for (const box of form.querySelectorAll(".number")) {
  const [slider, number, unknown] = box.querySelectorAll("input");
  const known = yes => { number.disabled = !yes; if (unknown) unknown.checked = !yes; };
  slider.oninput = () => { number.value = slider.value; known(true); };
  number.oninput = () => { slider.value = number.value; };
  if (unknown) unknown.oninput = () => known(!unknown.checked);
}
async function ask(pause = 300) {
  const mine = ++newest;
  asked.abort();
  asked = new AbortController();
  const words = new URLSearchParams(new FormData(form));
  words.set("token", token);
  main.classList.add("busy");
  try {
    const answer = await fetch("/picture?" + words, {signal: asked.signal}).catch(error => {
      throw error.name == "AbortError" ? error : Error("No answer: the command that serves this page has ended.");
    });
    if (answer.status == 409) {
      await new Promise(done => setTimeout(done, pause));
      return mine == newest && ask(Math.min(2 * pause, 5000));
    }
    if (!answer.ok) throw Error(await answer.text());
    const found = await answer.json();
    if (mine != newest) return;
    document.querySelectorAll("figure").forEach((figure, i) => {
      figure.querySelector("img").src = found.shown[i].picture;
      figure.querySelector("span").textContent = found.shown[i].text;
    });
    command.replaceChildren(...found.command.split(/ (?=--)/).flatMap(words => {
      const part = document.createElement("span");
      part.textContent = words;
      return [part, " "];
    }));
    message.textContent = found.said;
  } catch (error) {
    if (mine == newest) message.textContent = error.message;
  }
  if (mine == newest) main.classList.remove("busy");
}
form.addEventListener("input", () => ask());
form.addEventListener("submit", event => event.preventDefault());
ask();
"""


@dataclass(frozen=True)
class Control:
    """A slider with a box to type the number, or a list to choose from; the value goes behind `flag` of a command."""

    title: str
    flag: str  # of predict.py, as in --truncation or `--set age=`
    value: str  # at the beginning
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    step: float = 0.01
    most: float = math.nan  # what may be typed beyond the slider
    unknown: str = ""  # the word for "not told", where that may be

    def __post_init__(self) -> None:
        """Numbers with the digits that the page has, so that none that it offers is refused."""
        for name in ("low", "high", "step", "most"):
            object.__setattr__(self, name, float(f"{getattr(self, name):.10g}"))

    def checked(self, text: str) -> str:
        """The text, if it is a value of this control. Refused otherwise."""
        if self.unknown and text == self.unknown:
            return text
        if self.choices:
            if text not in self.choices:
                raise Refused(f"{self.title}: {text!r} is none of {', '.join(self.choices)}")
            return text
        try:
            inside = self.low <= float(text) <= self.top
        except ValueError:
            inside = False
        if not inside:
            raise Refused(f"{self.title}: {text!r} is no number from {self.low:.10g} to {self.top:.10g}")
        return text

    @property
    def top(self) -> float:
        """The highest number that may be typed."""
        return self.high if math.isnan(self.most) else self.most

    def words(self, text: str) -> list[str]:
        """Flag and value, as they are typed. What begins with a dash would be taken for a flag of its own."""
        flag, _, name = self.flag.partition(" ")
        return [f"{flag}={text}"] if not name and text.startswith("-") else [flag, name + text]

    def html(self, name: str) -> str:
        """Title and inputs; `name` is that of the value in the address."""
        title = escape(self.title)
        if self.choices:
            options = [*self.choices, *filter(None, [self.unknown])]
            inner = "".join(f"<option{' selected' * (o == self.value)}>{escape(o)}</option>" for o in options)
            return f'<div><b>{title}</b><select name="{name}" aria-label="{title}">{inner}</select></div>'
        span = f'min="{self.low:.10g}" step="{self.step:.10g}" value="{self.value}"'
        box = f'<label><input type="checkbox" name="{name}" value="{self.unknown}"> {self.unknown}</label>'
        return (
            f'<div class="number"><b>{title}</b>'
            f'<input type="range" {span} max="{self.high:.10g}" aria-label="{title}, slider">'
            f'<input type="number" {span} max="{self.top:.10g}" name="{name}" aria-label="{title}">'
            f"{box * bool(self.unknown)}</div>"
        )


@dataclass(frozen=True)
class Page:
    """What stands on the page."""

    title: str
    about: str
    notes: Sequence[str]
    figures: Sequence[str]  # titles of the pictures, side by side
    size: tuple[int, int]  # (height, width) of each
    controls: dict[str, Control]  # by their names in the address
    same: str  # what the command makes

    def html(self, nonce: str) -> str:
        """The page as text; only what bears the nonce is obeyed as style and script."""
        height, width = self.size
        figures = "".join(
            f'<figure><img alt="{escape(t)}" width="{width}" height="{height}"><figcaption><b>{escape(t)}</b>'
            "<span></span></figcaption></figure>"
            for t in self.figures
        )
        controls = "".join(control.html(name) for name, control in self.controls.items())
        notes = "".join(f'<p class="quiet">{escape(note)}</p>' for note in self.notes)
        head = (
            '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        )
        return (
            f"<!doctype html>\n<html lang=en><head>{head}<title>{escape(self.title)}</title>"
            f'<style nonce="{nonce}">{STYLE}</style></head>\n<body>\n<h1>{escape(self.title)}</h1>'
            f'<p class="quiet">{escape(self.about)}</p>\n<main><div><div class="shown">{figures}</div></div>'
            f'<form autocomplete="off">{controls}<p id="message" class="quiet" role="status"></p></form></main>\n'
            f'<p class="quiet">{escape(self.same)}</p><pre id="command"></pre>{notes}\n'
            f'<script nonce="{nonce}">{SCRIPT}</script></body></html>\n'
        )
