"""Faults in train_gan.py and in what it calls of models/."""

from __future__ import annotations

from tests.mutants import Fault

SCRIPT = "train_gan.py"
MAIN, STEP = "tests/test_gan_main.py", "tests/test_gan_step.py"


def steps(case: str) -> tuple[str, ...]:
    return (f"tests/test_reference_gan.py::test_six_steps_of_main_are_those_of_the_reference[{case}]",)


LOGISTIC, RPGAN, NO_PATH, NO_PENALTY = map(steps, ("logistic", "rpgan", "no-path-length", "no-gradient-penalty"))
RANKS = ("tests/test_reference_gan.py::test_two_ranks_take_their_rows_and_step_as_one[1-pieces0]",)
DIVERGED = ("tests/test_reference_gan.py::test_after_a_divergence_main_goes_on_with_other_data_and_draws[0.008]",)
BUILT = (f"{MAIN}::test_networks_optimizers_and_ada_are_as_the_flags_say",)
UNCORRECTED = (f"{MAIN}::test_without_a_penalty_adam_is_not_corrected_for_it",)
DUE = (f"{MAIN}::test_penalties_come_every_few_steps_and_not_without_a_weight",)
TYPES = (f"{MAIN}::test_the_convolutions_of_each_phase_run_in_its_type",)
SCALES = (f"{MAIN}::test_a_loss_scale_is_undone_before_the_step_and_penalties_have_none",)
COMPILED = (f"{MAIN}::test_the_compiled_networks_are_for_the_losses_alone",)
GRIDS = (f"{MAIN}::test_grids_and_diversity_are_of_fixed_latents_against_the_first_reals",)
LARGE = (f"{MAIN}::test_grids_of_large_slices_are_smaller_and_equal_reals_have_no_diversity",)
LAST_GRID = (f"{MAIN}::test_the_last_grid_is_of_the_weights_that_were_saved",)
COLLAPSED = (f"{MAIN}::test_when_a_run_counts_as_collapsed",)
MARKS = (f"{MAIN}::test_checkpoints_of_a_collapsed_run_are_not_the_healthy_ones",)
FLAGS = (f"{MAIN}::test_main_hands_its_flags_to_the_data_and_writes_where_its_weights_come_from",)
LEFT_ALONE = (f"{MAIN}::test_a_finished_or_stopped_run_is_left_alone",)
OTHER_DATA = (f"{MAIN}::test_other_data_are_refused",)
CLASSES = (f"{MAIN}::test_classes_that_are_not_there_are_refused_before_anything_is_trained",)
WORLD = (f"{MAIN}::test_a_batch_that_does_not_fall_into_the_ranks_of_a_slurm_step_is_refused",)
DRY_RUN = (f"{MAIN}::test_a_dry_run_prints_the_config_alone_to_standard_output",)
FLOPS = ("tests/test_throughput.py::test_flops_of_a_training_step_are_those_of_the_real_one",)
LOSSES, AUGMENT, EMA = ("tests/test_gan_losses.py",), ("tests/test_augment.py",), ("tests/test_ema.py",)
NETWORKS = "tests/test_stylegan2.py"
MIXED = ("tests/test_predict.py::test_mix_takes_these_layers_from_the_top_and_the_others_from_the_left[2-4-layers2]",)


def script(before: str, after: str, tests: tuple[str, ...]) -> Fault:
    return Fault(SCRIPT, before, after, tests)


BUILDING = [
    script("W_AVG_BETA = 0.998", "W_AVG_BETA = 0.98", LOGISTIC),
    script('runtime.seed_of(c.seed, 0, "weights")', 'runtime.seed_of(0, c.seed, "weights")', LOGISTIC),
    script("    G_ema.load_state_dict(G.state_dict())\n", "", BUILT),
    script("opt_G=adam(G, c.lr, c.pl_interval if", "opt_G=adam(G, c.lr, c.r1_interval if", BUILT),
    script("opt_D=adam(D, c.lr, c.r1_interval if c.gamma else 0)", "opt_D=adam(D, c.lr, c.r1_interval)", UNCORRECTED),
    script("lr=lr * c, betas=(0.0, 0.99**c)", "lr=lr, betas=(0.0, 0.99**c)", LOGISTIC),
    script("betas=(0.0, 0.99**c)", "betas=(0.0, 0.99)", BUILT),
    script("betas=(0.0, 0.99**c)", "betas=(0.9, 0.99**c)", LOGISTIC),
    script("scaler_D=torch.amp.GradScaler(device.type, enabled=fp16)", "scaler_D=torch.amp.GradScaler(device.type, enabled=False)",
           (f"{STEP}::test_reduced_precision_trains_and_stays_near_fp32[fp16]",)),
    script("target=c.ada_target, speed_kimg=c.ada_kimg", "speed_kimg=c.ada_kimg", BUILT),
    script('"best_diversity": 0.0})', '"best_diversity": 1.0})', BUILT),
    script('"ada_p": self.ada.p,', '"ada_p": self.ada.r_t,', RPGAN),
]  # fmt: skip

