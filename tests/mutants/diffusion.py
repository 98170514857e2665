"""Faults in latent diffusion: its script, the schedules, targets and samplers, the U-Net, the cache of latents."""

from __future__ import annotations

from tests.mutants import Fault

REFERENCE = "tests/test_reference_diffusion.py::"
STEPS, RANKS = f"{REFERENCE}test_six_steps_are_those_of_the_papers", f"{REFERENCE}test_two_ranks_with_parts_are_the_same_steps"
DROPOUT = f"{REFERENCE}test_dropout_differs_between_two_real_ranks_and_is_that_of_the_position"
SEEN = f"{REFERENCE}test_grids_diversity_and_losses_by_hand"
RUN = f"{REFERENCE}test_a_run_logs_and_writes_just_that_and_steps_over_a_poisoned_batch"
START = f"{REFERENCE}test_the_start_is_drawn_from_the_seed_and_the_average_is_the_network"
FLOPS = f"{REFERENCE}test_flops_of_a_step_are_those_of_the_real_one"
TYPE = f"{REFERENCE}test_the_network_runs_in_the_type_and_the_loss_in_fp32"
AGAIN = f"{REFERENCE}test_a_run_may_start_from_the_networks_of_another"
UNIT = "tests/test_train_diffusion.py::"
NEWEST, UNFIT = f"{UNIT}test_the_newest_finished_vae_that_fits_is_taken", f"{UNIT}test_a_vae_run_that_does_not_fit_is_passed_over"
COPIED, REFUSED = f"{UNIT}test_the_vae_is_copied_once_so_that_its_run_may_go_on", f"{UNIT}test_weights_that_are_of_no_vae_are_refused"
OTHER_IMAGES = f"{UNIT}test_weights_of_a_vae_for_other_images_are_refused"
DATA, CLASS = f"{UNIT}test_slices_of_training_and_of_other_patients_and_their_latents", f"{UNIT}test_a_conditional_run_needs_a_class_for_every_slice"
SCRIPT = "train_diffusion.py"
CACHE = "tests/test_latents.py"


def of(file: str, before: str, after: str, *tests: str) -> Fault:
    return Fault(file, before, after, tests)


