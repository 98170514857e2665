"""Recipes that fit: what follows from what, pairs of one class, what ADA steers by, warm starts, ways back, networks of
others."""

from tests.mutants import Fault

REFERENCE = "tests/scripts/test_reference_gan.py::test_six_steps_of_main_are_those_of_the_reference"
RECIPE = "tests/config/test_recipe.py::"
ADA = "tests/models/test_augment.py::"
STEP = "tests/scripts/test_gan_step.py::"
FAULTS = [
    Fault(
        "jobs/config/recipe.py",
        "(0.002 if pairs else 0.0002)",
        "(0.0002)",
        (f"{RECIPE}test_numbers_follow_resolution_batch_and_loss",),
    ),
    Fault(
        "jobs/config/parsing.py",
        '.replace("_", "-") in flags',
        " in flags",
        (f"{RECIPE}test_numbers_follow_resolution_batch_and_loss",),
    ),
    Fault(
        "jobs/config/recipe.py",
        "2 if pairs else 16",
        "8 if pairs else 16",
        (f"{RECIPE}test_numbers_follow_resolution_batch_and_loss",),
    ),
    Fault(
        "jobs/config/recipe.py",
        "0.0 if pairs else 0.9",
        "0.9",
        (f"{RECIPE}test_numbers_follow_resolution_batch_and_loss",),
    ),
    Fault(
        "jobs/config/recipe.py",
        "0.0 if pairs else 2.0",
        "2.0",
        (f"{RECIPE}test_numbers_follow_resolution_batch_and_loss",),
    ),
    Fault(
        "jobs/config/recipe.py",
        "math.gcd(c.batch, MBSTD_GROUP)",
        "MBSTD_GROUP",
        (f"{RECIPE}test_numbers_follow_resolution_batch_and_loss",),
    ),
    Fault(
        "jobs/config/recipe.py",
        "before = begun() if found else None",
        "before = None",
        (f"{RECIPE}test_a_run_that_has_begun_keeps_its_numbers",),
    ),
    Fault(
        "jobs/config/recipe.py",
        "100.0 if c.init_from else 500.0",
        "500.0",
        (f"{RECIPE}test_a_warm_start_augments_sooner",),
    ),
    Fault("models/styles.py", '        latents["labels"] = pairs\n', "        pass\n", (f"{REFERENCE}[rpgan]",)),
    Fault(
        "train_gan.py",
        'rows_of(draws, start, stop, labels if c.loss == "rpgan" else None)',
        "rows_of(draws, start, stop, labels)",
        (f"{REFERENCE}[no-path-length]",),
    ),
    Fault(
        "jobs/predict/gan_look.py",
        "self.of_class[k if self.by_class else 0]",
        "self.of_class[0]",
        (f"{STEP}test_held_out_slices_are_of_the_classes_of_the_training_slices_and_all_get_their_turn",),
    ),
    Fault(
        "jobs/predict/gan_look.py",
        "place = look * self.c.batch + start",
        "place = look * self.c.batch",
        (f"{STEP}test_held_out_slices_are_of_the_classes_of_the_training_slices_and_all_get_their_turn",),
    ),
    Fault(
        "models/augment.py",
        "float(train - held_out)",
        "float(held_out - train)",
        (f"{ADA}test_r_v_is_the_share_of_the_way_to_the_generated_slices",),
    ),
    Fault(
        "models/augment.py",
        "if self.to_generated > 0 else 0.0",
        "if self.to_generated else 0.0",
        (f"{ADA}test_r_v_is_the_share_of_the_way_to_the_generated_slices",),
    ),
    Fault(
        "models/augment.py",
        "min((nimg + batch) / (self.speed_kimg * 1000), P_SCHEDULED)",
        "(nimg + batch) / (self.speed_kimg * 1000)",
        (f"{ADA}test_a_schedule_is_a_function_of_the_images_seen",),
    ),
    Fault(
        "models/augment.py",
        '            "to_generated": self.to_generated,\n',
        "",
        (f"{STEP}test_a_state_that_went_through_a_checkpoint_steps_alike",),
    ),
    Fault(
        "train_gan.py",
        'draw_augmentation(step, s.ada.p, "D held out")',
        'draw_augmentation(step, 0.0, "D held out")',
        (f"{REFERENCE}[rpgan]",),
    ),
    Fault(
        "train_gan.py",
        'digests["held out"] = packs[1].digest if len(packs) > 1 else "none"',
        "pass",
        ("tests/config/test_flags.py::test_every_flag_has_an_effect[stylegan2-val_split-0]",),
    ),
    Fault(
        "models/stylegan2.py",
        "(1 - beta) * (share > 0)",
        "(1 - beta)",
        ("tests/models/test_stylegan2.py::test_every_class_has_its_average_w",),
    ),
    Fault(
        "models/stylegan2.py",
        "self.w_avg[labels.to(self.w_avg.device)][:, None]",
        "self.w_avg.mean(0)",
        ("tests/models/test_stylegan2.py::test_truncation_keeps_the_distance_of_the_classes",),
    ),
    Fault(
        "models/stylegan2.py",
        "        self.register_load_state_dict_pre_hook(average_of_each_class)\n",
        "",
        ("tests/models/test_stylegan2.py::test_weights_with_one_average_for_all_classes_still_load",),
    ),
    Fault(
        "jobs/predict/gan.py",
        "return self.G.truncate(ws, truncation, truncation_cutoff, self.centre(labels, truncation))",
        "return self.G.truncate(ws, truncation, truncation_cutoff)",
        ("tests/predict/test_written.py::test_truncation_of_zero_draws_the_average_style",),
    ),
    Fault(
        "jobs/predict/gan.py",
        "torch.lerp(from_centre, to_centre, t[:, None])",
        "from_centre",
        ("tests/predict/test_written.py::test_the_film_walks_by_equal_steps",),
    ),
    Fault(
        "jobs/training/upkeep.py",
        'return nimg + self.counters.get("warm", 0)',
        "return nimg",
        ("tests/config/test_flags.py::test_every_flag_has_an_effect[stylegan2-init_from-0]",),
    ),
    Fault(
        "jobs/training/upkeep.py",
        "            self.board.rewind(nimg)\n",
        "",
        ("tests/scripts/test_reference_gan.py::test_after_a_divergence_main_goes_on_with_other_data_and_draws[0.008]",),
    ),
    Fault(
        "jobs/view/tensorboard.py",
        "Event(step=nimg + 1, session_log=start)",
        "Event(step=nimg, session_log=start)",
        ("tests/view/test_log.py::test_tensorboard_shows_one_curve_after_every_way_back",),
    ),
    Fault(
        "models/encoder.py",
        "padding=1, count_include_pad=False",
        "padding=1, count_include_pad=True",
        ("tests/models/test_features.py::test_fids_inception_pools_as_it_did",),
    ),
    Fault(
        "models/encoder.py",
        'if name == "Mixed_7c":',
        'if name == "Mixed_7b":',
        ("tests/models/test_features.py::test_fids_inception_pools_as_it_did",),
    ),
    Fault(
        "models/vit.py",
        "(side + 0.1) / known",
        "side / known",
        (
            "tests/models/test_features.py::test_positions_without_registers_are_resized_by_a_factor_with_a_tenth_of_a_patch",
        ),
    ),
    Fault(
        "jobs/config/rules.py",
        "near = max(round(r / stride) * stride, stride)",
        "near = r // stride * stride",
        ("tests/config/test_specs.py::test_only_a_stylegan2_needs_a_power_of_two",),
    ),
    Fault("models/names.py", "SamplerKind(fewest=30)", "SamplerKind(fewest=3)", ("tests/scripts/test_other_sizes.py",)),
]
