"""Faults in the KL-VAE: its script, its networks and losses, the perceptual term, AdamW and rates, the cache of latents."""

from __future__ import annotations

from tests.mutants import Fault

REFERENCE = "tests/test_reference_vae.py::"
STEPS, RANKS = (
    f"{REFERENCE}test_six_steps_are_those_of_the_papers",
    f"{REFERENCE}test_two_ranks_with_parts_are_the_same_steps",
)
SEEN = f"{REFERENCE}test_reconstructions_are_those_of_the_posterior_means"
RUN = f"{REFERENCE}test_a_run_logs_and_writes_just_that_and_steps_over_a_poisoned_batch"
START = f"{REFERENCE}test_the_start_is_drawn_from_the_seed_and_the_average_is_the_network"
FLOPS = f"{REFERENCE}test_flops_of_a_step_are_those_of_the_real_one"
TYPE = f"{REFERENCE}test_networks_run_in_the_type_and_losses_in_fp32"
AGAIN = f"{REFERENCE}test_a_run_may_start_from_the_networks_of_another"
DATA = "tests/test_pretrain_vae.py::test_slices_of_training_and_of_other_patients"
LATENTS = f"{REFERENCE}test_latents_are_written_by_a_finished_run_alone_and_their_lack_is_no_failure"
DRY, LARGE = (
    f"{REFERENCE}test_a_dry_run_checks_all_and_makes_nothing",
    f"{REFERENCE}test_rows_of_large_slices_are_shorter",
)
NETWORK, PATCHES = (
    "tests/test_vae.py::test_the_networks_are_those_of_rombach_2022",
    "tests/test_vae.py::test_the_discriminator_is_that_of_isola_2017",
)
BETWEEN = "tests/test_pretrain_vae.py::test_nor_where_it_joins_just_between_two_windows"
FLAGS = f"{REFERENCE}test_networks_and_loss_scales_are_those_of_the_flags"
SCRIPT = "pretrain_vae.py"


def of(file: str, before: str, after: str, *tests: str) -> Fault:
    return Fault(file, before, after, tests)