FAULTS = [
    # --- the step
    of(SCRIPT, 'position = nimg + s.counters["skip"]\n    gen', "position = nimg\n    gen", STEPS),
    of(SCRIPT, "diffusion.draw_times(c.batch, c.times, gen,", 'diffusion.draw_times(c.batch, "uniform", gen,', STEPS),
    of(SCRIPT, "gen, rt.device, c.fast_steps)\n    noise", "gen, rt.device, c.fast_steps).roll(1)\n    noise", STEPS),
    of(SCRIPT, "noise, posterior_noise = torch.randn(2,", "posterior_noise, noise = torch.randn(2,", STEPS),
    of(SCRIPT, "noise, posterior_noise = torch.randn(2, c.batch, *data.shape, generator=gen, device=rt.device)", "noise = posterior_noise = torch.randn(2, c.batch, *data.shape, generator=gen, device=rt.device)[0]", STEPS),
    of(SCRIPT, "c.class_dropout, drop_gen) == 0", "1 - c.class_dropout, drop_gen) == 0", STEPS),
    of(SCRIPT, "c.class_dropout, drop_gen) == 0", "c.class_dropout, drop_gen) != 0", STEPS),
    of(SCRIPT, 'c.seed, position, "class dropout", rt.device', 'c.seed, nimg, "class dropout", rt.device', STEPS),
    of(SCRIPT, 'runtime.seed_of(c.seed, position, f"dropout {rt.rank}")', 'runtime.seed_of(c.seed, position, "dropout 0")', DROPOUT),
    of(SCRIPT, 'runtime.seed_of(c.seed, position, f"dropout {rt.rank}")', 'runtime.seed_of(c.seed, nimg, f"dropout {rt.rank}")', STEPS),
    of(SCRIPT, 'runtime.seed_of(c.seed, position, f"dropout {rt.rank}")', 'runtime.seed_of(c.seed, 0, f"dropout {rt.rank}")', f"{UNIT}test_dropout_repeats_with_the_position_and_differs_between_ranks"),
    of(SCRIPT, "data.rows(position, start, stop_, posterior_noise[start:stop_])", "data.rows(position, start, stop_, posterior_noise[: stop_ - start])", STEPS),
    of(SCRIPT, "data.rows(position, start, stop_, posterior_noise[start:stop_])", "data.rows(nimg, start, stop_, posterior_noise[start:stop_])", STEPS),
    of(SCRIPT, "torch.where(kept[start:stop_], labels, s.unet.num_classes)", "torch.where(kept[: stop_ - start], labels, s.unet.num_classes)", STEPS),
    of(SCRIPT, "torch.where(kept[start:stop_], labels, s.unet.num_classes)", "torch.where(kept[start:stop_], labels, 0)", STEPS),
    of(SCRIPT, "labels, s.unet.num_classes) if c.conditional else None", "labels, s.unet.num_classes) if not c.conditional else None", STEPS),
    of(SCRIPT, "x0, noise[start:stop_], times[start:stop_], schedule", "x0, noise[start:stop_], times[: stop_ - start], schedule", STEPS),
    of(SCRIPT, "x0, noise[start:stop_], times[start:stop_], schedule", "x0, noise[start:stop_], times[start].expand(stop_ - start), schedule", STEPS),
    of(SCRIPT, "x0, noise[start:stop_], times[start:stop_], schedule", "noise[start:stop_], x0, times[start:stop_], schedule", STEPS),
    of(SCRIPT, "            target=c.target, min_snr_gamma=c.min_snr_gamma,\n", '            target="flow", min_snr_gamma=c.min_snr_gamma,\n', STEPS),
    of(SCRIPT, "            target=c.target, min_snr_gamma=c.min_snr_gamma,\n", "            target=c.target,\n", STEPS),
    of(SCRIPT, "s.scaler.scale(losses.mean() / c.accumulate).backward()", "s.scaler.scale(losses.mean()).backward()", STEPS),
    of(SCRIPT, "s.scaler.scale(losses.mean() / c.accumulate).backward()", "s.scaler.scale(losses.sum() / c.batch).backward()", RANKS),
    of(SCRIPT, "total += losses.detach().sum() / c.batch", "total += losses.detach().mean()", STEPS),
    of(SCRIPT, "total += losses.detach().sum() / c.batch", "total = losses.detach().mean()", STEPS),
    of(SCRIPT, "rate = learning_rate(nimg, c.batch", "rate = learning_rate(nimg + c.batch, c.batch", STEPS),
    of(SCRIPT, "rate = learning_rate(nimg, c.batch", "rate = learning_rate(position, c.batch", STEPS),
    of(SCRIPT, "c.lr, c.warmup_kimg, c.decay_kimg)", "c.lr, c.decay_kimg, c.warmup_kimg)", STEPS),
    of(SCRIPT, "norm = optimizer_step(rt, s.unet, s.opt, s.scaler, rate, c.clip)", "norm = optimizer_step(rt, s.unet, s.opt, s.scaler, c.lr, c.clip)", STEPS),
    of(SCRIPT, '{"loss": runtime.reduce_sum(rt, total), "grad_norm": norm}', '{"loss": total, "grad_norm": norm}', RANKS),
    of(SCRIPT, "update_ema(s.unet_ema, s.unet, ema_beta(nimg + c.batch,", "update_ema(s.unet_ema, s.unet, ema_beta(nimg,", STEPS),
    of(SCRIPT, "update_ema(s.unet_ema, s.unet, ema_beta(nimg + c.batch,", "update_ema(s.unet, s.unet_ema, ema_beta(nimg + c.batch,", STEPS),
    of(SCRIPT, "c.batch, c.ema_kimg, c.ema_rampup))", "c.batch, c.ema_kimg))", STEPS),
    of(SCRIPT, "with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):\n            return network(", "with torch.autocast(x.device.type, dtype, enabled=False):\n            return network(", TYPE),
    of(SCRIPT, "memory_layout(x.device)), t, labels).float()", "memory_layout(x.device)), t, labels)", TYPE),
    of(SCRIPT, "replace(c, batch=1, accumulate=1), replace(rt, rank=0, world=1)", "replace(c, batch=2, accumulate=1), replace(rt, rank=0, world=1)", FLOPS),
    # --- the state and the data
    of(SCRIPT, "betas=(0.9, 0.99))", "betas=(0.99, 0.9))", STEPS),
    of(SCRIPT, 'runtime.seed_of(c.seed, 0, "weights")', 'runtime.seed_of(0, 0, "weights")', START),
    of(SCRIPT, "unet_ema.eval().requires_grad_(False).load_state_dict(unet.state_dict())", "unet_ema.eval().requires_grad_(False)", START),
    of(SCRIPT, "num_res=c.num_res, dropout=c.dropout,", "num_res=c.num_res, dropout=0.0,", STEPS),
    of(SCRIPT, 'return {"lr": self.opt.param_groups[0]["lr"]}', 'return {"lr": self.opt.defaults["lr"]}', STEPS),
    of(SCRIPT, "return self.scale.normalise(posterior_sample(mean, logvar, noise)), labels", "return posterior_sample(mean, logvar, noise), labels", STEPS),
    of(SCRIPT, "return self.scale.normalise(posterior_sample(mean, logvar, noise)), labels", "return self.scale.normalise(mean), labels", STEPS),
    of(SCRIPT, "return self.scale.normalise(posterior_sample(mean, logvar, noise)), labels", "return self.scale.restore(posterior_sample(mean, logvar, noise)), labels", STEPS),
    of(SCRIPT, "torch.from_numpy(latents.mean), torch.from_numpy(latents.std)", "torch.from_numpy(latents.mean), torch.ones(len(latents.std))", STEPS),
    of(SCRIPT, "LatentBatches(latents, seed=c.seed, device=device)", "LatentBatches(latents, seed=c.seed + 1, device=device)", STEPS),
    of(SCRIPT, "Batches(pack, seed=c.seed, batch=c.batch, device=device)", "Batches(pack, seed=0 * c.seed - 1, batch=c.batch, device=device)", STEPS),
    of(SCRIPT, "self.decoder(scale.restore(part)).float()", "self.decoder(part).float()", SEEN),
    of(SCRIPT, "self.decoder(scale.restore(part)).float() for part in x0.split(CHUNK)]).clamp(-1, 1)", "self.decoder(scale.restore(part)).float() for part in x0.split(CHUNK)])", f"{UNIT}test_images_of_clean_samples_lie_between_black_and_white"),
    of(SCRIPT, "            return x0.clamp(-1, 1)\n", "            return x0\n", f"{UNIT}test_images_of_clean_samples_lie_between_black_and_white"),
    # --- what a person sees
    of(SCRIPT, 'gen = runtime.generator(c.seed, 0, "grid", rt.device)', 'gen = runtime.generator(0, 1, "grid", rt.device)', SEEN),
    of(SCRIPT, "torch.arange(self.number, device=rt.device) // self.columns % len(pack.classes)", "torch.arange(self.number, device=rt.device) % len(pack.classes)", SEEN),
    of(SCRIPT, '"train_loss" if held_out is None else "val_loss"', '"val_loss" if held_out is None else "train_loss"', SEEN),
    of(SCRIPT, "looked_at = (pack, data.latents) if held_out is None else", "looked_at = (pack, data.latents) if held_out is not None else", SEEN),
    of(SCRIPT, "pick = torch.linspace(0, len(pack.labels) - 1, count).round().long().numpy()", "pick = torch.arange(count).numpy()", SEEN),
    of(SCRIPT, "pick = torch.linspace(0, len(pack.labels) - 1, count).round().long().tolist()", "pick = list(range(count))", SEEN),
    of(SCRIPT, "            x0 = self.data.scale.normalise(sample)", "            x0 = sample", SEEN),
    of(SCRIPT, "t = (torch.arange(count, device=device) * 0.6180339887498949 + 0.5) % 1", "t = torch.rand(count, device=device)", SEEN),
    of(SCRIPT, "t = steps[(t * len(steps)).long()].float() / (diffusion.T - 1)", "t = steps[(t * len(steps)).long()].float() / diffusion.T", SEEN),
    of(SCRIPT, 'runtime.generator(self.c.seed, 0, "validation", device)', 'torch.Generator(device).manual_seed(torch.seed() % 2**31)', f"{UNIT}test_the_loss_on_other_patients_repeats_and_is_told_by_noise_level"),
    of(SCRIPT, "return list(chunks[self.rt.rank :: self.rt.world])", "return list(chunks[self.rt.rank : self.rt.rank + 1])", SEEN),
    of(SCRIPT, "images = runtime.reduce_sum(self.rt, self.samples(unet, scale))", "images = self.samples(unet, scale)", SEEN),
    of(SCRIPT, "diversity_ratio(images, self.real)", "diversity_ratio(self.real, images)", SEEN),
    of(SCRIPT, "float(value / real[k])", "float(value)", SEEN),
    of(SCRIPT, "class_diversity(self.real, self.real_labels)", "class_diversity(self.real, self.labels)", SEEN),
    of(SCRIPT, "        if nimg:  # an untrained", "        if True:  # an untrained", SEEN),
    of(SCRIPT, "        if self.rt.rank:\n            return None", "        if not self.rt.rank:\n            return None", SEEN),
    of(SCRIPT, "runtime.generator(self.c.seed, int(i[0]), \"ancestral\"", "runtime.generator(self.c.seed, 0, \"ancestral\"", SEEN),
    of(SCRIPT, "None if self.labels is None else self.labels[i], self.dtype)", "None if self.labels is None else self.labels[: len(i)], self.dtype)", SEEN),
    of(SCRIPT, 'clamp=float(self.c.space == "pixel"))', 'clamp=float(self.c.space != "pixel"))', SEEN),
    of(SCRIPT, "self.schedule, self.c.sampler, self.c.steps, times=times,", "self.schedule, self.c.sampler, 2 * self.c.steps, times=times,", SEEN),
    of(SCRIPT, "self.schedule, self.c.sampler, self.c.steps, times=times,", "self.schedule, self.c.sampler, self.c.steps,", SEEN),
    of(SCRIPT, "images[i] = self.data.to_images(x0, scale, self.dtype)", "images[: len(i)] = self.data.to_images(x0, scale, self.dtype)", SEEN),
    of(SCRIPT, "predict, x0[i], noise[i], t[i], self.schedule", "predict, x0[i], noise[i], t[: len(i)], self.schedule", SEEN),
    of(SCRIPT, "target=self.c.target, min_snr_gamma=self.c.min_snr_gamma\n", "target=self.c.target\n", SEEN),
    of(SCRIPT, "        losses = runtime.reduce_sum(self.rt, losses)\n", "", SEEN),
    of(SCRIPT, "inside = (t * BINS).long().clamp(max=BINS - 1) == k", "inside = (t * BINS).long().clamp(max=BINS - 1) == BINS - 1 - k", SEEN),
    # --- the run
    of(SCRIPT, "look=partial(sampler, s.unet_ema, s.scale)", "look=partial(sampler, s.unet, s.scale)", RUN),
    of(SCRIPT, 'weights = {"unet": s.unet_ema,', 'weights = {"unet": s.unet,', RUN),
    of(SCRIPT, '"latent_scale": s.scale} | (', '"latent_scale": LatentScale(torch.zeros(data.shape[0]), torch.ones(data.shape[0]))} | (', RUN),
    of(SCRIPT, '{"vae_decoder": vae.decoder})', '{"vae_decoder": load_vae(c, vae_file(run)).encoder})', RUN),
    of(SCRIPT, '{"classes": pack.classes, "geometry"', '{"classes": pack.classes[::-1], "geometry"', RUN),
    of(SCRIPT, '"shape": list(data.shape),', '"shape": list(data.shape[::-1]),', RUN),
    of(SCRIPT, "build_state(c, data, len(pack.classes) if c.conditional else 0, rt.device)", "build_state(c, data, 0, rt.device)", RUN),
    of(SCRIPT, "held_out = (packs[1] if len(packs) > 1 else None, latents[1] if len(latents) > 1 else None)", "held_out = (None, None)", RUN),
    of(SCRIPT, "latents[1] if len(latents) > 1 else None)", "latents[0] if len(latents) > 1 else None)", RUN),
    of(SCRIPT, "            record.rewind(nimg)\n", "", RUN),
    of(SCRIPT, '("unet", "unet_ema"), c.init_from', '("unet",), c.init_from', AGAIN),
    of(SCRIPT, "return {k: of_vae[k] for k in loading.VAE_FIELDS}", "return {k: of_vae[k] for k in loading.VAE_FIELDS[1:]}", RUN),
    # --- the VAE
    of(SCRIPT, "        if others_may_replace(folder):\n            continue", "        if False:\n            continue", UNFIT),
    of(SCRIPT, '("data", "resolution", "channels", "crop"))', '("resolution", "channels", "crop"))', UNFIT),
    of(SCRIPT, '("data", "resolution", "channels", "crop"))', '("data", "resolution", "channels"))', UNFIT),
    of(SCRIPT, "same = all(stored.get(k)", "same = any(stored.get(k)", UNFIT),
    of(SCRIPT, '"latent_channels" in stored and same and', "same and", UNFIT),
    of(SCRIPT, 'and (folder / "weights.safetensors").is_file():', "and folder.is_dir():", UNFIT),
    of(SCRIPT, 'glob("*/DONE")', 'glob("*/config.json")', UNFIT),
    of(SCRIPT, "return max(found)[1]", "return min(found)[1]", NEWEST),
    of(SCRIPT, "return max(found)[1]", "return max(found, key=lambda f: f[1])[1]", NEWEST),
    of(SCRIPT, 'return path if path.is_file() else path / "weights.safetensors"', 'return path / "weights.safetensors"', NEWEST),
    of(SCRIPT, "    if mine.exists():\n        return\n", "", COPIED),
    of(SCRIPT, "    load_vae(c, source)\n    if not", "    if not", f"{UNIT}test_one_that_does_not_fit_is_never_copied"),
    of(SCRIPT, 'if not source.with_name("DONE").exists():', 'if source.with_name("DONE").exists():', COPIED),
    of(SCRIPT, 'if about.get("job") != "vae":', 'if about.get("job") == "stylegan2":', REFUSED),
    of(SCRIPT, 'for name in ("resolution", "channels", "crop"):', 'for name in ("resolution", "channels"):', OTHER_IMAGES),
    of(SCRIPT, "        adopt_vae(c, run, say)\n", "        say(str(find_vae(c)))\n", DATA),
    of(SCRIPT, 'if c.space == "latent" and main:', 'if c.space == "latent":', DATA),
    of(SCRIPT, "c.val_split, train_split=c.split, **shape)", "c.val_split, **shape)", DATA),
    of(SCRIPT, "ensure_pack(c.data, split=c.split, **shape)]", 'ensure_pack(c.data, split="train", **shape)]', DATA),
    of(SCRIPT, 'if c.space == "latent" else []\n\n\ndef main', 'if c.space != "latent" else []\n\n\ndef main', DATA),
    of(SCRIPT, "verify = meeting.rank == 0", "verify = meeting.rank != 0", DATA),
    of(SCRIPT, "(packs[0].labels < 0).any()", "(packs[0].labels < 0).all()", CLASS),
    of(SCRIPT, "    if c.conditional and (packs", "    if (packs", CLASS),
    # --- schedules, targets, loss
    of("models/diffusion.py", "return torch.atan2(t, 1 - t)", "return torch.atan2(1 - t, t)", STEPS),
    of("models/diffusion.py", "position = t.clamp(0, 1) * (len(table) - 1)", "position = t.clamp(0, 1) * len(table)", STEPS),
    of("models/diffusion.py", "return _like(alpha, x0) * x0 + _like(sigma, x0) * noise", "return _like(alpha, x0) * x0 + _like(sigma, x0).square() * noise", STEPS),
    of("models/diffusion.py", "        return noise - x0\n", "        return x0 - noise\n", STEPS),
    of("models/diffusion.py", "return _like(alpha, x0) * noise - _like(sigma, x0) * x0", "return _like(sigma, x0) * noise - _like(alpha, x0) * x0", STEPS),
    of("models/diffusion.py", "torch.linspace(1e-4, 0.02, T, dtype=torch.float64)", "torch.linspace(1e-4, 0.2, T, dtype=torch.float64)", STEPS),
    of("models/diffusion.py", "torch.linspace(0.0015**0.5, 0.0195**0.5, T, dtype=torch.float64) ** 2", "torch.linspace(0.0015, 0.0195, T, dtype=torch.float64)", STEPS),
    of("models/diffusion.py", "(alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))", "(alpha - alpha[-1]) / (alpha[0] - alpha[-1])", STEPS),
    of("models/diffusion.py", "+ 0.008) / 1.008 * math.pi / 2", "+ 0.08) / 1.08 * math.pi / 2", STEPS),
    of("models/diffusion.py", "(snr.clamp(max=gamma) * slope**2).to(t)", "(snr.clamp(min=gamma) * slope**2).to(t)", STEPS),
    of("models/diffusion.py", "(gamma / snr).clamp(max=1).to(t)", "(snr / gamma).clamp(max=1).to(t)", STEPS),
    of("models/diffusion.py", "index = torch.cat([half, len(steps) - 1 - half])[:batch]", "index = torch.cat([half, half])[:batch]", STEPS),
    of("models/diffusion.py", "return u if time_set == \"uniform\" else", "return u if time_set != \"uniform\" else", STEPS),
    of("models/diffusion.py", "k = T - T * torch.arange(steps, dtype=torch.float64) / steps - 1", "k = (T - T * torch.arange(steps, dtype=torch.float64) / steps - 1) * (steps - 1) / steps", SEEN),
    # --- the network
    of("models/unet.py", "emb = emb + self.embed_class(labels).to(emb.dtype)", "emb = emb * self.embed_class(labels).to(emb.dtype)", "tests/test_unet.py::test_conditioning_on_the_sum_of_the_embeddings_of_time_and_class"),
    of("models/unet.py", "generator=generator, device=labels.device) < probability", "generator=generator, device=labels.device) > probability", STEPS),
    of("models/unet.py", "return uncond + guidance * (cond - uncond)", "return cond + guidance * (cond - uncond)", "tests/test_unet.py"),
    of("models/unet.py", "phase = 1000 * t.float()[:, None] * frequencies", "phase = t.float()[:, None] * frequencies", "tests/test_unet.py"),
    # --- the cache
    of("data/latents.py", "order = sample_order(self.count, self.seed, nimg + start, stop - start)", "order = sample_order(self.count, self.seed, nimg, stop - start)", STEPS),
    of("data/latents.py", "order = sample_order(self.count, self.seed, nimg + start, stop - start)", "order = sample_order(self.count, 0, nimg + start, stop - start)", CACHE),
    of("data/latents.py", "return mean, logvar, self._labels[index]", "return mean, logvar, self._labels[start:stop]", STEPS),
    of("data/latents.py", "mean, logvar = values.float().unbind(1)", "logvar, mean = values.float().unbind(1)", STEPS),
    of("data/latents.py", "noise = noise + logvar.exp().sum((0, 2, 3)).numpy()", "noise = noise + logvar.exp().sqrt().sum((0, 2, 3)).numpy()", CACHE),
    of("data/latents.py", "square / places - average**2, 0) + noise / places)", "square / places, 0) + noise / places)", CACHE),
    of("data/latents.py", ".clip(MIN_STD)", "", f"{CACHE}::test_what_half_precision_cannot_hold_is_refused_and_a_dead_channel_has_a_scale"),
    of("data/latents.py", "or mean.abs().max() > HALF_MAX:", "or mean.max() > HALF_MAX:", f"{CACHE}::test_what_half_precision_cannot_hold_is_refused_and_a_dead_channel_has_a_scale"),
    of("data/latents.py", "torch.isfinite(mean).all() & torch.isfinite(logvar).all()", "torch.isfinite(mean).all() | torch.isfinite(logvar).all()", f"{CACHE}::test_what_half_precision_cannot_hold_is_refused_and_a_dead_channel_has_a_scale", f"{CACHE}::test_latents_that_are_not_finite_are_refused"),
    of("data/latents.py", '"encoder": encoder_sha256, "pack": pack.digest}\n    if not', '"encoder": encoder_sha256}\n    if not', f"{CACHE}::test_a_sidecar_that_does_not_fit_is_not_believed"),
    of("data/latents.py", '{"version": VERSION, "encoder": encoder_sha256, "pack": pack.digest}\n    if not', '{"version": VERSION, "pack": pack.digest}\n    if not', f"{CACHE}::test_a_sidecar_that_does_not_fit_is_not_believed"),
    of("data/latents.py", "or std.min() <= 0", "or std.min() < 0", f"{CACHE}::test_a_sidecar_that_does_not_fit_is_not_believed"),
    of("data/latents.py", "or len(values) != len(pack)", "or len(values) < 1", f"{CACHE}::test_an_array_that_does_not_fit_is_not_believed"),
    of("data/latents.py", "values.dtype != np.float16", "values.dtype.kind != \"f\"", f"{CACHE}::test_an_array_that_does_not_fit_is_not_believed"),
    of("data/latents.py", 'if verify and about.get("sha256") != sha256_of(path):', 'if not verify and about.get("sha256") != sha256_of(path):', f"{CACHE}::test_a_sidecar_that_does_not_fit_is_not_believed"),
    of("data/latents.py", 'f"{VERSION} {encoder_sha256} {pack.digest}"', 'f"{VERSION} {encoder_sha256}"', f"{CACHE}::test_the_name_tells_encoder_slices_and_size"),
    of("data/latents.py", "if time.time() - old.stat().st_mtime > STALE:", "if time.time() - old.stat().st_mtime < STALE:", f"{CACHE}::test_what_killed_processes_left_goes_and_a_stop_leaves_nothing"),
    of("data/latents.py", "        temporary.unlink(missing_ok=True)\n    latents", "        pass\n    latents", f"{CACHE}::test_what_killed_processes_left_goes_and_a_stop_leaves_nothing"),
    of("data/latents.py", "values[start : start + len(mean), 0], values[start : start + len(mean), 1] =", "values[start : start + len(mean), 1], values[start : start + len(mean), 0] =", CACHE),
]  # fmt: skip