DRAWS = [
    script("runtime.generator(self.c.seed, self.position, purpose", "runtime.generator(self.c.seed, 0, purpose", LOGISTIC),
    script("runtime.generator(self.c.seed, self.position, purpose", "runtime.generator(self.c.seed, self.position + self.rt.rank, purpose", RANKS),
    script("runtime.rows(batch, self.rt.rank, self.rt.world", "runtime.rows(batch, 0, self.rt.world", RANKS),
    script("self.stats.get(name, 0.0) + values.detach()", "values.detach()", RPGAN),
    script("torch.randint(1, G.num_ws, (batch,)", "torch.randint(0, G.num_ws, (batch,)", LOGISTIC),
    script("device=device) < c.style_mixing", "device=device) > c.style_mixing", LOGISTIC),
    script("labels=step.label_pool[pick] if c.conditional", "labels=pick % G.num_classes if c.conditional", RPGAN),
    script("v[start:stop] for k, v in draws", "v[: stop - start] for k, v in draws", RPGAN),
    script("[layer[start:stop] for layer", "[layer[: stop - start] for layer", RPGAN),
    script("return mix_styles(w, w_mix, cutoff, G.num_ws), w", "return mix_styles(w_mix, w, cutoff, G.num_ws), w", LOGISTIC),
    script("return mix_styles(w, w_mix, cutoff, G.num_ws), w", "return mix_styles(w, w_mix, cutoff, G.num_ws), w_mix", LOGISTIC),
    script("None if labels is None else labels.repeat(2))", "None if labels is None else labels.repeat_interleave(2))", RPGAN),
    script('if step.c.ada == "off":', 'if step.c.ada != "mri":', NO_PATH),
    script("ada.draw_augmentation(step.c.batch, p, step.c.resolution", "ada.draw_augmentation(step.c.batch, 1 - p, step.c.resolution", RPGAN),
    script("ada.augment(images, ada.rows(params, start, stop))", "ada.augment(images, ada.rows(params, 0, stop - start))", RPGAN),
    script("    runtime.reduce_mean_gradients(step.rt, list(module.parameters()))\n    if scaler", "    if scaler", RANKS),
    script("        scaler.update()\n", "", (f"{STEP}::test_fp16_survives_an_overflow",)),
    script("    optimizer.zero_grad(set_to_none=True)\n", "", LOGISTIC),
]  # fmt: skip

