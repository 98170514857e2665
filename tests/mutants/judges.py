"""What the figures of a run say against it."""

from tests.mutants import Fault

JUDGES = "tests/training/test_judges.py"
FAULTS = [
    Fault("jobs/training/judges.py", "low < COLLAPSE_RATIO)", "low < 0.2)", (f"{JUDGES}::test_verdicts",)),
    Fault(
        "jobs/training/judges.py",
        "best > 2 * COLLAPSE_RATIO and low",
        "best > 2 * COLLAPSE_RATIO or low",
        (f"{JUDGES}::test_verdicts",),
    ),
    Fault(
        "jobs/training/judges.py",
        "nimg >= FLOOR_AFTER)",
        "nimg > FLOOR_AFTER)",
        ("tests/scripts/test_gan_main.py::test_when_a_run_counts_as_collapsed",),
    ),
    Fault(
        "jobs/training/judges.py",
        "FLOOR_AFTER = 20_000",
        "FLOOR_AFTER = 2_000",
        ("tests/scripts/test_gan_main.py::test_when_a_run_counts_as_collapsed",),
    ),
    Fault(
        "jobs/training/judges.py",
        "low = min(",
        "low = max(",
        ("tests/scripts/test_gan_main.py::test_when_a_run_counts_as_collapsed",),
    ),
    Fault(
        "jobs/training/judges.py",
        "elif low < NARROW < best and low < last:",
        "elif low < NARROW < best:",
        (f"{JUDGES}::test_verdicts",),
    ),
    Fault(
        "jobs/training/judges.py",
        'counters.get("ahead", 0) + 1 if row["loss_D"] < AHEAD[c.loss] else 0',
        'counters.get("ahead", 0) + (row["loss_D"] < AHEAD[c.loss])',
        (f"{JUDGES}::test_verdicts",),
    ),
    Fault(
        "jobs/training/judges.py",
        "{length}{mixing}another",
        "{mixing}another",
        (f"{JUDGES}::test_what_a_run_has_already_is_not_what_it_should_try",),
    ),
    Fault(
        "jobs/training/judges.py",
        "{length}{mixing}another",
        "{length}another",
        (f"{JUDGES}::test_what_a_run_has_already_is_not_what_it_should_try",),
    ),
    Fault("jobs/training/judges.py", '"rpgan": 0.1}', '"rpgan": 0.2}', (f"{JUDGES}::test_verdicts",)),
    Fault(
        "jobs/training/judges.py", "if held >= chance + TOLD_APART and found", "if found", (f"{JUDGES}::test_verdicts",)
    ),
    Fault("jobs/training/judges.py", "IGNORED = 0.25", "IGNORED = 0.0", (f"{JUDGES}::test_verdicts",)),
    Fault("jobs/training/judges.py", "if lost or ignored", "if lost", (f"{JUDGES}::test_verdicts",)),
    Fault("jobs/training/judges.py", "1 / max(2, len(pairs))", "1 / len(pairs)", (f"{JUDGES}::test_verdicts",)),
    Fault(
        "jobs/training/judges.py", "in lost or pairs", "in pairs", (f"{JUDGES}::test_two_lost_classes_are_both_named",)
    ),
    Fault(
        "jobs/training/judges.py",
        "len(pairs) > 1 and real >= chance + TOLD_APART and made",
        "len(pairs) > 1 and made",
        (f"{JUDGES}::test_verdicts",),
    ),
    Fault(
        "jobs/predict/yardstick.py",
        "if min(made, held) < FEW:",
        "if made < FEW:",
        (f"{JUDGES}::test_copies_and_lost_classes_show_in_the_figures",),
    ),
    Fault(
        "jobs/run/vae.py",
        "if not (has_collapsed(verdict) and",
        "if (has_collapsed(verdict) and",
        (f"{JUDGES}::test_a_collapsed_vae_is_said_everywhere_and_trained_on_only_if_told",),
    ),
    Fault(
        "jobs/cluster/show.py",
        'return useful(commands, verdict_of(run / "weights.safetensors"))',
        "return commands",
        (f"{JUDGES}::test_a_collapsed_vae_is_said_everywhere_and_trained_on_only_if_told",),
    ),
    Fault(
        "jobs/training/told.py",
        "    if verdict:\n",
        "    if False:\n",
        (f"{JUDGES}::test_a_collapsed_vae_is_said_everywhere_and_trained_on_only_if_told",),
    ),
    Fault(
        "jobs/config/rules.py",
        "0 < (LOOKS + 2) * every",
        "0 <= LOOKS * every",
        ("tests/training/test_best.py::test_a_run_that_is_to_stop_when_worse_looks_often_enough",),
    ),
    Fault(
        "jobs/training/judges.py",
        "                counters.pop(VERDICT + name, None)\n",
        "                pass\n",
        (f"{JUDGES}::test_verdicts",),
    ),
    Fault(
        "jobs/training/judges.py",
        "SPREAD[0] <= value <= SPREAD[1]",
        "value <= SPREAD[1]",
        (f"{JUDGES}::test_verdicts",),
    ),
    Fault(
        "jobs/training/judges.py",
        'if psnr <= row["mean_slice_psnr"]',
        'if psnr >= row["mean_slice_psnr"]',
        (f"{JUDGES}::test_verdicts",),
    ),
    Fault(
        "jobs/training/judges.py",
        "SETTLED = 0.1",
        "SETTLED = 0.0",
        (f"{JUDGES}::test_the_young_are_not_held_to_account",),
    ),
    Fault(
        "jobs/training/upkeep.py",
        "            self.attempt.verdict = judges.verdict(self.s.counters)\n        if self.c.stop_when_worse",
        "        if self.c.stop_when_worse",
        (f"{JUDGES}::test_a_verdict_outlives_a_stop",),
    ),
    Fault(
        "jobs/training/upkeep.py",
        '            about["verdict"] = verdict\n',
        "            pass\n",
        (f"{JUDGES}::test_a_collapsed_vae_is_said_everywhere_and_trained_on_only_if_told",),
    ),
    Fault(
        "jobs/run/attempt.py",
        "                self.run.config.unlink(missing_ok=True)\n",
        "",
        (f"{JUDGES}::test_a_collapsed_vae_is_said_everywhere_and_trained_on_only_if_told",),
    ),
    Fault(
        "jobs/run/attempt.py",
        "                copied_vae(self.run.path).unlink(missing_ok=True)\n",
        "",
        ("tests/run/test_attempts.py::test_what_a_refused_first_start_wrote_is_taken_back",),
    ),
    Fault(
        "jobs/run/attempt.py",
        "    run.proposed = False\n",
        "",
        ("tests/run/test_attempts.py::test_what_a_refused_first_start_wrote_is_taken_back",),
    ),
    Fault(
        "jobs/run/vae.py",
        "if has_collapsed(verdict) and not c.override:",
        "if False:",
        (f"{JUDGES}::test_a_collapsed_vae_is_said_everywhere_and_trained_on_only_if_told",),
    ),
    Fault(
        "jobs/predict/yardstick.py",
        "hit = self.probe.predict(features) == labels",
        "hit = self.probe.predict(features) != labels",
        (f"{JUDGES}::test_copies_and_lost_classes_show_in_the_figures",),
    ),
    Fault(
        "jobs/predict/yardstick.py",
        'figures["copies"] = self.watch.share(thumbs[evenly(len(thumbs), WATCHED)])',
        'figures["copies"] = 0.05',
        (f"{JUDGES}::test_copies_and_lost_classes_show_in_the_figures",),
    ),
    Fault(
        "jobs/predict/vae_look.py",
        'figures["mean_slice_psnr"] = of_mean_slice',
        'figures["mean_slice_psnr"] = 0.0',
        ("tests/scripts/test_reference_vae.py::test_reconstructions_are_those_of_the_posterior_means",),
    ),
    Fault(
        "jobs/predict/diffusion_look.py",
        "squares += x0.square().sum()",
        "squares += x0.abs().sum()",
        ("tests/scripts/test_reference_diffusion.py::test_grids_diversity_and_losses_by_hand",),
    ),
]
