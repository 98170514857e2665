"""ADA against plain definitions: shifts, identity, probabilities, derivatives, the controller."""

from __future__ import annotations

import math

import pytest
import torch

from models.augment import BACKGROUND, KINDS, AdaController, augment, draw_augmentation, rows

R = 16


def drawn(batch: int, p: float, kinds=KINDS["mri"], seed: int = 0) -> dict:
    return draw_augmentation(batch, p, R, torch.Generator().manual_seed(seed), "cpu", kinds)


def picture(batch: int = 1, seed: int = 0) -> torch.Tensor:
    """A blob with a bright corner, black at the edges."""
    x = torch.full((batch, 1, R, R), BACKGROUND)
    x[:, :, 4:12, 5:11] = torch.rand(batch, 1, 8, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return x


def test_nothing_happens_at_p_0():
    x = torch.rand(32, 1, R, R) * 2 - 1
    assert torch.equal(augment(x, drawn(32, 0.0)), (x - BACKGROUND) + BACKGROUND)


def test_a_shift_moves_whole_pixels_and_fills_with_black():
    x = torch.rand(64, 1, R, R, generator=torch.Generator().manual_seed(1)) * 2 - 1  # bright up to its edges
    params = drawn(64, 1.0, kinds=("shift",))
    y = augment(x, params)
    moved = 0
    for i in range(64):
        # offset of the inverse map, in pixels of the image
        dx, dy = (round(float(v) * R / 2) for v in params["grid"][i, :, 2])
        expected = torch.full((R, R), BACKGROUND)
        for row in range(R):
            for column in range(R):
                if 0 <= row + dy < R and 0 <= column + dx < R:
                    expected[row, column] = x[i, 0, row + dy, column + dx]
        assert torch.allclose(y[i, 0], expected, atol=1e-5)
        moved += (dx, dy) != (0, 0)
        assert max(abs(dx), abs(dy)) <= R * 0.125
    assert moved > 40


def test_mirroring_is_left_right_and_only_where_it_is_asked_for():
    x = picture(256)
    y = augment(x, drawn(256, 1.0, kinds=("mirror",)))
    flipped = [bool(torch.allclose(a, b.flip(2), atol=1e-5)) for a, b in zip(y, x, strict=True)]
    same = [bool(torch.allclose(a, b, atol=1e-5)) for a, b in zip(y, x, strict=True)]
    assert all(f != s for f, s in zip(flipped, same, strict=True)) and 90 < sum(flipped) < 166
    assert (drawn(4096, 1.0)["grid"][:, 0, 0] > 0).all()  # `mri` never mirrors


def test_never_upside_down():
    for kinds in KINDS.values():
        assert (drawn(8192, 1.0, kinds)["grid"][:, 1, 1] > 0).all()


def test_each_kind_comes_with_probability_p():
    n, p = 8000, 0.3
    bound = 4 * math.sqrt(p * (1 - p) / n)
    for kind in ("scale", "stretch", "rotate"):
        grid = drawn(n, p, kinds=(kind,))["grid"]
        changed = (grid - torch.eye(2, 3)).abs().amax((1, 2)) > 1e-6
        assert abs(changed.float().mean() - p) < bound, kind
    assert abs((drawn(n, p, kinds=("contrast",))["contrast"] != 1).float().mean() - p) < bound
    assert abs((drawn(n, p, kinds=("brightness",))["brightness"] != 0).float().mean() - p) < bound


def test_rotation_turns_by_the_drawn_angle_and_keeps_area():
    grid = drawn(4096, 1.0, kinds=("rotate",))["grid"][:, :, :2]
    assert torch.allclose(torch.linalg.det(grid), torch.ones(4096), atol=1e-5)
    angles = torch.rad2deg(torch.atan2(grid[:, 0, 1], grid[:, 0, 0]))
    assert 14 < angles.abs().max() <= 15.001 and abs(float(angles.mean())) < 1


def test_contrast_and_brightness_in_closed_form_and_black_stays_black():
    x = picture(32)
    params = drawn(32, 1.0, kinds=("brightness", "contrast"))
    v = x + 1
    expected = v * params["contrast"].view(-1, 1, 1, 1) + v.clamp(0, 1) * params["brightness"].view(-1, 1, 1, 1) - 1
    assert torch.allclose(augment(x, params), expected, atol=1e-6)
    black = torch.full((256, 1, R, R), BACKGROUND)
    assert torch.allclose(augment(black, drawn(256, 1.0, KINDS["mri-flip"])), black, atol=1e-6)


def test_rows_of_the_global_batch_are_the_global_batch():
    x, params = picture(12), drawn(12, 0.7)
    parts = [augment(x[i : i + 4], rows(params, i, i + 4)) for i in (0, 4, 8)]
    assert torch.equal(torch.cat(parts), augment(x, params))


def test_draws_do_not_depend_on_p():
    low, high = drawn(64, 0.2), drawn(64, 0.9)
    both = low["warped"]
    assert both.any() and (high["warped"] | ~both).all()
    on = (low["contrast"] != 1) & (high["contrast"] != 1)
    assert on.any() and torch.equal(low["contrast"][on], high["contrast"][on])


@pytest.mark.parametrize("p", [1.0, 0.5])
def test_every_number_drawn_against_the_papers_constants(p):
    """Content is mirrored, magnified, turned, then shifted; the grid is the inverse of that, drawn in this order. The
    draws may never change, or a run would not go on as it began (constants: Karras 2020b, appendix B; turns of a head).
    """
    n = 64
    g = torch.Generator().manual_seed(3)
    u, v, coins = torch.rand(n, 6, generator=g), torch.randn(n, 4, generator=g), torch.rand(n, 7, generator=g) < p
    params = drawn(n, p, KINDS["mri-flip"], seed=3)
    for i in range(n):
        mirror, scale, stretch, turn, shift, bright, contrast = (bool(c) for c in coins[i])
        m = -1.0 if mirror and u[i, 0] < 0.5 else 1.0
        size = 2 ** (0.2 * float(v[i, 0])) if scale else 1.0
        wide = 2 ** (0.2 * float(v[i, 1])) if stretch else 1.0
        angle = math.radians(15 * (2 * float(u[i, 1]) - 1)) if turn else 0.0
        moved = [round((2 * float(x) - 1) * 0.125 * R) * 2 / R if shift else 0.0 for x in u[i, 2:4]]
        turned = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        inverse = torch.diag(torch.tensor([m / (size * wide), wide / size])) @ turned.T  # of turned @ diag(...)
        expected = torch.cat([inverse, -(inverse @ torch.tensor(moved))[:, None]], 1)
        assert torch.allclose(params["grid"][i], expected, atol=1e-5)
        assert float(params["brightness"][i]) == pytest.approx(0.2 * float(v[i, 2]) if bright else 0.0, rel=1e-5)
        assert float(params["contrast"][i]) == pytest.approx(2 ** (0.5 * float(v[i, 3])) if contrast else 1.0, rel=1e-5)
        assert bool(params["warped"][i]) is (mirror or scale or stretch or turn or shift)


def test_derivatives_of_the_warp():
    """Against a central difference: the warp is linear in the image, so the difference is exact up to rounding."""
    x = picture(2).requires_grad_(True)
    params = drawn(2, 1.0, kinds=("shift", "scale", "rotate", "stretch"))
    probe = torch.randn_like(x)
    y = augment(x, params)
    (grad,) = torch.autograd.grad((y * probe).sum(), x)
    direction = torch.randn_like(x) * 1e-2
    change = ((augment(x + direction, params) - augment(x - direction, params)) / 2 * probe).sum()
    assert torch.allclose(change, (grad * direction).sum(), rtol=2e-2, atol=1e-3)


def test_controller_against_a_plain_loop_and_over_a_resume():
    signs = [0.9, 0.8, 0.9, 1.0, 0.1, 0.2, 0.1, 0.0, 1.0, 1.0, 1.0, 1.0]
    c = AdaController(target=0.6, speed_kimg=1.0)  # every four steps (Karras 2020b, section 3)
    expected, p = [], 0.0
    for i, s in enumerate(signs):
        if i == 6:  # a resume in the middle of an interval
            state, c = c.state_dict(), AdaController(target=0.6, speed_kimg=1.0)
            c.load_state_dict(state)
        c.add(torch.tensor(s * 8), 8)
        c.update(8)
        if (i + 1) % 4 == 0:
            r_t = sum(signs[i - 3 : i + 1]) / 4
            p = max(p + (0.032 if r_t > 0.6 else -0.032), 0)
        expected.append(p)
        assert c.p == pytest.approx(expected[-1], abs=1e-12)
    assert expected[3] > 0 and expected[7] == 0 and expected[11] > 0


def test_controller_stays_below_the_leak():
    c = AdaController(target=0.6, speed_kimg=0.01)
    for _ in range(100):
        c.add(torch.tensor(8.0), 8)
        c.update(8)
    assert c.p == 0.8


# --- what p follows besides r_t ---------------------------------------------------------------------------------------
def stats_of(real: float, held: float | None, fake: float, sign: float = 0.0) -> dict:
    values = {"logits_real": real, "logits_fake": fake, "sign_real": sign} | (
        {} if held is None else {"logits_held": held}
    )
    return {name: torch.tensor(value) for name, value in values.items()}


def test_r_v_is_the_share_of_the_way_to_the_generated_slices():
    """Karras 2020b, equation 1: (3 - 2) / (3 - -1) = 0.25; then old differences count 0.9 times as much each look."""
    ada = AdaController(target=0.5, speed_kimg=1.0)
    for step in range(4):
        assert ada.looks == (step == 3)
        ada.step(stats_of(3.0, 2.0 if ada.looks else None, -1.0, sign=1.0), 100, 100 * step, "r_v")
    assert ada.r_v == pytest.approx(0.25) and ada.p == 0 and ada.r_t == 1  # the signs are all right, and p stays
    for step in range(4, 8):
        ada.step(stats_of(3.0, -1.0 if ada.looks else None, -1.0), 100, 100 * step, "r_v")
    assert ada.r_v == pytest.approx((0.9 * 1 + 4) / (0.9 * 4 + 4)) and ada.p == pytest.approx(0.4)
    blind = AdaController(target=0.5)
    blind.compare(torch.tensor(0.0), torch.tensor(-1.0), torch.tensor(2.0))
    assert blind.r_v == 0  # generated slices are taken for the better ones: nothing is learnt by heart


def test_a_schedule_is_a_function_of_the_images_seen():
    ada = AdaController(target=0.5, speed_kimg=10.0)
    seen = []
    for step in range(40):
        ada.step(stats_of(9.0, None, -9.0, sign=1.0), 100, 100 * step, "schedule")
        seen.append(ada.p)
    assert seen == pytest.approx([min((k + 1) / 100, 0.3) for k in range(40)])
    ada.step(stats_of(9.0, None, -9.0), 100, 0, "schedule")
    assert ada.p == pytest.approx(0.01)  # after a roll-back, too
    still = AdaController(speed_kimg=0.0)
    still.step(stats_of(9.0, None, -9.0), 100, 0, "schedule")
    assert still.p == 0


def test_a_state_of_before_r_v_goes_on():
    old = {"p": 0.3, "r_t": 0.5, "steps": 7, "images": 300.0, "count": 300.0, "sign_sum": 12.0}
    ada = AdaController()
    ada.load_state_dict(old)
    assert ada.state_dict() == old | {"r_v": 0.0, "to_held": 0.0, "to_generated": 0.0}
