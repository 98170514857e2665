"""The page with sliders: what it shows, and to whom."""

from tests.mutants import Fault

EXPLORE = "tests/predict/test_explore.py::"
NEAREST = EXPLORE + "test_the_nearest_training_slice_also_of_a_mirrored_copy"
GATE = EXPLORE + "test_nothing_without_the_token_and_the_host"
SAME = EXPLORE + "test_the_picture_is_what_the_command_beside_it_makes"
FAULTS = [
    Fault("jobs/view/loopback.py", "if not hmac.compare_digest(", "if token and not hmac.compare_digest(", (GATE,)),
    Fault("jobs/view/loopback.py", "OWN_NAMES.fullmatch(", "OWN_NAMES.match(", (GATE,)),
    Fault("jobs/view/loopback.py", "self.waiting.cancel()", "self.waiting.done()", (
        EXPLORE + "test_of_those_who_wait_only_the_newest_is_served",)),
    Fault("jobs/view/loopback.py", 'super().__init__(("127.0.0.1", 0), Handler)', "raise", (
        EXPLORE + "test_ctrl_c_ends_it_and_the_port_is_closed",)),
    Fault("jobs/view/loopback.py", "default-src 'none'; img-src data:;", "default-src *; img-src data:;", (
        EXPLORE + "test_a_page_that_loads_nothing_and_is_not_kept_or_framed",)),
    Fault("jobs/view/loopback.py", "if len(self.values) + 1 < len(pairs):", "if False:", (
        EXPLORE + "test_values_that_cannot_be_are_one_line",)),
    Fault("jobs/view/sliders.py", "inside = self.low <= float(text) <= self.top", "inside = float(text) <= self.top", (
        EXPLORE + "test_values_that_cannot_be_are_one_line",)),
    Fault("jobs/view/sliders.py", 'in ("low", "high", "step", "most"):', 'in ("step", "most"):', (
        EXPLORE + "test_a_slider_never_offers_what_is_refused",)),
    Fault("jobs/predict/explore.py", 'or kind == "patient":', "or True:", (
        EXPLORE + "test_other_people_only_where_people_were_told_apart",)),
    Fault("jobs/predict/commands.py", "label = asked(given, model)", "label = given.label", (SAME,)),
    Fault("jobs/predict/explore.py", "self.pack.images[row : row + 1]", "self.pack.images[row - 1 : row]", (NEAREST,)),
    Fault("jobs/predict/explore.py", "held.digest != self.pack.digest", "held.digest == self.pack.digest", (NEAREST,)),
    Fault("jobs/predict/reconstruct.py", "shape_of(model)", 'dict(resolution=model.resolution, channels=model.channels)', (
        EXPLORE + "test_reconstruct_looks_at_slices_as_the_vae_was_trained_on",)),
    Fault("data/pack.py", "if not place.exists():", "if False:", (
        EXPLORE + "test_without_packs_the_picture_stands_alone_and_nothing_is_written",)),
    Fault("jobs/cluster/show.py", 'rows = [("on your computer", rows[-1][1])]', "pass", (
        "tests/cluster/test_watching.py::test_the_tunnel_to_the_curves",)),
]  # fmt: skip