PHASES = [
    # the generator
    script('draw_latents(step, s.G, c.batch, "G")', 'draw_latents(step, s.G, c.batch, "D")', LOGISTIC),
    script("    s.D.requires_grad_(False)\n", "", LOGISTIC),
    script("augmented(real, params, start, stop_), labels if c.conditional", "real, labels if c.conditional", RPGAN),
    script("losses = generator_loss(logits, real_logits, kind=c.loss)", "losses = generator_loss(logits, real_logits)", RPGAN),
    script("s.scaler_G.scale(losses.mean() / c.accumulate).backward()", "s.scaler_G.scale(losses.mean()).backward()", RPGAN),
    script("step.w_sum += w.detach().sum(0) / c.batch", "step.w_sum += w.detach().mean(0)", RPGAN),
    script("optimizer_step(step, s.G, s.opt_G, s.scaler_G)", "optimizer_step(step, s.G, s.opt_G, s.scaler_D)", SCALES),
    # path length
    script("max(step.c.batch // 2, 1)", "max(step.c.batch, 1)", LOGISTIC),
    script("lengths = path_lengths(images, ws, pl_noise[start:stop_])", "lengths = path_lengths(images, ws, pl_noise[: stop_ - start])", RPGAN),
    script("penalty = path_length_penalty(lengths, s.pl_mean)", "penalty = path_length_penalty(lengths, lengths.detach().mean())", LOGISTIC),
    script("c.pl_weight * c.pl_interval / c.accumulate", "c.pl_weight / c.accumulate", LOGISTIC),
    script("images = s.G.synthesis(ws, noise, dtype=exact", "images = s.G.synthesis(ws, None, dtype=exact", LOGISTIC),
    script("images = s.G.synthesis(ws, noise, dtype=exact", "images = step.synthesis(ws, noise, dtype=exact", COMPILED),
    script("optimizer_step(step, s.G, s.opt_G)", "optimizer_step(step, s.G, s.opt_G, s.scaler_G)", SCALES),
    # the discriminator
    script('torch.cat([latents["labels"], labels]) if c.conditional', 'torch.cat([labels, latents["labels"]]) if c.conditional', NO_PATH),
    script("fake_logits, real_logits = step.critic(torch.cat([fake, real])", "real_logits, fake_logits = step.critic(torch.cat([fake, real])", LOGISTIC),
    script("losses = discriminator_loss(real_logits, fake_logits, kind", "losses = discriminator_loss(fake_logits, real_logits, kind", LOGISTIC),
    script("            real = augmented(real, real_params, start, stop_)\n", "", RPGAN),
    script("            real = augmented(real, real_params, start, stop_)\n", "            real = augmented(real, params, start, stop_)\n", RPGAN),
    script("            fake = augmented(fake, params, start, stop_)\n", "", RPGAN),
    script("            fake = step.synthesis(styles_of(s.G, **latents)[0], noise,", "            fake = step.synthesis(styles_of(s.G_ema, **latents)[0], noise,", LOGISTIC),
    script('if c.loss == "rpgan" else real_logits', 'if c.loss == "rpgan" else fake_logits', LOGISTIC),
    script('step.add("logits_fake", fake_logits, c.batch)', 'step.add("logits_fake", real_logits, c.batch)', LOGISTIC),
    script("s.scaler_D.scale(losses.mean() / c.accumulate).backward()", "s.scaler_G.scale(losses.mean() / c.accumulate).backward()", SCALES),
    # its gradient penalty
    script("detach_std=True)", "detach_std=False)", LOGISTIC),
    script("c.gamma / 2 * c.r1_interval / c.accumulate", "c.gamma * c.r1_interval / c.accumulate", LOGISTIC),
    script("c.gamma / 2 * c.r1_interval / c.accumulate", "c.gamma / 2 / c.accumulate", LOGISTIC),
    script('draw_augmentation(step, s.ada.p, "R1")', 'draw_augmentation(step, s.ada.p, "D real")', RPGAN),
    script('augmented(fake, params, start, stop_), latents["labels"]))', "augmented(fake, params, start, stop_), labels))", RPGAN),
    script("return torch.float32 if dtype == torch.float16 else dtype", "return dtype", TYPES),
    # the whole step
    script("count = nimg // c.batch\n", "count = nimg // c.batch + 1\n", DUE),
    script("bool(c.gamma) and count % c.r1_interval == 0", "count % c.r1_interval == 0", NO_PENALTY),
    script("path_length_due, gradient_due = penalties_due(c, nimg)", "path_length_due, gradient_due = penalties_due(c, step.position)", DIVERGED),
    script("    generator_step(s, step)\n    if path_length_due:\n        path_length_step(s, step)\n    discriminator_step(s, step)\n",
           "    discriminator_step(s, step)\n    generator_step(s, step)\n    if path_length_due:\n        path_length_step(s, step)\n", LOGISTIC),
    script("s.G.update_w_avg(total[: c.w_dim], W_AVG_BETA)", "s.G.update_w_avg(step.w_sum, W_AVG_BETA)", RANKS),
    script('s.pl_mean.lerp_(stats["path_length"], c.pl_decay)', 's.pl_mean.lerp_(stats["path_length"], 1 - c.pl_decay)', LOGISTIC),
    script('s.ada.add(stats["sign_real"] * c.batch, c.batch)', 's.ada.add(stats["sign_real"], c.batch)', RPGAN),
    script("        s.ada.update(c.batch)\n", "", RPGAN),
    script("ema_beta(nimg + c.batch, c.batch,", "ema_beta(nimg, c.batch,", LOGISTIC),
    script("c.ema_kimg, c.ema_rampup))", "c.ema_kimg))", LOGISTIC),
]  # fmt: skip

