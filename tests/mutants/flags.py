"""Faults where a flag is defined, checked and stored, and where it enters a script or the loop."""

from __future__ import annotations

from tests.mutants import Fault

SPECS, ATTEMPT, LOOP = "jobs/specs.py", "jobs/attempt.py", "jobs/loop.py"
GAN, VAE, DIFFUSION = "train_gan.py", "pretrain_vae.py", "train_diffusion.py"


def by_row(*names: str) -> tuple[str, ...]:
    """Rows of the tables: 'stylegan2-hflip' or, where a field has several, 'stylegan2-gamma-1'."""
    test = "tests/test_flags.py::test_every_flag_has_an_effect"
    return tuple(f"{test}[{name}{'' if name[-2:-1] == '-' else '-0'}]" for name in names)


def by_flags(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_flags.py::test_{name}" for name in names)


def by_specs(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_specs.py::test_{name}" for name in names)


PROMISED = by_flags("defaults_presets_and_choices_are_those_that_were_promised")
SETS = by_flags("what_is_free_and_what_is_architecture")
BOUNDS = by_specs("every_number_has_bounds")
MEMORY = by_specs("memory_grows_with_what_a_step_holds")
NETWORKS = by_specs("memory_grows_with_the_networks")
GOES_ON = by_flags("a_run_goes_on_with_other_flags_where_they_change_no_result")
NAMES = by_flags("a_runs_name_and_its_weights_tell_exactly_what_changes_the_result")
WORLD = by_specs("a_batch_falls_into_whole_groups_on_every_rank_and_micro_batch")
PATHS = by_specs("paths_become_absolute")
TYPES = by_specs("a_stored_value_has_the_type_of_its_field")
INIT = by_specs("a_run_to_start_from_has_a_checkpoint_and_the_same_architecture")

FAULTS = [
    # --- defaults, presets, sets ---
    Fault(SPECS, "    checkpoint_minutes: float = 10.0\n", "    checkpoint_minutes: float = 0.0\n", PROMISED),
    Fault(SPECS, "    pl_decay: float = 0.01\n", "    pl_decay: float = 0.1\n", PROMISED),
    Fault(
        SPECS,
        'ada: Literal["off", "mri", "mri-flip"] = "mri"',
        'ada: Literal["off", "mri", "mri-flip"] = "off"',
        PROMISED,
    ),
    Fault(SPECS, "    down: Literal[2, 4, 8] = 8\n", "    down: Literal[4, 8] = 8\n", PROMISED),
    Fault(
        SPECS,
        '"oasis128": dict(resolution=128, batch=64, gamma=0.25',
        '"oasis128": dict(resolution=128, batch=64, gamma=1.0',
        PROMISED,
    ),
    Fault(SPECS, "mbstd_group=8, total_kimg=5000.0)", "total_kimg=5000.0)", PROMISED),
    Fault(
        SPECS,
        'DEFAULT_PRESET = {GanConfig: "adni256"',
        'DEFAULT_PRESET = {GanConfig: "adni128"',
        by_flags("the_jobs_their_scripts_and_their_presets"),
    ),
    Fault(
        SPECS,
        '"vae": Job("pretrain_vae.py", VaeConfig, vae_memory_gb',
        '"vae": Job("pretrain_vae.py", VaeConfig, diffusion_memory_gb',
        MEMORY,
    ),
    Fault(SPECS, "channel_base channel_max mbstd_group ", "channel_base channel_max ", SETS),
    Fault(SPECS, 'widths attention head_dim"', 'widths attention"', SETS),
    Fault(SPECS, 'val_split sampler steps accumulate"', 'val_split sampler steps"', SETS),
    Fault(
        SPECS,
        '"run preset dry_run override init_from total_kimg compile',
        '"run preset dry_run override init_from total_kimg crop compile',
        SETS,
    ),
    # --- parse ---
    Fault(
        SPECS,
        "if preset is None and stored is not None and stored.is_file():",
        "if stored is not None and stored.is_file():",
        by_specs("run_alone_resumes_with_the_runs_own_config"),
    ),
    Fault(
        SPECS,
        "base = replace(base, **PRESETS[cls][name], preset=name)",
        "base = replace(base, **PRESETS[cls][name])",
        by_specs("a_flag_rules_over_the_preset_and_the_preset_over_the_default"),
    ),
    Fault(
        SPECS,
        "base = replace(base, dry_run=False, override=False, ",
        "base = replace(base, dry_run=False, ",
        by_specs("what_is_asked_of_one_attempt_is_not_remembered"),
    ),
    Fault(
        SPECS,
        "            value = argv[i + 1]\n",
        "            return argv[i + 1]\n",
        by_specs("run_alone_resumes_with_the_runs_own_config"),
    ),
    Fault(
        SPECS,
        'Path(run, "config.json").expanduser() if run',
        'Path(run, "config.json") if run',
        by_specs("a_run_in_the_home_folder_is_found_by_its_short_name"),
    ),
    Fault(SPECS, 'spec == "phantom" or spec.startswith("phantom:")', 'spec.startswith("phantom")', PATHS),
    Fault(SPECS, "init_from=_absolute(config.init_from)", "init_from=config.init_from", PATHS),
    Fault(SPECS, "config = replace(config, vae=_absolute(config.vae))", "pass", PATHS),
    Fault(SPECS, "perceptual_file=_absolute(config.perceptual_file)", "perceptual_file=config.perceptual_file", PATHS),
    Fault(
        SPECS,
        "    check(config)\n    return config\n",
        "    return config\n",
        by_flags("a_wrong_flag_is_named_and_nothing_is_made"),
    ),
    # --- stored configs ---
    Fault(
        SPECS,
        "fits = isinstance(value, (int, float)) if isinstance(default, float)",
        "fits = isinstance(value, float) if isinstance(default, float)",
        TYPES,
    ),
    Fault(SPECS, "if not fits or (isinstance(value, bool) != isinstance(default, bool)):", "if not fits:", TYPES),
    Fault(SPECS, "if k not in FREE}", "if k in ARCHITECTURE}", NAMES),
    Fault(SPECS, '    if config.init_from:\n        content["init_from"] = config.init_from\n', "", NAMES),
    Fault(
        SPECS,
        "hexdigest()[:8]\n\n\ndef check_classes",
        "hexdigest()[8:16]\n\n\ndef check_classes",
        by_flags("names_of_runs_stay_those_of_earlier_versions"),
    ),
    Fault(
        SPECS,
        "if config.conditional and len(classes) < 2:",
        "if config.conditional and len(classes) < 1:",
        by_specs("classes_are_needed_to_condition_on"),
    ),
    # --- checks ---
    Fault(SPECS, "if not 32 <= r <= 512 or r & (r - 1):", "if not 16 <= r <= 512 or r & (r - 1):", BOUNDS),
    Fault(SPECS, "if not 32 <= r <= 512 or r & (r - 1):", "if not 32 <= r <= 512 or r % 32:", BOUNDS),
    Fault(SPECS, "if not 0 <= config.max_bad <= 1:", "if not 0 <= config.max_bad < 1:", BOUNDS),
    Fault(
        SPECS,
        "isinstance(value, float) and not math.isfinite(value)",
        "isinstance(value, float) and math.isnan(value)",
        by_specs("a_number_that_is_none_is_refused_by_the_name_of_its_flag"),
    ),
    Fault(
        SPECS, "if config.batch < 1 or config.accumulate < 1:", "if config.batch < 1 and config.accumulate < 1:", BOUNDS
    ),
    Fault(SPECS, "if not getattr(config, name) > 0:", "if not getattr(config, name) >= 0:", BOUNDS),
    Fault(SPECS, "if not getattr(config, name) >= 0:", "if not getattr(config, name) > 0:", BOUNDS),
    Fault(SPECS, 'r1_interval pl_interval keep"', 'r1_interval pl_interval"', BOUNDS),
    Fault(SPECS, '"gamma pl_weight style_mixing ema_kimg ', '"gamma pl_weight style_mixing ', BOUNDS),
    Fault(
        SPECS,
        '"total_kimg log_kimg sample_kimg lr clip keep num_res"',
        '"total_kimg log_kimg sample_kimg lr clip num_res"',
        BOUNDS,
    ),
    Fault(SPECS, '"latent_channels width disc_width plateau_kimg"', '"latent_channels width disc_width"', BOUNDS),
    Fault(SPECS, 'for name in ("style_mixing", "pl_decay"):', 'for name in ("style_mixing",):', BOUNDS),
    Fault(SPECS, "if not -1 <= config.ada_target <= 1:", "if not 0 <= config.ada_target <= 1:", BOUNDS),
    Fault(SPECS, "if not 0 <= getattr(config, name) < 1:", "if not 0 <= getattr(config, name) <= 1:", BOUNDS),
    Fault(
        SPECS,
        "if config.channel_base < r:",
        "if config.channel_base <= r:",
        by_specs("a_generator_has_a_feature_map_at_every_resolution"),
    ),
    Fault(
        SPECS,
        'config.schedule in ("zero-snr", "flow")',
        'config.schedule in ("zero-snr",)',
        by_specs("epsilon_says_nothing_at_pure_noise"),
    ),
    Fault(
        SPECS,
        'fewest = 4 if config.times == "fast-nonuniform" else 2',
        'fewest = 2 if config.times == "fast-nonuniform" else 4',
        by_specs("a_network_of_few_times_is_sampled_at_these_alone"),
    ),
    Fault(SPECS, "not fewest <= config.fast_steps <= 1000:", "not fewest <= config.fast_steps < 1000:", BOUNDS),
    Fault(
        SPECS,
        'config.sampler not in ("ddim", "ancestral")',
        'config.sampler not in ("ddim", "heun")',
        by_specs("a_network_of_few_times_is_sampled_at_these_alone"),
    ),
    Fault(
        SPECS,
        "any(w % config.head_dim and w > config.head_dim for w in widths)",
        "any(w % config.head_dim for w in widths)",
        by_specs("heads_divide_the_channels_or_are_one"),
    ),
    Fault(
        SPECS,
        'if config.space == "pixel" and config.vae:',
        'if config.space == "latent" and config.vae:',
        by_specs("pixels_need_no_vae"),
    ),
    Fault(
        SPECS,
        "any(v < 1 for v in values)",
        "any(v < 0 for v in values)",
        by_specs("widths_and_sides_are_whole_numbers_with_commas"),
    ),
    Fault(
        SPECS,
        'if (not values and flag == "widths") or',
        "if",
        by_specs("widths_and_sides_are_whole_numbers_with_commas"),
    ),
    Fault(SPECS, "if config.batch % (parts * group):", "if config.batch % parts:", WORLD),
    Fault(SPECS, "parts, group = world * config.accumulate,", "parts, group = world,", WORLD),
    Fault(
        SPECS,
        "if config.pl_weight and (config.batch // 2) % parts:",
        "if config.pl_weight and config.batch % parts:",
        WORLD,
    ),
    Fault(
        SPECS, 'check_world(config, world=int(os.environ.get("WORLD_SIZE", 1)))', "check_world(config, world=1)", WORLD
    ),
    Fault(
        SPECS,
        "if not config.init_from or begun:",
        "if not config.init_from:",
        by_specs("a_run_that_has_begun_needs_its_source_no_more"),
    ),
    Fault(
        SPECS,
        "sorted(k for k in ARCHITECTURE & set(asdict(config))",
        "sorted(k for k in FREE & set(asdict(config))",
        INIT,
    ),
    # --- sizes ---
    Fault(SPECS, "activations += 2 * micro * 14 * c * r * r", "activations += micro * 14 * c * r * r", MEMORY),
    Fault(
        SPECS,
        "return (gan_parameters(config) * 4 * 4.5 + activations) / 1e9",
        "return (gan_parameters(config) * 4 * 4.5 * world + activations) / 1e9",
        MEMORY,
    ),
    Fault(
        SPECS,
        "parameters += 2 * (2 * 9 * c * c + 2 * c * config.w_dim)",
        "parameters += 2 * 9 * c * c + 2 * c * config.w_dim",
        by_specs("the_size_of_a_gan_is_about_that_of_its_networks"),
    ),
    Fault(
        SPECS,
        "return gan_parameters(config) * 4 * 3.5 / 1e9",
        "return gan_parameters(config) * 4 / 1e9",
        by_specs("the_size_of_a_gan_is_about_that_of_its_networks"),
    ),
    Fault(
        SPECS,
        "config.disc_width**2 * bool(config.gan_weight)",
        "config.disc_width**2",
        by_specs("the_size_of_a_vae_is_about_that_of_its_networks"),
    ),
    Fault(
        SPECS,
        "return vae_parameters(config) * 4 * 4 / 1e9",
        "return vae_parameters(config) * 4 / 1e9",
        by_specs("the_size_of_a_vae_is_about_that_of_its_networks"),
    ),
    Fault(SPECS, "activations += micro * 540 *", "activations += micro * 54 *", NETWORKS),
    Fault(SPECS, '(8 if config.space == "latent" else 1)', '(1 if config.space == "latent" else 8)', MEMORY),
    Fault(
        SPECS,
        "+ 40 * widths[-1] ** 2",
        "+ 40 * widths[0] ** 2",
        by_specs("the_size_of_a_unet_is_about_that_of_the_network"),
    ),
    # --- what a run that has begun lets differ ---
    Fault(ATTEMPT, "if old[k] != new[k] and k not in specs.FREE}", "if old[k] != new[k]}", GOES_ON),
    Fault(ATTEMPT, "    if architecture:\n", "    if architecture and not config.override:\n", GOES_ON),
    Fault(ATTEMPT, "if changed and not config.override:", "if changed and config.override:", GOES_ON),
    Fault(
        ATTEMPT,
        "seen > config.total_kimg:",
        "seen >= config.total_kimg:",
        by_flags("a_run_may_be_longer_but_not_end_before_what_it_has_seen"),
    ),
    Fault(
        ATTEMPT,
        'config.total_kimg < old["total_kimg"] and seen',
        'config.total_kimg > old["total_kimg"] and seen',
        by_flags("a_run_may_be_longer_but_not_end_before_what_it_has_seen"),
    ),
    Fault(
        ATTEMPT,
        '        run.note("override", changed=changed)\n    if run.stop',
        "    if run.stop",
        by_row("vae-override"),
    ),
    Fault("jobs/preflight.py", "if other and not config.override:", "if other:", GOES_ON),
    Fault("jobs/preflight.py", "    if architecture:\n", "    if architecture and not config.override:\n", GOES_ON),
    # --- the loop ---
    Fault(
        LOOP,
        "minutes > self.c.checkpoint_minutes > 0",
        "self.c.checkpoint_minutes > minutes > 0",
        by_row("stylegan2-checkpoint_minutes"),
    ),
    Fault(
        LOOP,
        "minutes > self.c.checkpoint_minutes > 0",
        "minutes > self.c.checkpoint_minutes",
        by_row("stylegan2-checkpoint_minutes"),
    ),
    Fault(
        LOOP,
        "(time.monotonic() - self.saved_time) / 60",
        "(time.monotonic() - self.saved_time) / 3600",
        by_row("stylegan2-checkpoint_minutes"),
    ),
    Fault(
        LOOP,
        "asked = self.ending or self.level or timed or self.saved_at < 0",
        "asked = self.ending or self.level or self.saved_at < 0",
        by_row("stylegan2-checkpoint_minutes"),
    ),
    Fault(
        LOOP,
        "        self.saved_at, self.saved_time = nimg, time.monotonic()\n",
        "        self.saved_at = nimg\n",
        by_row("stylegan2-checkpoint_minutes"),
    ),
    Fault(
        LOOP,
        "bool(asked or due(nimg, self.c.batch, self.c.checkpoint_kimg))",
        "bool(asked or due(nimg, self.c.batch, self.c.sample_kimg))",
        by_row("stylegan2-checkpoint_kimg"),
    ),
    Fault(
        LOOP,
        "if not sampling and not due(nimg, self.c.batch, self.c.log_kimg):",
        "if not sampling and not due(nimg, self.c.batch, self.c.sample_kimg):",
        by_row("stylegan2-log_kimg"),
    ),
    Fault(
        LOOP,
        "sampling = due(nimg, self.c.batch, self.c.sample_kimg) or",
        "sampling = due(nimg, self.c.batch, self.c.log_kimg) or",
        by_row("stylegan2-sample_kimg"),
    ),
    Fault(
        LOOP, "                    group.update(values)\n", "                    pass\n", by_row("stylegan2-override")
    ),
    Fault(
        LOOP,
        "        for name in names:\n            getattr",
        "        for name in names[:1]:\n            getattr",
        by_row("vae-init_from"),
    ),
    Fault(LOOP, 'if asked and device.type != "cuda":', 'if asked and device.type == "cuda":', by_row("vae-compile")),
    Fault(
        LOOP, "or c.total_kimg > (run.read_config()", "or c.total_kimg < (run.read_config()", by_row("vae-total_kimg")
    ),
    Fault(
        "jobs/checkpoint.py",
        "*list(committed)[-self.keep :], *healthy[-1:]",
        "*list(committed)[-self.keep :]",
        by_flags("of_a_run_that_collapsed_the_last_healthy_checkpoint_stays"),
    ),
    # --- where a flag enters a script ---
    Fault(
        GAN,
        "batch=c.batch, device=rt.device, hflip=c.hflip)",
        "batch=c.batch, device=rt.device)",
        by_row("stylegan2-hflip"),
    ),
    Fault(
        GAN,
        "channels=c.channels, crop=c.crop, split=c.split, max_bad=c.max_bad,\n",
        "channels=c.channels, split=c.split, max_bad=c.max_bad,\n",
        by_row("stylegan2-crop"),
    ),
    Fault(
        GAN,
        "channels=c.channels, crop=c.crop, split=c.split, max_bad=c.max_bad,\n",
        "channels=c.channels, crop=c.crop, max_bad=c.max_bad,\n",
        by_row("stylegan2-split"),
    ),
    Fault(
        GAN,
        "channels=c.channels, crop=c.crop, split=c.split, max_bad=c.max_bad,\n",
        "channels=c.channels, crop=c.crop, split=c.split,\n",
        by_row("stylegan2-max_bad"),
    ),
    Fault(
        GAN,
        "Checkpoints(run.checkpoints, keep=c.keep, say=attempt.say)",
        "Checkpoints(run.checkpoints, say=attempt.say)",
        by_row("stylegan2-keep"),
    ),
    Fault(GAN, "batches = Batches(pack, seed=c.seed, ", "batches = Batches(pack, seed=0, ", by_row("stylegan2-seed")),
    Fault(GAN, 'seed_of(c.seed, 0, "weights")', 'seed_of(0, 0, "weights")', by_row("stylegan2-seed")),
    Fault(
        GAN,
        "return runtime.generator(self.c.seed, self.position, purpose",
        "return runtime.generator(0, self.position, purpose",
        by_row("stylegan2-seed"),
    ),
    Fault(GAN, "mbstd_group=c.mbstd_group).to(device)", "mbstd_group=4).to(device)", by_row("stylegan2-mbstd_group")),
    Fault(
        GAN,
        "AdaController(target=c.ada_target, speed_kimg=c.ada_kimg)",
        "AdaController(target=c.ada_target)",
        by_row("stylegan2-ada_kimg"),
    ),
    Fault(
        GAN,
        "AdaController(target=c.ada_target, speed_kimg=c.ada_kimg)",
        "AdaController(speed_kimg=c.ada_kimg)",
        by_row("stylegan2-ada_target"),
    ),
    Fault(
        GAN,
        'step.generator("augment " + purpose), ada.KINDS[step.c.ada]',
        'step.generator("augment " + purpose), ada.KINDS["mri"]',
        by_row("stylegan2-ada-1"),
    ),
    Fault(GAN, "c.ema_kimg, c.ema_rampup))", "c.ema_kimg))", by_row("stylegan2-ema_kimg")),
    Fault(GAN, "device=device) < c.style_mixing", "device=device) < 0.9", by_row("stylegan2-style_mixing")),
    Fault(
        GAN,
        's.pl_mean.lerp_(stats["path_length"], c.pl_decay)',
        's.pl_mean.lerp_(stats["path_length"], 0.01)',
        by_row("stylegan2-pl_decay"),
    ),
    Fault(
        GAN,
        "(c.pl_weight * c.pl_interval / c.accumulate)",
        "(c.pl_interval / c.accumulate)",
        by_row("stylegan2-pl_weight-0"),
    ),
    Fault(
        GAN,
        "opt_D=adam(D, c.lr, c.r1_interval if c.gamma else 0)",
        "opt_D=adam(D, c.lr, c.r1_interval)",
        by_row("stylegan2-gamma-1"),
    ),
    Fault(
        GAN,
        "opt_G=adam(G, c.lr, c.pl_interval if c.pl_weight else 0)",
        "opt_G=adam(G, c.lr, c.r1_interval if c.pl_weight else 0)",
        by_row("stylegan2-pl_interval"),
    ),
    Fault(GAN, '("G", "D", "G_ema"), c.init_from', '("G", "G_ema"), c.init_from', by_row("stylegan2-init_from")),
    Fault(
        GAN,
        "rt = runtime.init_runtime(c.threads, meeting)",
        "rt = runtime.init_runtime(meeting=meeting)",
        by_row("stylegan2-threads"),
    ),
    Fault(
        GAN,
        "torch.compile(s.G.synthesis), torch.compile(s.D)",
        "torch.compile(s.G.synthesis), s.D",
        by_row("stylegan2-compile"),
    ),
    Fault(GAN, "    if c.dry_run:\n", "    if c.override:\n", by_row("stylegan2-dry_run")),
    Fault(
        VAE, "batch=c.batch, device=rt.device, hflip=c.hflip)", "batch=c.batch, device=rt.device)", by_row("vae-hflip")
    ),
    Fault(VAE, "ensure_pack(c.data, split=c.split, **shape)", "ensure_pack(c.data, **shape)", by_row("vae-split")),
    Fault(
        VAE,
        "crop=c.crop, max_bad=c.max_bad, progress=rank == 0",
        "crop=c.crop, progress=rank == 0",
        by_row("vae-max_bad"),
    ),
    Fault(
        VAE,
        "        c.data, c.val_split, train_split=c.split",
        '        c.data, "auto", train_split=c.split',
        by_row("vae-val_split"),
    ),
    Fault(VAE, "batches = Batches(pack, seed=c.seed, ", "batches = Batches(pack, seed=0, ", by_row("vae-seed")),
    Fault(
        VAE,
        'cosine_kimg = self.c.decay_kimg if self.c.decay == "cosine" else 0.0',
        "cosine_kimg = self.c.decay_kimg",
        by_row("vae-decay"),
    ),
    Fault(
        VAE,
        "opt_D=adamw(D, c.lr, c.weight_decay, betas=(0.5, 0.99))",
        "opt_D=adamw(D, c.lr, 0.01, betas=(0.5, 0.99))",
        by_row("vae-weight_decay"),
    ),
    Fault(VAE, "s.scaler_D, step.lr(s), step.c.clip)", "s.scaler_D, step.lr(s), 1.0)", by_row("vae-clip")),
    Fault(VAE, "c.gan_weight * s.gan_balance * push", "s.gan_balance * push", by_row("vae-gan_weight-0")),
    Fault(
        VAE,
        "self.c.gan_weight > 0 and self.nimg >= self.c.gan_start_kimg * 1000",
        "self.nimg >= self.c.gan_start_kimg * 1000",
        by_row("vae-gan_weight-1"),
    ),
    Fault(
        VAE,
        "self.nimg >= self.c.gan_start_kimg * 1000",
        "self.nimg > self.c.gan_start_kimg * 1000",
        by_row("vae-gan_start_kimg"),
    ),
    Fault(
        VAE,
        "gradient + c.perceptual_weight * push / scale",
        "gradient + 0.1 * push / scale",
        by_row("vae-perceptual_weight"),
    ),
    Fault(VAE, "reconstruction_loss(image, images, c.loss)", "reconstruction_loss(image, images)", by_row("vae-loss")),
    Fault(
        VAE, "if due(nimg, c.batch, c.plateau_kimg):", "if due(nimg, c.batch, c.log_kimg):", by_row("vae-plateau_kimg")
    ),
    Fault(VAE, '("vae", "vae_ema", "D"), c.init_from', '("vae", "vae_ema"), c.init_from', by_row("vae-init_from")),
    Fault(
        VAE,
        'dtype, nimg, nimg + s.counters["skip"], network, perceptual)',
        'dtype, nimg, nimg + s.counters["skip"], s.vae, perceptual)',
        by_row("vae-compile"),
    ),
    Fault(
        DIFFUSION,
        "packs = [ensure_pack(c.data, split=c.split, **shape)]",
        "packs = [ensure_pack(c.data, **shape)]",
        by_row("diffusion-split"),
    ),
    Fault(
        DIFFUSION,
        "ensure_held_out(c.data, c.val_split, train_split=c.split, **shape)",
        'ensure_held_out(c.data, "val", train_split=c.split, **shape)',
        by_row("diffusion-val_split"),
    ),
    Fault(
        DIFFUSION,
        "shape = dict(resolution=c.resolution, channels=c.channels, crop=c.crop, max_bad",
        "shape = dict(resolution=c.resolution, channels=c.channels, max_bad",
        by_row("diffusion-crop"),
    ),
    Fault(
        DIFFUSION,
        "self.schedule, self.c.sampler, self.c.steps, times=times",
        'self.schedule, "midpoint", self.c.steps, times=times',
        by_row("diffusion-sampler"),
    ),
    Fault(
        DIFFUSION,
        "self.schedule, self.c.sampler, self.c.steps, times=times",
        "self.schedule, self.c.sampler, 20, times=times",
        by_row("diffusion-steps"),
    ),
    Fault(
        DIFFUSION,
        "LatentBatches(latents, seed=c.seed, device=device)",
        "LatentBatches(latents, seed=0, device=device)",
        by_row("diffusion-seed"),
    ),
    Fault(
        DIFFUSION,
        "target=c.target, min_snr_gamma=c.min_snr_gamma,\n",
        "target=c.target,\n",
        by_row("diffusion-min_snr_gamma"),
    ),
    Fault(DIFFUSION, "1, c.class_dropout, drop_gen)", "1, 0.5, drop_gen)", by_row("diffusion-class_dropout")),
    Fault(DIFFUSION, "gen, rt.device, c.fast_steps)", "gen, rt.device)", by_row("diffusion-fast_steps")),
    Fault(
        DIFFUSION,
        "learning_rate(nimg, c.batch, c.lr, c.warmup_kimg, c.decay_kimg)",
        "learning_rate(nimg, c.batch, c.lr, c.warmup_kimg, 0.0)",
        by_row("diffusion-decay_kimg"),
    ),
    Fault(DIFFUSION, "num_res=c.num_res, dropout=c.dropout,\n", "num_res=c.num_res,\n", by_row("diffusion-dropout")),
    Fault(
        DIFFUSION,
        'attention_sides=specs.numbers(c.attention, "attention"), head_dim=c.head_dim',
        "head_dim=c.head_dim",
        by_row("diffusion-attention"),
    ),
    Fault(DIFFUSION, "c.threads or runtime.default_threads", "runtime.default_threads", by_row("diffusion-threads")),
    Fault(
        DIFFUSION,
        '        path = Path(c.vae)\n        return path if path.is_file() else path / "weights.safetensors"\n',
        "        pass\n",
        by_row("diffusion-vae"),
    ),
    Fault(
        DIFFUSION,
        "compiles(c.compile, rt.device, attempt.say) else s.unet\n",
        "compiles(True, rt.device, attempt.say) else s.unet\n",
        by_row("diffusion-compile"),
    ),
    # --- micro-batches: a gradient is the mean over them ---
    Fault(
        GAN,
        "s.scaler_G.scale(losses.mean() / c.accumulate)",
        "s.scaler_G.scale(losses.mean())",
        by_row("stylegan2-accumulate"),
    ),
    Fault(
        GAN,
        "s.scaler_D.scale(losses.mean() / c.accumulate)",
        "s.scaler_D.scale(losses.mean())",
        by_row("stylegan2-accumulate"),
    ),
    Fault(
        GAN,
        "(c.pl_weight * c.pl_interval / c.accumulate)",
        "(c.pl_weight * c.pl_interval)",
        by_row("stylegan2-accumulate"),
    ),
    Fault(
        GAN,
        "(c.gamma / 2 * c.r1_interval / c.accumulate)",
        "(c.gamma / 2 * c.r1_interval)",
        by_row("stylegan2-accumulate"),
    ),
    Fault(VAE, "share = scale / (len(images) * c.accumulate)", "share = scale / len(images)", by_row("vae-accumulate")),
    Fault(
        VAE,
        "s.scaler_D.scale(losses.mean() / step.c.accumulate)",
        "s.scaler_D.scale(losses.mean())",
        by_row("vae-accumulate"),
    ),
    Fault(
        DIFFUSION,
        "s.scaler.scale(losses.mean() / c.accumulate)",
        "s.scaler.scale(losses.mean())",
        by_row("diffusion-accumulate"),
    ),
    Fault(DIFFUSION, "rt.rank, rt.world, c.accumulate):", "rt.rank, rt.world):", by_row("diffusion-accumulate")),
    # --- what a dry run checks, and what a weights file says of its origin ---
    Fault(
        GAN,
        "channels=c.channels, crop=c.crop, split=c.split, log=say)",
        "channels=c.channels, crop=c.crop, log=say)",
        by_row("stylegan2-dry_run"),
    ),
    Fault(
        VAE,
        "channels=c.channels, crop=c.crop, split=c.split, log=say)",
        "channels=c.channels, split=c.split, log=say)",
        by_row("vae-dry_run"),
    ),
    Fault(DIFFUSION, "    compare_with_run(run, c)\n", "", by_row("diffusion-dry_run")),
    Fault(VAE, "specs.vae_memory_gb(c, world):.1f", "specs.vae_memory_gb(c):.1f", by_row("vae-preset")),
    Fault(
        GAN,
        "        specs.check_classes(c, pack.classes)\n",
        "",
        by_flags("without_classes_there_is_nothing_to_condition_on"),
    ),
    Fault(LOOP, '"config": specs.result_fields(self.c), "nimg"', '"config": vars(self.c), "nimg"', by_row("vae-run")),
    Fault(LOOP, '"job": specs.JOB_NAME[type(self.c)]', '"job": type(self.c).__name__', by_row("vae-run")),
    Fault(
        GAN, "enabled=fp16),\n        scaler_D", "enabled=False),\n        scaler_D", by_row("stylegan2-precision-1")
    ),
]
