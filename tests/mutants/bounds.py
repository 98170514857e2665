"""Files and text that others wrote: the one reader, the one escape, and no way out of a run."""

from tests.mutants import Fault

BOUNDED, VALUES = "tests/run/test_bounded.py", "tests/run/test_odd_values.py"
INSIDE, ESCAPES = "tests/predict/test_inside_a_run.py", "tests/house/test_escapes.py"

FAULTS = [
    Fault(
        "data/scan.py",
        'say(f"error: {error}", sys.stderr)',
        'print(f"error: {error}", file=sys.stderr)',
        ("tests/house/test_escapes.py::test_what_a_scan_tells_moves_no_cursor",),
    ),
    # the reader
    Fault(
        "data/files.py",
        "if not stat.S_ISREG(info.st_mode):",
        "if stat.S_ISDIR(info.st_mode):",
        (f"{BOUNDED}::test_only_a_regular_file_within_its_bound_is_read[device]",),
    ),
    Fault(
        "data/files.py",
        "        check_regular(os.stat(name), name)  # first: to open a device may do something\n",
        "        os.stat(name)\n",
        (f"{BOUNDED}::test_only_a_regular_file_within_its_bound_is_read[socket]",),
    ),
    Fault(
        "data/files.py",
        "if info.st_size > most:",
        "if info.st_size >= most:",
        (f"{BOUNDED}::test_a_file_of_exactly_the_bound_is_read",),
    ),
    Fault(
        "data/files.py",
        "        check_regular(os.fstat(file.fileno()), path, most)\n        return file.read(most)",
        "        return file.read(most)",
        (f"{BOUNDED}::test_a_file_of_exactly_the_bound_is_read",),
    ),
    Fault(
        "data/files.py",
        "    if inside is not None and leads_out(Path(path), inside):",
        "    if inside is not None and Path(path).is_symlink():",
        (f"{BOUNDED}::test_links_are_followed_inside_a_folder_only",),
    ),
    Fault(
        "data/files.py",
        "is_relative_to(os.path.realpath(folder))",
        "is_relative_to(folder)",
        (f"{BOUNDED}::test_links_are_followed_inside_a_folder_only",),
    ),
    Fault(
        "data/files.py",
        "    except RecursionError:\n        raise ValueError",
        "    except MemoryError:\n        raise ValueError",
        (f"{BOUNDED}::test_json_that_cannot_be_computed_with_or_shown_is_refused",),
    ),
    Fault(
        "data/files.py",
        "if not math.isfinite(value) and not nonfinite:",
        "if math.isnan(value) and not nonfinite:",
        (f"{BOUNDED}::test_json_that_cannot_be_computed_with_or_shown_is_refused",),
    ),
    Fault(
        "data/files.py",
        "parse_constant=number, parse_float=number",
        "parse_constant=number",
        (f"{BOUNDED}::test_json_that_cannot_be_computed_with_or_shown_is_refused",),
    ),
    Fault(
        "data/files.py",
        "    if _surrogate.search(text):",
        "    if False:",
        (f"{BOUNDED}::test_json_that_cannot_be_computed_with_or_shown_is_refused",),
    ),
    Fault(
        "data/files.py",
        "return value if math.isfinite(value) else None",
        "return value",
        (f"{BOUNDED}::test_honest_json_is_read",),
    ),
    Fault(
        "data/files.py",
        "rows, size, step = rows[::2], size // 2, step * 2",
        "rows, size, step = rows[::2], size // 2, step",
        (f"{BOUNDED}::test_a_log_of_weeks_keeps_its_curve_within_the_memory",),
    ),
    Fault(
        "data/files.py",
        "    return rows + row_of(last, keep, nonfinite=True)",
        "    return rows",
        (f"{BOUNDED}::test_a_log_of_weeks_keeps_its_curve_within_the_memory",),
    ),
    Fault(
        "data/files.py",
        "            if size > KEPT:",
        "            if size > 64 * KEPT:",
        (f"{BOUNDED}::test_a_log_of_weeks_keeps_its_curve_within_the_memory",),
    ),
    Fault(
        "data/files.py",
        '            while (rest := file.readline(LINE)) and not rest.endswith(b"\\n"):\n                pass',
        "            pass",
        (f"{BOUNDED}::test_rows_that_are_none_are_passed_over",),
    ),
    # the escape
    Fault(
        "data/files.py",
        "    if text.isprintable():\n        return text",
        "    if text.isascii():\n        return text",
        (f"{ESCAPES}::test_what_does_not_print_is_spelled_out",),
    ),
    Fault(
        "data/files.py",
        "c if c.isprintable() or c in keep else ascii(c)[1:-1]",
        "c if c >= ' ' or c in keep else ascii(c)[1:-1]",
        (f"{ESCAPES}::test_what_does_not_print_is_spelled_out",),
    ),
    Fault("data/files.py", 'print(plain(text, keep="\\n\\t"),', "print(text,", (f"{ESCAPES}::test_say_writes_lines",)),
    Fault(
        "jobs/cluster/terminal.py",
        "[[plain(text) for text in row] for row in rows]",
        "rows",
        (f"{ESCAPES}::test_columns_are_as_wide_as_what_is_shown",),
    ),
    Fault(
        "jobs/cluster/terminal.py",
        " + plain(text), file=sys.stderr)",
        " + text, file=sys.stderr)",
        (f"{ESCAPES}::test_status_and_why_of_a_hostile_run",),
    ),
    Fault(
        "jobs/cluster/terminal.py",
        "(plain(key), plain(value)) for key",
        "(plain(key), value) for key",
        (f"{ESCAPES}::test_status_and_why_of_a_hostile_run",),
    ),
    Fault(
        "jobs/cluster/slurm.py",
        'return plain(" ".join(text.split()))[:500]',
        'return " ".join(text.split())[:500]',
        (f"{ESCAPES}::test_slurms_own_texts_are_made_plain",),
    ),
    Fault(
        "jobs/cluster/why.py",
        'return plain(re.sub(r"[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f]", "", text), keep="\\n\\t")',
        'return re.sub(r"[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f]", "", text)',
        (f"{ESCAPES}::test_logs_hold_no_escapes",),
    ),
    Fault(
        "jobs/run/attempt.py",
        'self.printer(plain(text, keep="\\n"))',
        "self.printer(text)",
        (f"{ESCAPES}::test_lines_of_a_training_log_are_plain",),
    ),
    Fault(
        "jobs/view/markup.py",
        'return html.escape(plain(text, keep="\\n\\t"))',
        "return html.escape(str(text))",
        (f"{ESCAPES}::test_a_report_of_a_hostile_run_spells_everything_out",),
    ),
    Fault(
        "jobs/view/plots.py",
        '.replace("$", r"\\$")',
        "",
        (f"{ESCAPES}::test_names_in_a_picture_are_text_and_no_formula",),
    ),
    Fault(
        "data/packfile.py",
        'if not name.isprintable()), "")',
        'if "\\x1b" in name), "")',
        (f"{ESCAPES}::test_a_pack_with_unprintable_class_names_is_refused_before_training",),
    ),
    Fault(
        "jobs/predict/trained.py",
        " or odd_class(classes):",
        ":",
        (f"{ESCAPES}::test_a_pack_with_unprintable_class_names_is_refused_before_training",),
    ),
    # a run with an odd file
    Fault(
        "jobs/run/rundir.py",
        "        if damage := self.damage():\n",
        '        if damage := "":\n',
        (f"{BOUNDED}::test_training_in_a_run_with_an_odd_file_is_refused_in_one_line",),
    ),
    Fault(
        "jobs/run/rundir.py",
        "if path.is_symlink() and leads_out(path, self.path):",
        "if False:",
        (f"{BOUNDED}::test_training_in_a_run_with_an_odd_file_is_refused_in_one_line",),
    ),
    Fault(
        "jobs/run/rundir.py",
        "check_regular(path.stat(), path, MOST.get(name, SMALL))",
        "check_regular(path.stat(), path)",
        (f"{BOUNDED}::test_training_in_a_run_with_an_odd_file_is_refused_in_one_line",),
    ),
    Fault(
        "jobs/cluster/status.py",
        'note="; ".join(filter(None, [damage, view.note]))',
        "note=view.note",
        (f"{BOUNDED}::test_one_odd_file_leaves_the_table_of_all_runs",),
    ),
    Fault(
        "jobs/cluster/status.py",
        "return value if is_number(value) and value >= 0 else None",
        "return value if is_number(value) else None",
        (f"{VALUES}::test_any_value_in_any_field_of_a_run_can_be_shown",),
    ),
    Fault(
        "jobs/cluster/status.py",
        '"" if os.path.exists(after / "DONE") else after.name',
        '"" if (after / "DONE").exists() else after.name',
        (f"{VALUES}::test_a_run_that_waits_for_no_path_leaves_the_table",),
    ),
    Fault(
        "jobs/cluster/show.py",
        "        if type(number) is not int:\n            number = 0\n",
        "",
        (f"{VALUES}::test_any_value_in_any_field_of_a_run_can_be_shown",),
    ),
    Fault(
        "jobs/run/find.py",
        'list(point["values"]) == names and point["run"].isprintable()',
        'list(point["values"]) == names',
        (f"{ESCAPES}::test_a_sweep_of_unprintable_runs_is_none",),
    ),
    Fault(
        "jobs/view/metrics.py",
        'with open_regular(self.path, "ab", self.path.parent) as file:',
        'with open(self.path, "r+b") as file:',
        (f"{BOUNDED}::test_rows_that_are_none_are_passed_over", "tests/view/test_log.py"),
    ),
    # weights, checkpoints, predict.py
    Fault(
        "jobs/training/weights.py",
        "if not 2 <= length <= SMALL:",
        "if not 2 <= length:",
        (f"{INSIDE}::test_a_header_of_weights_is_checked_before_a_tensor_is_read",),
    ),
    Fault(
        "jobs/training/weights.py",
        "check_regular(info, path, MAX_WEIGHTS)",
        "check_regular(info, path)",
        (f"{INSIDE}::test_weights_of_gigabytes_of_nothing_are_not_hashed",),
    ),
    Fault(
        "jobs/training/checkpoint.py",
        "        with open_regular(path) as file:",
        '        with open(path, "rb") as file:',
        (f"{INSIDE}::test_an_odd_checkpoint_is_passed_over[.pt-pipe]",),
    ),
    Fault(
        "jobs/predict/named.py",
        "    if leads_out(weights, weights.parent):",
        "    if False:",
        (f"{INSIDE}::test_weights_that_lead_out_of_a_run_are_not_followed",),
    ),
    Fault(
        "jobs/predict/output.py",
        "            if leads_out(out.folder, out.folder.parents[2]):",
        "            if False:",
        (f"{INSIDE}::test_predictions_that_lead_out_of_a_run_are_not_written",),
    ),
    Fault(
        "jobs/predict/pages.py",
        "if not out and leads_out(default, runs[0].path):",
        "if False:",
        (f"{INSIDE}::test_plots_that_lead_out_of_a_run_are_not_written",),
    ),
    Fault(
        "jobs/view/markup.py",
        "read_object(run.path / name, run.path, nonfinite=True)",
        "read_object(run.path / name, nonfinite=True)",
        (f"{INSIDE}::test_a_report_shows_nothing_from_outside_of_its_run",),
    ),
    Fault(
        "jobs/view/pictures.py",
        "check_regular(path.lstat(), path,",
        "check_regular(path.stat(), path,",
        (f"{INSIDE}::test_pictures_that_are_links_or_of_another_kind_are_made_again",),
    ),
]