LOOKING = [
    script("self.columns * (6 if c.resolution <= 128 else 4)", "self.columns * (4 if c.resolution <= 128 else 6)", LARGE),
    script('gen = runtime.generator(c.seed, 0, "grid", rt.device)', 'gen = runtime.generator(0, c.seed, "grid", rt.device)', GRIDS),
    script("device=rt.device) // self.columns", "device=rt.device) % self.columns", GRIDS),
    script("count = min(64, len(pack.labels))", "count = min(48, len(pack.labels))", GRIDS),
    script("labels[i], dtype=self.dtype)", "labels[i])", TYPES),
    script("ratio = diversity_ratio(images, self.real)", "ratio = diversity_ratio(self.real, images)", GRIDS),
    script('{} if math.isnan(ratio) else {"diversity": ratio}', '{"diversity": ratio}', LARGE),
    script("grid, figures = sampler(s.G_ema)", "grid, figures = sampler(s.G)", GRIDS),
    script("    judge_health(figures, s.counters, nimg, attempt.say)\n", "", MARKS),
    script("        return grid, {}  # an untrained generator's noise says nothing", "        pass", MARKS),
    script("low = min(figures.values())", "low = max(figures.values())", COLLAPSED),
    script('counters["best_diversity"] = max(counters["best_diversity"], low)', 'counters["best_diversity"] = low', COLLAPSED),
    script("> 2 * COLLAPSE_RATIO and low", "> 2 * COLLAPSE_RATIO or low", COLLAPSED),
    script("nimg >= FLOOR_AFTER)", "nimg > FLOOR_AFTER)", COLLAPSED),
    script("FLOOR_AFTER = 20_000", "FLOOR_AFTER = 2_000", COLLAPSED),
    script('counters["healthy"] = not collapsed', 'counters["healthy"] = True', COLLAPSED),
]  # fmt: skip

RUNNING = [
    script("Checkpoints(run.checkpoints, keep=c.keep, say", "Checkpoints(run.checkpoints, say", MARKS),
    script("if found < 0 and c.init_from:", "if c.init_from:", FLAGS),
    script('("G", "D", "G_ema"), c.init_from', '("G", "D"), c.init_from', FLAGS),
    script("device=rt.device, hflip=c.hflip)", "device=rt.device)", RPGAN),
    script("label_pool = torch.from_numpy(pack.labels)", "label_pool = torch.from_numpy(pack.labels).unique()", RPGAN),
    script("if compiled else (s.G.synthesis, s.D)", "if not compiled else (s.G.synthesis, s.D)", COMPILED),
    script("nimg, total = max(found, 0), upkeep.total", "nimg, total = 0, upkeep.total", MARKS),
    script('upkeep.save(nimg, {"G_ema": s.G_ema}', 'upkeep.save(nimg, {"G_ema": s.G}', LOGISTIC),
    script('{"classes": pack.classes, "geometry": pack.geometry}', '{"classes": pack.classes}', FLAGS),
    script("            record.rewind(nimg)\n", "", DIVERGED),
    script('position = nimg + s.counters["skip"]', "position = nimg", DIVERGED),
    script("dtype, position, synthesis, critic, w_sum), nimg)", "dtype, nimg, synthesis, critic, w_sum), position)", DIVERGED),
    script("        kind = penalties_due(c, nimg)\n", "        kind = penalties_due(c, nimg + c.batch)\n", MARKS),
    script("p * path_length + g * gradient", "g * path_length + p * gradient", FLOPS),
    script("    compare_with_run(RunDir(c.run), c)\n    world", "    world", DRY_RUN),
    script("    print(specs.to_json(c))\n", "    say(specs.to_json(c))\n", DRY_RUN),
    script("    specs.check_world(c, world)\n", "", WORLD),
    script("    if already_done(c, run, rank, GENERATE):\n        return stop.DONE\n", "", LEFT_ALONE),
    script("if rank == 0 and not prepare_run(run, c, attempt.say):", "if rank == 0 and prepare_run(run, c, attempt.say) is None:", LEFT_ALONE),
    script("channels=c.channels, crop=c.crop, split=c.split, max_bad", "channels=c.channels, split=c.split, max_bad", FLAGS),
    script("        specs.check_classes(c, pack.classes)\n", "", CLASSES),
    script("{c.split: pack.digest}, attempt.say)\n", "{c.split: pack.path}, attempt.say)\n", FLAGS),
    script("            check_data(run, c, pack.classes, {c.split: pack.digest}, attempt.say)\n", "", OTHER_DATA),
    script("            adopt_config(run, c)\n", "            pass\n", FLAGS),
    script("        code = train(c, rt, run, pack, attempt)\n", "        code = train(c, rt, run, pack, attempt) or stop.BAD\n", LOGISTIC),
]  # fmt: skip


