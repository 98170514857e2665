"""The datasheet of a release (Gebru 2021) as Markdown and as one HTML page, from its release.json alone: numbers, names
of classes, columns and settings, nothing of people or of the machine. Torch-free."""

from __future__ import annotations

from typing import NamedTuple

from data.files import is_number, plain
from jobs.predict import card
from jobs.predict.verify import ABOUT, MANIFEST, SPLIT, SUMS
from jobs.view import figures, markup
from jobs.view.markup import child

TO_FILL = (
    "TO BE FILLED IN BY THE OWNER OF THE SOURCE DATA, before this is shared: whose data these are, consent, terms of "
    "use, whom to ask. Write it into a text file and give the command that made this once more with --terms FILE; no "
    "slice is drawn again."
)
READ = (
    "FID and KID: how far the sets lie apart, less is nearer. Precision, density: how many slices lie where real ones "
    "do. Recall, coverage: how much of the real variety is reached. Read each figure beside that of real training "
    "slices: no number alone is good. Figures of other features, or of other numbers of slices, are in other units."
)
NOT_PROVED = (
    "The screening compares whole slices. It does not find a part of a training slice, two that were mixed, or one "
    "that was bent. So it does not prove that there is no copy here, nor that nobody can be recognised.",
    "Whether somebody was among the training people may still be told from such slices; nothing was tested for that. "
    "Training gave no guarantee such as differential privacy. Whether they count as anonymous before the law is for "
    "the owner of the source data to judge.",
    "Slices were drawn until as many per class passed as were asked for: their shares say nothing of how frequent "
    "anything is among people, and what is rare is rarer here than in the source data.",
    "Figures of slices that passed a screening by the same features look better than those of the model.",
    "Nothing here is fit for diagnosis, treatment, or any decision about a person, and nothing was tested for it.",
)
NOT_BY_PERSON = (
    "File names do not tell who is who, so the two sides were divided by {}, and one person may be on both. Then "
    "held-out slices lie nearer to training slices than those of other people do, and the search for copies finds less."
)
NOT_KNOWN = (
    "Whether the weights learnt from these training slices alone is not known: {}. If they did not, the search for "
    "copies finds none of the others, and held-out people may have been seen."
)


ASKED = (
    "What was asked for stands there as it was given, in its order: where it was a table of people (`--like`), these "
    "are its rows."
)


class Table(NamedTuple):
    """Rows below a head."""

    head: list[str]
    rows: list[list]
    numbers: bool = True  # in all columns but the first


class Code(NamedTuple):
    """What a person types, or a tree of files."""

    text: str


Block = str | list[str] | Table | Code  # a paragraph, a list, or one of these


def sections(about: dict) -> dict[str, list[Block]]:
    """The datasheet of release.json, by title."""
    return {
        "What is in it": contents(about),
        "How it was made": made(about),
        "What the model learnt from": learnt(about),
        "Screening": screening(about),
        "Figures": measured(about),
        "What this does not prove": [[*card.LIMITS, *NOT_PROVED]],
        "Terms of use": rights(about),
        "Check it": [
            "Both say whether every file is as it was released; the second also decodes every picture.",
            Code(f"sha256sum -c {SUMS}\npython predict.py release --verify ."),
        ],
    }


def title_of(about: dict) -> str:
    """A line for the top."""
    return f"{sum_of(about):,} synthetic brain-MRI slices"


def lead_of(about: dict) -> str:
    """What a newcomer has to know first."""
    width, height = about["size"]
    people = (
        "phantoms, which a program draws: no person is in them"
        if about["data"]["phantom"]
        else "slices of real people; nobody's name, number or file name is in this folder"
    )
    missing = " NOT TO BE SHARED YET: its terms of use are missing." if unfilled(about) else ""
    return (
        f"{'Grey' if about['channels'] == 1 else 'Colour'} pictures of {width}x{height} pixels, each drawn by a neural "
        f"network ({about['model']['kind']} of {about['model']['resolution']} px) from random numbers: no scan of a "
        f"person. The network learnt from {people}. For research and teaching, not for medical use.{missing}"
    )


def unfilled(about: dict) -> bool:
    """Whether the owner of the source data has still to say on which terms it is used."""
    return not (about["terms"] or about["data"]["phantom"])


def sum_of(about: dict) -> int:
    """Slices in all."""
    return sum(found["slices"] for found in about["classes"].values())