FAULTS = [
    # --- the step
    of(SCRIPT, "self.nimg >= self.c.gan_start_kimg * 1000", "self.nimg > self.c.gan_start_kimg * 1000", STEPS),
    of(SCRIPT, "return self.c.gan_weight > 0 and self.nimg", "return self.c.gan_weight > 0 or self.nimg", STEPS),
    of(SCRIPT, 'c.decay_kimg if self.c.decay == "cosine" else 0.0', 'c.decay_kimg if self.c.decay != "cosine" else 0.0', STEPS),
    of(SCRIPT, "rate = learning_rate(self.nimg, self.c.batch", "rate = learning_rate(self.position, self.c.batch", STEPS),
    of(SCRIPT, "self.c.lr, self.c.warmup_kimg, cosine_kimg)", "self.c.lr, cosine_kimg, self.c.warmup_kimg)", STEPS),
    of(SCRIPT, 'return rate * s.counters["lr_factor"]', "return rate", STEPS),
    of(SCRIPT, "enabled=self.dtype != torch.float32)\n\n    def rows", "enabled=self.dtype == torch.float32)\n\n    def rows", TYPE),
    of(SCRIPT, "values.detach().float().sum() / self.c.batch", "values.detach().float().mean()", STEPS),
    of(SCRIPT, 'step.position, "posterior", step.rt.device', 'step.nimg, "posterior", step.rt.device', STEPS),
    of(SCRIPT, "step.batches.rows(step.position, start, stop_)", "step.batches.rows(step.nimg, start, stop_)", STEPS),
    of(SCRIPT, "step.network(images, noise[start:stop_])", "step.network(images, noise[: stop_ - start])", STEPS),
    of(SCRIPT, "kl = kl_divergence(mean, logvar)", "kl = kl_divergence(mean, -logvar)", STEPS),
    of(SCRIPT, "image = output.detach().requires_grad_(True)", "image = output.detach().clamp(-1, 1).requires_grad_(True)", STEPS),
    of(SCRIPT, "pixels = reconstruction_loss(image, images, c.loss)", "pixels = reconstruction_loss(image, images)", STEPS),
    of(SCRIPT, "(pixels + c.structure_weight * structure).sum(), image", "(pixels + c.structure_weight * structure).mean(), image", STEPS),
    of(SCRIPT, "(pixels + c.structure_weight * structure).sum(), image", "(pixels + structure).sum(), image", STEPS),
    of(SCRIPT, "gradient = gradient + c.perceptual_weight * push / scale", "gradient = gradient + push / scale", STEPS),
    of(SCRIPT, "gradient = gradient + c.perceptual_weight * push / scale", "gradient = gradient + c.perceptual_weight * push", STEPS),
    of(SCRIPT, "distance = step.perceptual(image, images)", "distance = step.perceptual(image, images.roll(1, 0))", STEPS),
    of(SCRIPT, "adversarial = hinge_g_loss(s.D(image))", "adversarial = -hinge_g_loss(s.D(image))", STEPS),
    of(SCRIPT, "            push = push / scale\n", "            push = push\n", STEPS),
    of(SCRIPT, 'step.add("grad_pixels", gradient.flatten(1).norm(dim=1))', 'step.add("grad_pixels", gradient.flatten(1).norm().expand(1))', STEPS),
    of(SCRIPT, 'step.add("grad_adversarial", push.flatten(1).norm(dim=1))', 'step.add("grad_adversarial", c.gan_weight * push.flatten(1).norm(dim=1))', STEPS),
    of(SCRIPT, "gradient + c.gan_weight * s.gan_balance * push", "gradient + c.gan_weight * push", STEPS),
    of(SCRIPT, "gradient + c.gan_weight * s.gan_balance * push", "gradient + s.gan_balance * push", STEPS),
    of(SCRIPT, "share = scale / (len(images) * c.accumulate)", "share = scale / len(images)", STEPS),
    of(SCRIPT, "share = scale / (len(images) * c.accumulate)", "share = scale / c.batch", RANKS),
    of(SCRIPT, "torch.full_like(kl, c.kl_weight) * share]", "torch.full_like(kl, c.kl_weight) / len(images)]", STEPS),
    of(SCRIPT, "torch.full_like(kl, c.kl_weight) * share]", "torch.full_like(kl, 1.0) * share]", STEPS),
    of(SCRIPT, "pairs.append((images, image.detach()))", "pairs.append((images, images + 0.1 * image.detach()))", STEPS),
    of(SCRIPT, "s.scaler_vae, step.lr(s), c.clip)", "s.scaler_vae, c.lr, c.clip)", STEPS),
    of(SCRIPT, "real_logits, fake_logits = s.D(", "fake_logits, real_logits = s.D(", STEPS),
    of(SCRIPT, "losses = hinge_d_loss(real_logits, fake_logits)", "losses = hinge_d_loss(real_logits, -fake_logits)", STEPS),
    of(SCRIPT, "losses.mean() / step.c.accumulate).backward()", "losses.mean()).backward()", STEPS),
    of(SCRIPT, "s.scaler_D, step.lr(s), step.c.clip)", "s.scaler_D, step.lr(s), math.inf)", STEPS),
    of(SCRIPT, "s.scaler_D, step.lr(s), step.c.clip)", "s.scaler_D, step.c.lr, step.c.clip)", STEPS),
    of(SCRIPT, "    if step.adversarial:\n        discriminator_step", "    if not step.adversarial:\n        discriminator_step", STEPS),
    of(SCRIPT, "total = runtime.reduce_sum(step.rt, torch.stack(", "total = (lambda _, v: v)(step.rt, torch.stack(", RANKS),
    of(SCRIPT, "BALANCE_PACE = 0.1", "BALANCE_PACE = 0.5", STEPS),
    of(SCRIPT, 'stats.pop("grad_pixels"), stats.pop("grad_adversarial")', 'stats.pop("grad_adversarial"), stats.pop("grad_pixels")', STEPS),
    of(SCRIPT, "s.gan_balance.lerp_(balanced_weight(", "s.gan_balance.clone().lerp_(balanced_weight(", STEPS),
    of(SCRIPT, 'look_for_plateau(s, step, stats["loss_pixels"])', 'look_for_plateau(s, step, stats["kl"])', STEPS),
    of(SCRIPT, "ema_beta(step.nimg + c.batch, c.batch,", "ema_beta(step.nimg, c.batch,", STEPS),
    of(SCRIPT, "ema_beta(step.nimg + c.batch, c.batch,", "ema_beta(step.position + c.batch, c.batch,", STEPS),
    of(SCRIPT, "update_ema(s.vae_ema, s.vae, ema_beta(", "update_ema(s.vae, s.vae_ema, ema_beta(", STEPS),
    of(SCRIPT, "c.ema_kimg, c.ema_rampup))", "c.ema_kimg))", STEPS),
    of(SCRIPT, "if step.adversarial and step.nimg - c.batch < c.gan_start_kimg", "if step.adversarial and step.nimg < c.gan_start_kimg", BETWEEN),
    of(SCRIPT, "if step.adversarial and step.nimg - c.batch < c.gan_start_kimg", "if step.adversarial and step.nimg - c.batch > c.gan_start_kimg", BETWEEN),
    of(SCRIPT, "if step.adversarial and step.nimg - c.batch < c.gan_start_kimg * 1000:", "if c.gan_weight and step.nimg < c.gan_start_kimg * 1000 <= nimg:", BETWEEN),
    of(SCRIPT, '        s.counters["best_window"] = math.inf', "        pass", STEPS),
    of(SCRIPT, "due(nimg, c.batch, c.plateau_kimg)", "due(step.nimg, c.batch, c.plateau_kimg)", STEPS),
    of(SCRIPT, "after = after_window(total / images,", "after = after_window(total / c.batch,", STEPS),
    of(SCRIPT, "        s.window.zero_()", "        s.window[0] = 0", STEPS),
    # --- the state
    of(SCRIPT, "opt_vae=adamw(vae, c.lr, c.weight_decay, betas=(0.9, 0.99))", "opt_vae=adamw(vae, c.lr, c.weight_decay, betas=(0.9, 0.999))", STEPS),
    of(SCRIPT, "opt_D=adamw(D, c.lr, c.weight_decay, betas=(0.5, 0.99))", "opt_D=adamw(D, c.lr, c.weight_decay, betas=(0.9, 0.99))", STEPS),
    of(SCRIPT, "opt_D=adamw(D, c.lr, c.weight_decay", "opt_D=adamw(D, c.lr, 0.0", STEPS),
    of(SCRIPT, 'runtime.seed_of(c.seed, 0, "weights")', 'runtime.seed_of(0, 0, "weights")', START),
    of(SCRIPT, "    vae_ema.load_state_dict(vae.state_dict())\n", "", START),
    of(SCRIPT, '{"gan_balance": float(self.gan_balance), "lr": self.opt_vae.param_groups[0]["lr"]}', '{"gan_balance": float(self.gan_balance), "lr": self.opt_vae.defaults["lr"]}', STEPS),
    of(SCRIPT, "return {step.adversarial: count_flops(partial(train_step, s, step)) for step in steps}", "return {not step.adversarial: count_flops(partial(train_step, s, step)) for step in steps}", FLOPS),
    of(SCRIPT, "replace(c, batch=1, accumulate=1, gan_start_kimg=1)", "replace(c, batch=2, accumulate=1, gan_start_kimg=1)", FLOPS),
    of(SCRIPT, "width=c.width, down=c.down, num_res=c.num_res)", "width=c.width, down=c.down)", FLAGS),
    of(SCRIPT, "PatchDiscriminator(c.channels, c.disc_width)", "PatchDiscriminator(c.channels)", FLAGS),
    of(SCRIPT, "runtime.precision_dtype(c.precision, device) == torch.float16", "runtime.precision_dtype(c.precision, device) == torch.bfloat16", FLAGS),
    of(SCRIPT, "LOOKED_AT = 256", "LOOKED_AT = 32", SEEN),
    of(SCRIPT, 'NEXT = "reconstruct --run {run}"', 'NEXT = "generate --run {run}"', RUN),
    # --- what a person sees
    of(SCRIPT, "source = pack if held_out is None else held_out", "source = pack", SEEN),
    of(SCRIPT, "torch.linspace(0, len(source.labels) - 1, self.count).round()", "torch.arange(self.count)", SEEN),
    of(SCRIPT, '"train" if held_out is None else "val"', '"val" if held_out is None else "train"', SEEN),
    of(SCRIPT, "for part in pick[rt.rank :: rt.world]", "for part in pick[: len(pick) // rt.world]", SEEN),
    of(SCRIPT, "head_mask((images + 1) / 2) for images", "head_mask(images) for images", SEEN),
    of(SCRIPT, "output = vae.decode(mean).clamp(-1, 1)", "output = vae.decode(mean)", SEEN),
    of(SCRIPT, "output = vae.decode(mean).clamp(-1, 1)", "output = vae(images, torch.randn_like(mean))[0].clamp(-1, 1)", SEEN),
    of(SCRIPT, "shown = output if shown is None else shown", "shown = output", SEEN),
    of(SCRIPT, "a, b = (output + 1) / 2, (images + 1) / 2", "a, b = output, images", SEEN),
    of(SCRIPT, "psnr(a, b, mask), ssim(a, b, mask).double()])", "psnr(a, b, ~mask), ssim(a, b, ~mask).double()])", SEEN),
    of(SCRIPT, "values.nan_to_num(0, 0, 0).sum(1), finite.sum(1).double()", "values.nan_to_num(0, 0, 0).sum(1), torch.ones_like(values).sum(1)", SEEN),
    of(SCRIPT, "(v.double().transpose(0, 1).flatten(1) for v in (mean, (0.5 * logvar).exp()))", "(v.double().transpose(0, 1).flatten(1) for v in (mean, logvar.exp()))", SEEN),
    of(SCRIPT, "moments += means * len(images) / self.count", "moments += means / len(self.images)", SEEN),
    of(SCRIPT, "sums, moments = runtime.reduce_sum(self.rt, sums), runtime.reduce_sum(self.rt, moments)", "sums = runtime.reduce_sum(self.rt, sums)", SEEN),
    of(SCRIPT, "return (None if self.rt.rank else self.grid(shown)), figures", "return (self.grid(shown) if self.rt.rank else None), figures", SEEN),
    of(SCRIPT, "for t in (self.images[0], output)]", "for t in (output, self.images[0])]", SEEN),
    # --- the run
    of(SCRIPT, "reconstructions(s.vae_ema), extra", "reconstructions(s.vae), extra", RUN),
    of(SCRIPT, 'upkeep.save(nimg, {"vae": s.vae_ema}', 'upkeep.save(nimg, {"vae": s.vae}', RUN),
    of(SCRIPT, '{"classes": pack.classes, "geometry": pack.geometry}', '{"geometry": pack.geometry}', RUN),
    of(SCRIPT, 'nimg, nimg + s.counters["skip"], network, perceptual)', "nimg, nimg, network, perceptual)", RUN),
    of(SCRIPT, 'nimg, nimg + s.counters["skip"], network, perceptual)', 'nimg + s.counters["skip"], nimg + s.counters["skip"], network, perceptual)', RUN),
    of(SCRIPT, "device=rt.device, hflip=c.hflip)", "device=rt.device)", RUN),
    of(SCRIPT, "Reconstructions(c, pack, held_out, rt, dtype)\n    record", "Reconstructions(c, pack, None, rt, dtype)\n    record", RUN),
    of(SCRIPT, "            record.rewind(nimg)\n", "", RUN),
    of(SCRIPT, "Batches(pack, seed=c.seed, batch=c.batch", "Batches(pack, seed=c.seed + 1, batch=c.batch", RUN),
    of(SCRIPT, "if found < 0 and c.init_from:", "if found > 0 and c.init_from:", AGAIN),
    of(SCRIPT, "if found < 0 and c.init_from:", "if c.init_from:", AGAIN),
    of(SCRIPT, '("vae", "vae_ema", "D"), c.init_from', '("vae", "vae_ema"), c.init_from', AGAIN),
    of(SCRIPT, "first_pictures=lambda: {\"reals\": reconstructions.reals()},", "first_pictures=lambda: {},", "tests/test_pretrain_vae.py::test_finished_run_has_everything_and_has_learnt"),
    of(SCRIPT, "return ensure_pack(c.data, split=c.split, **shape), ensure_held_out(", 'return ensure_pack(c.data, split="train", **shape), ensure_held_out(', DATA),
    of(SCRIPT, "c.data, c.val_split, train_split=c.split, **shape", "c.data, c.val_split, **shape", DATA),
    of(SCRIPT, "crop=c.crop, max_bad=c.max_bad, progress=rank == 0", "crop=0, max_bad=c.max_bad, progress=rank == 0", DATA),
    of(SCRIPT, "verify=rank == 0)  # fmt: skip\n    return ensure_pack", "verify=False)  # fmt: skip\n    return ensure_pack", DATA),
    of(SCRIPT, "        if rank == 0 and run.done():\n", "        if rank == 0:\n", LATENTS),
    of(SCRIPT, "        if rank == 0 and run.done():\n", "        if rank == 0 and not run.done():\n", LATENTS),
    of(SCRIPT, "except (DataError, stop.Stopped) as error:  # the run", "except DataError as error:  # the run", LATENTS),
    of(SCRIPT, "[pack] if held_out is None else [pack, held_out], attempt.say)", "[pack], attempt.say)", LATENTS),
    of(SCRIPT, "        return code\n\n\nif __name__", "        return stop.DONE\n\n\nif __name__", LATENTS),
    of(SCRIPT, "    sha = sha256_of(run.weights)\n", '    sha = sha256_of(run.path / "config.json")\n', "tests/test_pretrain_vae.py::test_the_end_of_a_run_writes_the_latents_that_diffusion_takes"),
    of(SCRIPT, "    compare_with_run(RunDir(c.run), c)\n    open_perceptual", "    open_perceptual", DRY),
    of(SCRIPT, '    open_perceptual(c, torch.device("cpu"))\n    world', "    world", DRY),
    of(SCRIPT, "        raise ConfigError(str(error)) from None", "        return None", DRY),
    of(SCRIPT, "    if c.dry_run:\n        return dry_run(c)\n", "", DRY),
    of(SCRIPT, "8 if c.resolution <= 128 else 6", "8 if c.resolution < 128 else 6", LARGE),
    of(SCRIPT, "[: 4 * self.columns]", "[: self.columns]", LARGE),
    of(SCRIPT, "for i in range(4) for t in", "for i in range(1) for t in", SEEN),
    # --- networks and losses
    of("models/vae.py", "MULTIPLIERS = (1, 2, 4, 4)", "MULTIPLIERS = (1, 2, 4, 8)", NETWORK),
    of("models/vae.py", "return self.skip(x) + self.conv2(F.silu(self.norm2(h)))", "return self.conv2(F.silu(self.norm2(h)))", NETWORK),
    of("models/vae.py", "h = self.conv1(F.silu(self.norm1(x)))", "h = F.silu(self.norm1(self.conv1(x))) if x.shape[1] == len(self.norm1.weight) == self.conv1.out_channels else self.conv1(F.silu(self.norm1(x)))", NETWORK),
    of("models/vae.py", 'scale_factor=2.0, mode="nearest"', 'scale_factor=2.0, mode="bilinear"', NETWORK),
    of("models/vae.py", "Attention(channels, math.gcd(64, channels))", "Attention(channels, channels)", NETWORK),
    of("models/vae.py", "group_norm(c), nn.SiLU(), nn.Conv2d(c, 2 * latent_channels", "group_norm(c), nn.ReLU(), nn.Conv2d(c, 2 * latent_channels", NETWORK),
    of("models/vae.py", "layers += [group_norm(c), nn.SiLU(), nn.Conv2d(c, channels, 3, padding=1)]", "layers += [group_norm(c), nn.Identity(), nn.Conv2d(c, channels, 3, padding=1)]", NETWORK),
    of("models/vae.py", "MULTIPLIERS[: down.bit_length()]", "MULTIPLIERS[: down.bit_length() - 1]", "tests/test_vae.py::test_shapes"),
    of("models/vae.py", "nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]", "nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU()]", PATCHES),
    of("models/vae.py", "stride=2 if i < layers else 1", "stride=2", PATCHES),
    of("models/vae.py", "min(2**i, 8)", "2**i", PATCHES),
    of("models/vae.py", "LOGVAR_RANGE = (-30.0, 20.0)", "LOGVAR_RANGE = (-3.0, 20.0)", "tests/test_vae.py::test_logvar_is_bounded"),
    of("models/vae.py", "return mean, logvar.clamp(*LOGVAR_RANGE)", "return mean, logvar", "tests/test_vae.py::test_logvar_is_bounded"),
    of("models/vae.py", "return mean + (0.5 * logvar).exp() * noise", "return mean + logvar.exp() * noise", STEPS),
    of("models/vae.py", "0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).mean(1)", "0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)", STEPS),
    of("models/vae.py", 'difference.abs() if kind == "l1" else', 'difference.abs() if kind != "l1" else', STEPS),
    of("models/vae.py", "similarity = ssim((output + 1) / 2, (target + 1) / 2, window=7)", "similarity = ssim((output + 1) / 2, (target + 1) / 2)", STEPS),
    of("models/vae.py", "total = total + (1 - similarity) + dx + dy", "total = total + (1 - similarity) + dx", STEPS),
    of("models/vae.py", "return total / max(used, 1)", "return total / scales", "tests/test_vae.py::test_the_structure_term_is_the_mean_over_the_scales_that_there_are"),
    of("models/vae.py", "loss = F.relu(1 - real_logits) + F.relu(1 + fake_logits)", "loss = F.relu(1 - real_logits) + F.relu(-fake_logits)", STEPS),
    of("models/vae.py", "return 0.5 * loss.flatten(1).mean(1)", "return loss.flatten(1).mean(1)", STEPS),
    of("models/vae.py", "adversarial_norm + 1e-4", "adversarial_norm + 1.0", STEPS),
    of("models/vae.py", "spread = (square - mean**2).clamp(min=0)", "spread = square.clamp(min=0)", SEEN),
    of("models/vae.py", "return (z - self.mean) / self.std", "return (z - self.mean) * self.std", "tests/test_train_diffusion.py::test_latents_are_scaled_by_their_own_figures"),
    of("models/perceptual.py", "COMPARED = (2, 7, 14, 21, 28)", "COMPARED = (2, 7, 14, 21, 26)", STEPS),
    of("models/perceptual.py", "return total / len(wanted)", "return total", STEPS),
    of("models/perceptual.py", "x = ((images + 1) / 2 - self.mean) / self.std", "x = (images - self.mean) / self.std", STEPS),
    of("models/perceptual.py", "(a - b).square().sum(1)", "(a - b).square().mean(1)", STEPS),
    of("models/optim.py", "FLOOR = 0.1 ", "FLOOR = 0.0 ", "tests/test_optim.py"),
    of("models/optim.py", "(nimg + batch) / max(warmup_kimg", "nimg / max(warmup_kimg", STEPS),
    of("models/optim.py", "if mean_loss < (1 - PLATEAU_GAIN) * best:", "if mean_loss < best:", "tests/test_optim.py"),
    of("models/optim.py", "p for p in module.parameters() if p.dim() < 2]", "p for p in module.parameters() if p.dim() < 1]", STEPS),
    of("models/optim.py", '{"params": vectors, "weight_decay": 0.0}', '{"params": vectors, "weight_decay": weight_decay}', STEPS),
    of("models/ema.py", "half_life = min(half_life, nimg * ramp_up)", "half_life = max(half_life, nimg * ramp_up)", STEPS),
]  # fmt: skip
