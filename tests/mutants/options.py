"""The table of options and what stands around sbatch: profiles, resumes, successors, the user's shell, wrappers."""

from tests.mutants import Fault

TESTS = "tests/cluster/test_options.py"
JOB = f"{TESTS}::test_a_job_is_read_back_with_all_its_options"
OTHER = f"{TESTS}::test_what_was_asked_for_in_another_way"
EACH = f"{TESTS}::test_an_option_reaches_sbatch_a_profile_and_a_resume"
SHELL = f"{TESTS}::test_sbatch_sees_none_of_them"
IDS = f"{TESTS}::test_the_id_among_a_sites_own_words"
HIDDEN = f"{TESTS}::test_an_id_on_stderr_or_not_at_all"
AFTER = f"{TESTS}::test_a_run_after_a_sweep_waits_for_all_its_points"
GROWS = f"{TESTS}::test_the_same_sweep_with_more_values_adds_points"

FAULTS = [
    Fault("jobs/cluster/successor.py", '"gpus-per-task": "TresPerTask"', '"gpus-per-task": "TresPerJob"', (OTHER,)),
    Fault("jobs/cluster/successor.py", 'if row.shown} | FURTHER', 'if row.shown}', (JOB,)),
    Fault("jobs/cluster/successor.py", 'return f"{megabytes}M" if megabytes else ""', 'return text', (JOB,)),
    Fault("jobs/cluster/successor.py", '        options["partition"] = wanted', '        pass', (JOB,)),
    Fault("jobs/cluster/successor.py", 'about | {"options": others | as_typed(job.shown)}', 'about',
          (f"{TESTS}::test_resume_of_a_run_that_sbatch_started",)),
    Fault("jobs/cluster/options.py", '    return {key: value for key, value in given.items() if is_given(value)} | further(resources.slurm)',
          '    return {key: value for key, value in given.items() if is_given(value)}', (EACH,)),
    Fault("jobs/cluster/options.py", '(*theirs, *ours) if name == "slurm" else ours if is_given(ours) else theirs', 'ours', (EACH,)),
    Fault("jobs/cluster/options.py", '        if value and not is_given(getattr(options, r.name)) and not _said_otherwise(r.name, options, keys):', '        if value:',
          (f"{TESTS}::test_variables_of_sbatch_are_defaults_and_are_said",)),
    Fault("jobs/cluster/options.py", '        if re.search(r"[*?/]", self.exclude):', '        if False:',
          (f"{TESTS}::test_exclude_is_of_nodes_before_the_dashes",)),
    Fault("jobs/cluster/slurm.py", '    "SLURM_", "SBATCH_", "SRUN_",', '    "SLURM_", "SRUN_",', (SHELL,)),
    Fault("jobs/cluster/slurm_text.py", 'return [piece for piece in pieces if sign in piece] or pieces', 'return pieces',
          (f"{TESTS}::test_a_banner_around_the_other_commands",)),
    Fault("jobs/cluster/slurm.py", 'text[max(text.find("JobId="), 0) :]', 'text',
          (f"{TESTS}::test_a_banner_around_the_other_commands",)),
    Fault("jobs/cluster/sbatch.py", 'return found.pop() if len(found) == 1 else ""', 'return found.pop() if found else ""', (IDS,)),
    Fault("jobs/cluster/sbatch.py", 'read_id(f"{done.stdout}\\n{done.stderr}") or', 'read_id(done.stdout) or',
          (HIDDEN,)),
    Fault("jobs/cluster/sbatch.py", 'return "; ".join(dict.fromkeys(reasons))[:500]', 'return reasons[-1]',
          (f"{TESTS}::test_a_refusal_names_the_line_that_decides_and_the_way_out",)),
    Fault("jobs/cluster/preflight.py", ' and "can not be satisfied" not in words', '',
          (f"{TESTS}::test_a_refusal_names_the_line_that_decides_and_the_way_out",)),
    Fault("jobs/cluster/preflight.py", 'if wanted > p.real_memory_mb > 0:', 'if False:',
          (f"{TESTS}::test_memory_is_checked_before_it_is_asked_for",)),
    Fault("jobs/cluster/submit.py", 'left = [first for first in members(after) if', 'left = [first for first in [after] if', (AFTER,)),
    Fault("jobs/cluster/queueing.py", 'left = [run for run in members(first) if', 'left = [run for run in [first] if', (AFTER,)),
    Fault("jobs/cluster/submit.py", '        parameters["array_parallelism"] = plan.throttle', '        pass', (GROWS,)),
    Fault("jobs/cluster/sweep.py", '    return known + [', '    return [', (GROWS,)),
    Fault("jobs/cluster/sweep.py", 'if name not in swept}', '}', (GROWS,)),
    Fault("jobs/cluster/show.py", 'sign = -1 if any(', 'sign = 1 if any(', (f"{TESTS}::test_the_best_point_by_a_column",)),
    Fault("jobs/cluster/submit.py", 'exit 78\'', 'true\'', (f"{TESTS}::test_a_job_without_its_snapshot_says_so",)),
    Fault("jobs/cluster/doctor.py", 'f"import {PACKAGES[name]}"', 'f"import {name}"',
          (f"{TESTS}::test_the_doctor_imports_what_it_vouches_for",)),
    Fault("jobs/env.sh", 'if [ -z "${RUN:-}" ] && [ -x "$own" ]', 'if [ -z "${RUN:-}" ] && [ -z "${PYTHON:-}" ] && [ -x "$own" ]',
          ("tests/cluster/test_job_scripts.py::test_which_python_it_is",)),
    Fault("jobs/env.sh", 'export SLURM_EXPORT_ENV=ALL\n', '\n', ("tests/cluster/test_job_scripts.py::test_srun_hears_nothing_of_the_users_shell",)),
    Fault("jobs/env.sh", 'else cd "$REPOSITORY"; fi', 'fi', ("tests/cluster/test_job_scripts.py::test_a_snapshot_that_goes_meanwhile_leaves_the_decision",)),
]  # fmt: skip
