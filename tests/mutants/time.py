"""Faults that only the sum of all steps shows, what a generator comes to that trains with them; and in what ranks tell each other."""

from tests.mutants import Fault

ORDERING = (
    "tests/test_evaluate_ordering.py::test_a_gan_that_trains_is_better_by_every_distance_and_learns_its_classes",
)
STOP = ("tests/test_reasons.py::test_a_signal_that_reaches_another_rank_first_is_named_as_if_it_had_come_here",)
TELL = ("tests/test_reasons.py::test_ranks_tell_each_other_why_they_stop",)
PERSON = ("tests/test_reasons.py::test_of_two_ranks_reasons_a_persons_counts",)

# fmt: off
FAULTS = [
    # --- what a conditional run learns (about 15 s each) ------------------------------------------------------------
    Fault("train_gan.py", 'both = torch.cat([latents["labels"], labels])', 'both = torch.cat([labels, latents["labels"]])', ORDERING),
    Fault("train_gan.py", "fake_logits, real_logits = step.critic(", "real_logits, fake_logits = step.critic(", ORDERING),
    Fault("train_gan.py", 'params, start, stop_), latents["labels"], dtype=step.dtype)', 'params, start, stop_), latents["labels"].flip(0), dtype=step.dtype)', ORDERING),
    Fault("train_gan.py", "update_ema(s.G_ema, s.G,", "update_ema(s.G, s.G_ema,", ORDERING),
    Fault("train_gan.py", "optimizer_step(step, s.D, s.opt_D, s.scaler_D)", "optimizer_step(step, s.D, s.opt_G, s.scaler_D)", ORDERING),
    Fault("models/gan_losses.py", "return F.softplus(-fake_logits)", "return F.softplus(fake_logits)", ORDERING),
    Fault("train_gan.py", "labels=step.label_pool[pick] if", "labels=step.label_pool[pick * 0] if", ORDERING),
    Fault("models/stylegan2.py", "normalise(F.embedding(labels, self.embedding))", "normalise(F.embedding(labels * 0, self.embedding))", ORDERING),
    # --- why the ranks stop (a second each) ---------------------------------------------------------------------------
    Fault("jobs/run/stopping.py", "return level + 10 * REASONS.index(self.reason) if", "return level if", STOP),
    Fault("jobs/run/stopping.py", "        self._agreed = told\n", "", STOP),
    Fault("jobs/run/stopping.py", "return told % 10", "return told // 10", STOP),
    Fault("jobs/run/stopping.py", "return REASONS[self._agreed // 10]", "return REASONS[self._agreed % 10]", STOP),
    Fault("jobs/run/stopping.py", '"TERM", "time limit", "Ctrl-C", "STOP file")', '"TERM", "Ctrl-C", "STOP file", "time limit")', PERSON),
    Fault("jobs/run/stopping.py", "if level == self._agreed % 10 and self._agreed >= 10:", "if self._agreed:", PERSON),
    Fault("jobs/training/upkeep.py", "runtime.agree_max(self.rt, [self.watch.tell(), int(timed)])", "runtime.agree_max(self.rt, [self.watch.poll(), int(timed)])", TELL),
    Fault("jobs/training/upkeep.py", "self.level = self.watch.hear(told)", "self.level = told % 10", TELL),
]