# --- its sections -----------------------------------------------------------------------------------------------------
def contents(about: dict) -> list[Block]:
    """Files, classes, and how to read them."""
    rows = [[name or "no class", f"{SPLIT}/{f['folder']}/", f["slices"]] for name, f in about["classes"].items()]
    columns = "".join(f", {name}" for name in about["columns"] if name != "class")
    return [
        Table(["class", "folder", "slices"], rows, numbers=False),
        [
            f"`{MANIFEST}`: a row for each slice: file, class{columns}: what the network was asked for, empty where "
            "nothing was; then the seed and the index that it was drawn from.",
            *([ASKED] if columns else []),
            f"`{SUMS}`: SHA-256 of every file. `{ABOUT}`: this datasheet for programs.",
        ],
        "PyTorch, and this toolkit, read the folder as it is:",
        Code(
            f'torchvision.datasets.ImageFolder("{SPLIT}")\n'
            "python train_gan.py --data FOLDER                       # with columns: --table FOLDER/manifest.csv"
        ),
    ]


def made(about: dict) -> list[Block]:
    """Toolkit, model and settings."""
    model, settings = about["model"], about["settings"]
    chosen = f"; weights with the best {', '.join(model['measured'])}" if model["measured"] else ""
    rows = [
        ["toolkit", f"brain-slice-generators {about['version']}; torch {about['torch']}"],
        ["model", f"{model['kind']}, {model['resolution']} px, {model['nimg'] / 1000:g} thousand images seen{chosen}"],
        ["its weights", f"SHA-256 {settings['weights_sha256']}"],
        *([name.replace("_", " "), value_of(value)] for name, value in settings.items() if name != "weights_sha256"),
    ]
    return [
        Table(["", ""], rows, numbers=False),
        "The same command with the same weights makes the same folder; the slice of an index is the one that "
        "`predict.py generate` draws with the same seed and settings: on a CPU bit for bit, on a GPU but for rounding.",
    ]


def value_of(value: object) -> object:
    """A setting for a person."""
    if isinstance(value, dict):
        return ", ".join(f"{name}={of}" for name, of in value.items())
    return "none" if value is None else value


def learnt(about: dict) -> list[Block]:
    """How many slices of how many people; neither names nor paths."""
    data = about["data"]
    unseen = ": the model has not seen them" if not data["why"] else ""
    sides = {"train": "training", "heldout": f"held out{unseen}"}
    rows = [[words, f"{data[side]['slices']:,}", people_of(data, side)] for side, words in sides.items()]
    found: list[Block] = [
        Table(["side", "slices", "scans" if data["kind"] == "scan" else "people"], rows),
        f"Folders were recognised as: {data['layout']}.",
    ]
    if not data["phantom"] and data["kind"] != "patient":
        found.append(NOT_BY_PERSON.format(data["kind"] or "slice"))
    return [*found, NOT_KNOWN.format(data["why"])] if data["why"] else found


def people_of(data: dict, side: str) -> str:
    """How many, as far as it is known."""
    if data["phantom"]:
        return "none: phantoms"
    return f"{data[side]['people']:,}" if data[side]["people"] else "unknown"


def screening(about: dict) -> list[Block]:
    """What was drawn, what failed, and what of real people's slices would have failed."""
    found = about["screening"]
    drawn = sum(f["drawn"] for f in found["classes"].values())
    failed = {test: sum(f["failed"].get(test, 0) for f in found["classes"].values()) for test in found["held_out"]}
    tests = [
        [test, f"{count:,}", percent(count, drawn), f"{100 * found['held_out'][test]:.1f} %"]
        for test, count in failed.items()
    ]
    classes = [
        [name or "no class", f"{f['drawn']:,}", f"{f['drawn'] - about['classes'][name]['slices']:,}",
         f"{about['classes'][name]['slices']:,}"]
        for name, f in found["classes"].items()
    ]  # fmt: skip
    return [
        f"{drawn:,} slices were drawn for {sum_of(about):,}. A slice that failed a test was replaced by the next of "
        "its own series; one slice may fail several.",
        Table(["test", "failed", "of those drawn", "of held-out real slices"], tests),
        Table(["class", "drawn", "failed", "released"], classes),
        [
            "Too near: nearer to a training slice than any held-out slice is to one; by pixels also mirrored, moved, "
            "turned, scaled or lit otherwise, by features as far as these see it.",
            "Outside: in no ball around a training slice that reaches to its third neighbour, in features (the test of "
            "precision, Kynkaanniemi 2019), enlarged where held-out slices would not lie in them.",
            "A class is read by a linear classifier that learnt on training slices; a number may be off as far as it "
            "is for 95 % of held-out slices. What the classifier does not find in held-out slices is not tested.",
            *found["notes"],
        ],
    ]


