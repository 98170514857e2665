"""jobs/view/pictures.py: films frame by frame, strips and pairs cell by cell, scatter plots dot by dot."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageSequence

from jobs.view import pictures
from jobs.view.grids import BACKGROUND, image_grid, save_png


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 256, shape, dtype=np.uint8)


def frames_of(gif: bytes) -> tuple[list[np.ndarray], list[int], int]:
    """(grey frames, milliseconds of each, loops) of a film; frames that are equal are one that stays longer."""
    with Image.open(io.BytesIO(gif)) as film:
        found = [(np.asarray(f.convert("L")), f.info["duration"]) for f in ImageSequence.Iterator(film)]
        return [pixels for pixels, _ in found], [duration for _, duration in found], film.info["loop"]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_is_read_as_it_was_drawn(tmp_path, channels):
    image = noise(channels, 5, 7)
    save_png(tmp_path / "a.png", pictures.as_picture(image))
    assert np.array_equal(pictures.read_picture(tmp_path / "a.png"), image)
    assert pictures.is_complete(tmp_path / "a.png", (5, 7)) and not pictures.is_complete(tmp_path / "a.png", (7, 5))


def test_a_damaged_or_other_file_is_no_complete_picture(tmp_path):
    path = tmp_path / "a.png"
    assert not pictures.is_complete(path, (5, 7))
    save_png(path, pictures.as_picture(noise(1, 5, 7)))
    whole = path.read_bytes()
    for damaged in (whole[:-20], whole[:50] + bytes([whole[50] ^ 1]) + whole[51:], b"", b"text"):
        path.write_bytes(damaged)
        assert not pictures.is_complete(path, (5, 7))
    Image.fromarray(noise(5, 7)).save(path, "GIF")
    assert not pictures.is_complete(path, (5, 7))


def test_a_film_keeps_every_grey_and_loops_for_ever():
    images = np.stack([np.arange(i, i + 64, dtype=np.uint8).reshape(1, 8, 8) * 3 for i in range(4)])
    frames, durations, loop = frames_of(pictures.gif_of(images, 20))
    assert loop == 0 and durations == [50] * 4
    assert all(np.array_equal(frame, image[0]) for frame, image in zip(frames, images, strict=True))
    assert frames_of(pictures.gif_of(images, 12))[1] == [80] * 4  # hundredths of a second


def stages(count: int, number: int) -> np.ndarray:
    """(pictures, frames, 2, 1, 6, 6), each cell of a grey of its own: 100 picture + 10 frame + estimate 0, state 5."""
    cells = np.arange(number)[:, None, None] * 100 + np.arange(count)[None, :, None] * 10 + np.array([0, 5])
    return np.broadcast_to(cells[..., None, None, None], (*cells.shape, 1, 6, 6)).astype(np.uint8)


def test_a_strip_has_estimates_above_states_and_ten_columns_at_most():
    captions = [f"{k}" for k in range(3)]
    strip = np.asarray(pictures.denoise_strip(stages(3, 2), captions, ["a", "b"]))
    left = strip.shape[1] - (3 * 8 + 2)
    cells = [[int(strip[12 + 2 + 8 * r + 3, left + 2 + 8 * c + 3]) for c in range(3)] for r in range(4)]
    assert cells == [[0, 10, 20], [5, 15, 25], [100, 110, 120], [105, 115, 125]]
    expected = image_grid(
        stages(3, 2).swapaxes(1, 2).reshape(-1, 1, 6, 6), 3, column_labels=captions,
        row_labels=["a, estimate", "noisy state", "b, estimate", "noisy state"],
    )  # fmt: skip
    assert np.array_equal(strip, np.asarray(expected))
    long = np.asarray(pictures.denoise_strip(stages(22, 1), [f"{k}" for k in range(22)], ["a"]))
    left = long.shape[1] - (10 * 8 + 2)
    shown = [int(long[12 + 2 + 3, left + 2 + 8 * c + 3]) // 10 for c in range(10)]
    assert shown == [0, 2, 5, 7, 9, 12, 14, 16, 19, 21]  # spread, the first and the last among them


def test_the_film_of_the_same_shows_state_then_estimate_and_stays_at_the_result():
    frames, durations, _ = frames_of(pictures.denoise_gif(stages(3, 2), ["100 %", "50 %", "result"], 5))
    cells = [[int(f[12 + 2 + 8 * r + 3, 2 + 8 * c + 3]) for r in range(2) for c in range(2)] for f in frames]
    assert cells == [[5, 0, 105, 100], [15, 10, 115, 110], [25, 20, 125, 120]]
    assert durations == [200, 200, 200 * 11]  # two seconds more


def drawn_pairs(*of) -> np.ndarray:
    shown, captions = pictures.pairs_picture(*of, columns=3)
    return np.asarray(image_grid(shown, 3, **captions))


def test_generated_slices_stand_above_their_nearest_ones():
    fakes, reals = (noise(5, 1, 6, 6, seed=seed) for seed in (1, 2))
    pairs = [(i, 10 + i, 0.5 + i) for i in range(5)]
    drawn = drawn_pairs(fakes, reals, pairs)
    left = drawn.shape[1] - (3 * 8 + 2)
    for i in range(5):
        y, x = 2 + 2 * (i // 3) * 20, left + 2 + i % 3 * 8
        assert np.array_equal(drawn[y : y + 6, x : x + 6], fakes[i, 0])
        assert np.array_equal(drawn[y + 20 : y + 26, x : x + 6], reals[i, 0])
    assert (drawn[42:48, left + 18 : left + 24] == BACKGROUND).all()  # there is no sixth
    moved = noise(5, 1, 6, 6, seed=3)
    drawn = drawn_pairs(fakes, reals, pairs, moved)
    for row, images in enumerate((fakes, moved, reals)):
        y, x = 2 + (3 + row) * 20, drawn.shape[1] - (3 * 8 + 2) + 2 + 8
        assert np.array_equal(drawn[y : y + 6, x : x + 6], images[4, 0])


def test_dots_are_where_the_table_says_by_class_and_by_subject(monkeypatch):
    from matplotlib.figure import Figure

    figures, real = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), real(self, *args, **kw)))
    table = [
        ("real", 0, 1, "AD", "p"),
        ("real", 2, 3, "NC", "q"),
        ("real", 4, 5, "NC", "p"),
        ("generated", 6, 7, "AD", ""),
        ("w", 8, 9, "NC", ""),
    ]
    assert pictures.scatter_plots(table, "features", "a caption").startswith(b"\x89PNG")

    def dots(axis) -> dict:
        return {c.get_label(): sorted(map(tuple, c.get_offsets().tolist())) for c in axis.collections}

    by_class, by_subject, styles = figures[0].axes
    assert dots(by_class) == {"real AD": [(0, 1)], "real NC": [(2, 3), (4, 5)], "generated AD": [(6, 7)]}
    assert dots(by_subject) == {"real p": [(0, 1), (4, 5)], "real, others": [(2, 3)], "generated": [(6, 7)]}
    assert dots(styles) == {"NC": [(8, 9)]}
    colors = {c.get_label(): tuple(c.get_edgecolor()[0][:3]) for c in by_class.collections}
    assert colors["real AD"] == colors["generated AD"] != colors["real NC"]
    assert [axis.get_title(loc="left").split(", ")[-1] for axis in figures[0].axes] == [
        "by class",
        "by subject",
        "by class",
    ]
    pictures.scatter_plots([(*row[:4], "") for row in table[:3]], "features", "x")
    assert len(figures[1].axes) == 1  # nobody's name is known