def network(before: str, after: str, test: str) -> Fault:
    return Fault("models/stylegan2.py", before, after, (f"{NETWORKS}::{test}",))


HEAD = "test_what_is_before_and_behind_the_blocks_of_the_discriminator_equals_its_formula"
MODELS = [
    Fault("models/gan_losses.py", "return F.softplus(-fake_logits)", "return -F.softplus(fake_logits)", LOSSES),
    Fault("models/gan_losses.py", "images, create_graph=True)", "images, create_graph=False)", LOSSES),
    Fault("models/gan_losses.py", "y = pl_noise / math.sqrt(height * width)", "y = pl_noise / math.sqrt(height + width)", LOSSES),
    Fault("models/gan_losses.py", "grad.square().sum(2).mean(1).sqrt()", "grad.square().sum((1, 2)).sqrt()", LOSSES),
    Fault("models/augment.py", "ROTATE = 15.0", "ROTATE = 45.0", AUGMENT),
    Fault("models/augment.py", "mirror / (scale * stretch), stretch / scale", "mirror * scale * stretch, scale / stretch", AUGMENT),
    Fault("models/augment.py", "[ax * cos, ax * sin, -ay * sin, ay * cos]", "[ax * cos, -ax * sin, ay * sin, ay * cos]", AUGMENT),
    Fault("models/augment.py", 'padding_mode="zeros"', 'padding_mode="border"', AUGMENT),
    Fault("models/augment.py", "(self.r_t > self.target) - (self.r_t < self.target)", "(self.r_t < self.target) - (self.r_t > self.target)", AUGMENT),
    Fault("models/augment.py", "p_max: float = 0.8", "p_max: float = 1.0", AUGMENT),
    Fault("models/ema.py", "min(half_life, nimg * ramp_up)", "max(half_life, nimg * ramp_up)", EMA),
    Fault("models/ema.py", "list(module.parameters()), 1 - beta)", "list(module.parameters()), beta)", EMA),
    Fault("models/styles.py", "(layers >= first) & (layers <= last), other, ws", "(layers >= first) & (layers < last), other, ws", MIXED),
    network("self.w_avg + psi * (ws - self.w_avg)", "ws + psi * (self.w_avg - ws)", "test_truncation_moves_towards_the_average_below_the_cutoff"),
    network("self.bias * scale)", "self.bias)", "test_mapping_networks_equal_their_formula"),
    network("mapping_lr_multiplier: float = 0.01", "mapping_lr_multiplier: float = 1.0", "test_mapping_networks_equal_their_formula"),
    network("return x * (x.square().mean(1", "return x * (x.square().sum(1", "test_mapping_networks_equal_their_formula"),
    network("EqualLinear(last * 16, last, activate=True)", "EqualLinear(last * 16, last)", HEAD),
    network("self.conv = EqualConv(last + mbstd_channels, last)", "self.conv = EqualConv(last + mbstd_channels, last, gain=1 / SQRT2)", HEAD),
    network("rgb = self.to_rgb[i // 2](x, ws[:, i + 1])", "rgb = self.to_rgb[i // 2](x, ws[:, i])", "test_every_style_reaches_the_image"),
    network("< cutoff[:, None]", "<= cutoff[:, None]", "test_style_mixing_changes_only_layers_from_the_cutoff_on"),
    network("minibatch_std(x.detach() if detach_std else x,", "minibatch_std(x,", "test_detached_std_leaves_every_logit_with_its_own_image_alone"),
    network("std.repeat_interleave(group, 0)", "std.repeat(group, 1)", "test_minibatch_std_equals_loops"),
]  # fmt: skip

FAULTS = [*BUILDING, *DRAWS, *PHASES, *LOOKING, *RUNNING, *MODELS]