def percent(count: int, of: int) -> str:
    """A share in words."""
    return f"{100 * count / max(of, 1):.1f} %"


def measured(about: dict) -> list[Block]:
    """Figures of the released slices, and of the model before the screening where evaluate was run."""
    found: list[Block] = []
    if about["figures"]:
        found += [distances(about["figures"], "released slices"), f"Measured with {about['features']}; classes are as "
                  "frequent as was asked for, not as among the held-out people."]  # fmt: skip
    else:
        found.append("The slices are too few to be measured as a set.")
    if model := about["evaluate"]:
        lines = [
            f"copies by {space}: {text}"
            for space in ("pixels", "features")
            if (text := figures.copies_line(child(child(model, "copying"), space)))
        ]
        found += [
            f"The model before the screening, {model['compared']:,} slices of it:",
            distances(model["distances"], "generated slices"),
            *([lines] if lines else []),
        ]
    return [*found, READ]


def distances(found: dict, words: str) -> Table:
    """Generated and training slices against held-out ones."""
    head = ["against held-out slices", *(title for title, _ in figures.COLUMNS.values())]
    names = (("generated", words), ("training slices", "real training slices"))
    return Table(head, [[said, *figures.figures_of(child(found, name))] for name, said in names])


def rights(about: dict) -> list[Block]:
    """Of the program, and of the source data as far as somebody said."""
    if about["data"]["phantom"]:
        return ["MIT, as the program that drew the phantoms, and that drew these slices."]
    return [
        about["terms"] or TO_FILL,
        "The program is under the MIT licence. Slices that a network drew may fall under the terms of what it learnt "
        "from. " + card.PASSED_ON,
    ]


# --- as text ----------------------------------------------------------------------------------------------------------
def as_markdown(about: dict) -> str:
    """README.md."""

    def text(block: Block) -> str:
        if isinstance(block, Table):
            return card.table(block.head, block.rows)
        if isinstance(block, Code):
            return f"```\n{block.text}\n```"
        if isinstance(block, list):
            return "\n".join(f"* {plain(line)}" for line in block).replace("<", "&lt;")
        return plain(block, keep="\n").replace("<", "&lt;")

    parts = [f"# {title_of(about)}", lead_of(about)]
    for title, blocks in sections(about).items():
        parts += [f"## {title}", *map(text, blocks)]
    return "\n\n".join(parts) + "\n"


def as_page(about: dict, grid: bytes) -> str:
    """datasheet.html, which loads nothing; grid: a PNG of some of the slices."""

    def text(block: Block) -> str:
        if isinstance(block, Table):
            return markup.table(block.head if any(block.head) else [], block.rows, numbers=block.numbers)
        if isinstance(block, Code):
            return f'<pre class="wide">{markup.escape(block.text)}</pre>'
        if isinstance(block, list):
            return "<ul>" + "".join(f"<li>{marked(line)}</li>" for line in block) + "</ul>"
        return f"<p>{marked(block)}</p>"

    title = markup.escape(title_of(about))
    parts = [
        f"<h1>{title}</h1>",
        f"<p>{marked(lead_of(about))}</p>",
        markup.figure(grid, "the first of them; a click shows the picture in its own size"),
    ]
    for name, blocks in sections(about).items():
        parts += [f"<h2>{markup.escape(name)}</h2>", *map(text, blocks)]
    return markup.page(title, "\n".join(parts))


def marked(text: str) -> str:
    """Text as HTML, what stands between backquotes as code."""
    words = markup.escape(text).split("`")
    return "".join(f"<code>{word}</code>" if i % 2 else word for i, word in enumerate(words)).replace("\n", "<br>")


def evaluation(found: dict) -> dict:
    """What is taken over of `evaluate`'s metrics.json: figures alone, none of the names of slices in it."""
    compared = found.get("compared")
    if not is_number(compared) or not child(found, "distances"):
        return {}
    copying = {
        space: {name: v for name, v in child(child(found, "copying"), space).items() if is_number(v)}
        for space in ("pixels", "features")
    }
    sides = {
        name: {key: v for key, v in child(child(found, "distances"), name).items() if is_number(v)}
        for name in ("generated", "training slices")
    }
    return {"compared": int(compared), "distances": sides, "copying": copying}
