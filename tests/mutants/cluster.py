"""Faults in the cluster half: the decision, Slurm's words, the sbatch text, the checks, status, why, launch.py, the shell."""

from __future__ import annotations

from tests.mutants import Fault

REQUEUE, SLURM, SUBMIT, PLAN = "jobs/requeue.py", "jobs/slurm.py", "jobs/submit.py", "jobs/plan.py"
PREFLIGHT, SITES, WATCH, WHY, SHOW = "jobs/preflight.py", "jobs/sites.py", "jobs/watch.py", "jobs/why.py", "jobs/show.py"
TERMINAL, LAUNCH, ENV, VENV = "jobs/terminal.py", "launch.py", "jobs/env.sh", "jobs/venv.sh"


def decisions(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_decisions.py::test_{name}" for name in names)


def rules(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_cluster_rules.py::test_{name}" for name in names)


def watching(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_watching.py::test_{name}" for name in names)


def launching(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_launch_rules.py::test_{name}" for name in names)


def scripts(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/test_job_scripts.py::test_{name}" for name in names)


DECIDE = decisions("what_becomes_of_a_run", "what_becomes_of_a_finished_run")
BUDGET = decisions("within_budget")
END = decisions("what_an_end_writes_and_asks_of_slurm")

FAULTS = [
    # --- the decision ---------------------------------------------------------------------------------------------------
    Fault(REQUEUE, "if stop_file:\n        return", "if stop_file and code != stop.CONTINUE:\n        return", DECIDE),
    Fault(REQUEUE, "put_back = job is not None and job.restarts > restarts", "put_back = job is not None and job.restarts >= restarts", DECIDE),
    Fault(REQUEUE, "REFUSALS = (stop.USAGE, stop.DIVERGED, stop.BAD)", "REFUSALS = (stop.USAGE, stop.BAD)", DECIDE),
    Fault(REQUEUE, "if node_failed and code not in (*REFUSALS, 130):", "if node_failed and code not in REFUSALS:", DECIDE),
    Fault(REQUEUE, "if node_failed and code not in (*REFUSALS, 130):", "if node_failed and code not in (0, *REFUSALS, 130):", DECIDE),
    Fault(REQUEUE, "code > 128 or (node_failed and code not in REFUSALS)):", "code > 128):", DECIDE),
    Fault(REQUEUE, "if done and (code in (0, stop.CONTINUE,", "if done and (code in (0, stop.BAD, stop.CONTINUE,", DECIDE),
    Fault(REQUEUE, "if put_back and not done:", "if put_back:", DECIDE),
    Fault(REQUEUE, 'return Decision("requeue", "Slurm requeued the job", by_slurm=True)', 'return Decision("requeue", "Slurm requeued the job")', DECIDE),
    Fault(REQUEUE, "if code in (0, 130):", "if code == 0:", DECIDE),
    Fault(REQUEUE, "if code not in (stop.CONTINUE, stop.TRANSIENT) and code <= 128:", "if code not in (stop.CONTINUE, stop.TRANSIENT) and code < 128:", DECIDE),
    Fault(REQUEUE, "(job.start or 0) <= job.preempt_time:", "(job.start or 0) >= job.preempt_time:", DECIDE),
    Fault(REQUEUE, 'return Decision("requeue", "the job was pre-empted")', 'return Decision("requeue", "the job was pre-empted", counted=True)', DECIDE),
    Fault(REQUEUE, 'job.state == "TIMEOUT" or job.reason == "TimeLimit"', 'job.state == "TIMEOUT" and job.reason == "TimeLimit"', DECIDE),
    Fault(REQUEUE, 'job.state not in ("RUNNING", "SUSPENDED"):', 'job.state not in ("RUNNING", "SUSPENDED", "COMPLETING"):', DECIDE),
    Fault(REQUEUE, "now > job.end - 60", "now > job.end + 60", DECIDE),
    Fault(REQUEUE, 'code == stop.CONTINUE and reason == "TERM" and job is not None and not ends_now:', 'code == stop.CONTINUE and reason == "TERM" and not ends_now:', DECIDE),
    Fault(REQUEUE, '"the run saved and asks to go on", counted=True)', '"the run saved and asks to go on")', DECIDE),
    Fault(REQUEUE, "({reason or 'exit code 75'})\", counted=True)", "({reason or 'exit code 75'})\")", DECIDE),
    Fault(REQUEUE, 'f"a task was killed by {name}", counted=True)', 'f"a task was killed by {name}")', DECIDE),
    # --- budget and progress
    Fault(REQUEUE, "STUCK_AFTER = 2 ", "STUCK_AFTER = 3 ", BUDGET),
    Fault(REQUEUE, "if used >= max_restarts:", "if used > max_restarts:", BUDGET),
    Fault(REQUEUE, 'if (line.get("time") or 0) < since:', 'if (line.get("time") or 0) <= since:', BUDGET),
    Fault(REQUEUE, 'in ("requeue", "chain")\n        used', 'in ("requeue",)\n        used', BUDGET),
    Fault(REQUEUE, "idle = 0 if seen > before else idle + counted", "idle = 0 if seen > before else idle + 1", BUDGET),
    Fault(REQUEUE, "idle = 0 if nimg > seen else idle + 1", "idle = 0 if nimg >= seen else idle + 1", BUDGET),
    Fault(REQUEUE, "used += counted\n", "used += 1\n", BUDGET),
    Fault(REQUEUE, 'if decision.verdict != "requeue" or not decision.counted:', 'if decision.verdict != "requeue":', decisions("what_costs_nothing_is_never_over_budget")),
    Fault(REQUEUE, 'if entry.get("kind") != "chain"]', "]", decisions("when_a_person_last_started_the_run")),
    # --- the end of a job
    Fault(REQUEUE, 'return code if verdict in ("failed", "stuck", "budget") else 0', 'return code if verdict == "failed" else 0', decisions("the_budget_of_a_run_is_its_own", "a_run_that_is_stuck_says_so")),
    Fault(REQUEUE, 'if verdict == "requeue" and not decision.by_slurm:', 'if verdict == "requeue":', END),
    Fault(REQUEUE, 'elif verdict not in ("requeue", "chain"):', 'elif verdict == "stopped":', END),
    Fault(REQUEUE, 'elif verdict != "requeue" and successors and "scancel" in why:', 'elif verdict != "requeue" and successors and "STOP" in why:', END),
    Fault(REQUEUE, 'if verdict == "requeue" and successors:\n        verdict, why = "chain"', 'if verdict == "requeue" and not successors:\n        verdict, why = "requeue"', END),
    Fault(REQUEUE, 'code > 128 and reason != "TERM" and', "code > 128 and", decisions("what_rank_0_says_mends_the_code")),
    Fault(REQUEUE, 'if mine and status.get("state") == "continue":', 'if status.get("state") == "continue":', decisions("what_rank_0_says_mends_the_code")),
    Fault(REQUEUE, "if not mine and code in (0, stop.BAD) and", "if code in (0, stop.BAD) and", decisions("a_job_that_worked_on_the_run_always_decides")),
    Fault(REQUEUE, 'if not (decision.by_slurm and job.state == "RUNNING"):', "if not decision.by_slurm:", decisions("whose_state_is_written_at_the_end")),
    Fault(REQUEUE, "facts = dict(job_id=job_id, restart=restarts, code=code,", "facts = dict(job_id=job_id, restart=restarts, code=left_with,", decisions("what_rank_0_says_mends_the_code")),
    Fault(REQUEUE, "(signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)", "(signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)", decisions("the_end_is_deaf_to_the_signals_that_end_a_job")),
    Fault(REQUEUE, "(job.restarts > restarts or job.state == \"PENDING\")", "(job.restarts > restarts and job.state == \"PENDING\")", decisions("a_requeue_is_tried_until_slurm_has_done_it")),
    Fault(REQUEUE, "if FORBIDDEN in str(error) or not job_id or", "if not job_id or", decisions("a_requeue_is_tried_until_slurm_has_done_it")),
    # --- the start of a job
    Fault(REQUEUE, "if by_itself and run.done():", "if run.done():", decisions("whether_a_start_has_something_to_do")),
    Fault(REQUEUE, 'if run.stop_requested() and (by_itself or kind == "main"):', "if run.stop_requested() and by_itself:", decisions("whether_a_start_has_something_to_do")),
    Fault(REQUEUE, 'by_itself = kind == "chain" or', "by_itself =", decisions("whether_a_start_has_something_to_do")),
    Fault(REQUEUE, "    run.lift_stop()\n", "", decisions("whether_a_start_has_something_to_do")),
    Fault(REQUEUE, 'before is not None and before.state == "CANCELLED"', 'before is not None and before.state != "COMPLETED"', decisions("a_link_does_not_go_on_behind_a_cancelled_job")),
    Fault(REQUEUE, "if job is not None and not job.requeue and not", "if job is not None and job.requeue and not", decisions("a_successor_stands_ready_where_requeueing_is_forbidden")),
    Fault(REQUEUE, 'if not by_itself and (other := _other_live_job', 'if (other := _other_live_job', decisions("a_second_job_on_a_live_run_leaves")),
    Fault(REQUEUE, '"--dependency": f"afterany:{job.id}"', '"--dependency": f"afterok:{job.id}"', decisions("a_successor_gets_what_its_job_had")),
    Fault(REQUEUE, '"--time": slurm.format_time(job.limit_s)', '"--time": slurm.format_time(job.elapsed_s)', decisions("a_successor_gets_what_its_job_had")),
    Fault(REQUEUE, '{"id": successor, "kind": "chain", "after": job.id,', '{"id": successor, "kind": "main", "after": job.id,', decisions("a_successor_gets_what_its_job_had")),
    Fault(REQUEUE, 'if entry.get("after") == job_id}', 'if entry.get("after") != job_id}', decisions("a_job_that_another_one_kept_out_changes_nothing")),
    Fault(REQUEUE, "        if known:\n            return known[-1]\n", "", decisions("an_sbatch_job_enters_itself_once")),
    # --- Slurm's words and commands ---------------------------------------------------------------------------------------
    Fault(SLURM, "SUSPENDED STOPPED COMPLETING RESIZING", "SUSPENDED STOPPED RESIZING", rules("which_states_are_of_a_job_that_is_not_over")),
    Fault(SLURM, "return days * 86400 + a * 3600 + (b or 0) * 60", "return days * 86400 + a * 60 + (b or 0) * 60", rules("durations")),
    Fault(SLURM, "return a * 60 + (b or 0)", "return a + (b or 0) * 60", rules("durations")),
    Fault(SLURM, "gres[kind] = max(count, gres.get(kind, 0))", "gres[kind] = count + gres.get(kind, 0)", rules("partitions_and_their_largest_nodes")),
    Fault(SLURM, "nodes=sum(n for n, *_ in mine)", "nodes=max((n for n, *_ in mine), default=0)", rules("partitions_and_their_largest_nodes")),
    Fault(SLURM, "found[name] = found.get(name, 0) + _number", "found[name] = _number", rules("generic_resources")),
    Fault(SLURM, "before.restarts + 1, workdir", "before.restarts, workdir", rules("the_columns_of_sacct")),
    Fault(SLURM, "limit_s=_number(limit) * 60 if", "limit_s=_number(limit) if", rules("the_columns_of_sacct")),
    Fault(SLURM, 'preempt_time=_date(get("PreemptTime", ""))', 'preempt_time=_date(get("PreemptEligibleTime", ""))', rules("one_job")),
    Fault(SLURM, 'requeue=get("Requeue") == "1"', 'requeue=get("Requeue") != ""', rules("one_job")),
    Fault(SLURM, 'job_id = f"{array}_{get(\'ArrayTaskId\')}"', "job_id = array", rules("an_array_that_has_not_been_split_is_one_job")),
    Fault(SLURM, 'if ids is not None and "Invalid job id" in str(error):', 'if "Invalid job id" in str(error):', rules("squeue_asks_for_all_of_this_user_or_for_some")),
    Fault(SLURM, '[f"--signal={signal}"] if signal else []', "[]", rules("what_ends_and_requeues")),
    # --- the hand-over to Slurm -------------------------------------------------------------------------------------------
    Fault(SUBMIT, '"no-requeue" if plan.chain else "requeue"', '"requeue" if plan.chain else "no-requeue"', rules("what_is_asked_of_slurm")),
    Fault(SUBMIT, "signal_delay_s=plan.site.margin", "signal_delay_s=90", rules("what_is_asked_of_slurm")),
    Fault(SUBMIT, "ntasks_per_node=plan.tasks", "ntasks_per_node=plan.world", rules("what_is_asked_of_slurm")),
    Fault(SUBMIT, 'and k != "SLURM_CONF"}', "}", rules("one_job_is_queued")),
    Fault(SUBMIT, "        os.environ.update(taken)\n", "        pass\n", rules("one_job_is_queued")),
    Fault(SUBMIT, "private_files(0o027 if plans[0].shared else 0o077)", "private_files(0o027)", rules("one_job_is_queued")),
    Fault(SUBMIT, "    run.unmark_done()  #", "    pass  #", rules("a_run_is_made_ready")),
    Fault(SUBMIT, "    run.lift_stop()\n", "", rules("a_run_is_made_ready")),
    Fault(SUBMIT, 'if (after / "DONE").exists():\n        return 0', 'if (after / "weights.safetensors").exists():\n        return 0', rules("a_run_behind_another_waits_until_that_is_done")),
    Fault(SUBMIT, 'f"--dependency=afterany:{dependency}"', 'f"--dependency=afterok:{dependency}"', rules("a_later_link_of_a_chain")),
    Fault(SUBMIT, "if job.id in ids and job.active]", "if job.id in ids]", rules("a_run_behind_another_waits_until_that_is_done")),
    Fault(SUBMIT, 'about = {"submitted": []} | read_jobs(plan.run)', 'about = {"submitted": []}', rules("the_record_of_a_run")),
    Fault(SUBMIT, "    if code.exists():\n        os.rename(code, old)\n    os.rename(new, code)\n", "    shutil.copytree(new, code, dirs_exist_ok=True)\n    shutil.rmtree(new)\n", rules("a_snapshot_replaces_the_one_before_as_a_whole")),
    # --- the plan ---------------------------------------------------------------------------------------------------------
    Fault(PLAN, "return self.nodes * self.tasks", "return self.tasks", rules("processes_and_their_command")),
    Fault(PLAN, "min([slurm.parse_time(site.time), *limits])", "max([slurm.parse_time(site.time), *limits])", rules("the_resources_of_a_job")),
    Fault(PLAN, "minutes=math.ceil(seconds / 60)", "minutes=int(seconds // 60)", rules("the_resources_of_a_job")),
    Fault(PLAN, "chain=not site.requeue", "chain=site.requeue", rules("the_resources_of_a_job")),
    Fault(PLAN, "account=options.account or site.account", "account=site.account or options.account", rules("the_resources_of_a_job")),
    Fault(PLAN, "min(site.cpus, cores // max(gpus, 1))", "min(site.cpus, cores)", rules("the_resources_of_a_job")),
    Fault(PLAN, "    site = site.on(partition)\n", "", rules("the_resources_of_a_job")),
    Fault(PLAN, 'PATH_FIELDS = ("data", "init_from", "vae", "perceptual_file")', 'PATH_FIELDS = ("data", "init_from", "vae")', rules("flags_that_a_job_gets")),
    Fault(PLAN, "if self.local and self.world > 1:", "if self.world > 1:", rules("processes_and_their_command")),
    Fault(PLAN, 'return value is not None and value is not False and value != ""', "return bool(value)", launching("resume_knows_a_zero_from_nothing")),
    # --- the checks before queueing ---------------------------------------------------------------------------------------
    Fault(PREFLIGHT, "minimum = plan.site.margin + STARTUP_S", "minimum = plan.site.margin", rules("what_slurm_offers_is_compared")),
    Fault(PREFLIGHT, "if limit and plan.minutes * 60 > limit:", "if limit and plan.minutes > limit:", rules("what_slurm_offers_is_compared")),
    Fault(PREFLIGHT, "if plan.nodes > p.nodes:", "if plan.nodes >= p.nodes:", rules("what_slurm_offers_is_compared")),
    Fault(PREFLIGHT, "if plan.cpus * plan.tasks > p.cpus_per_node > 0:", "if plan.cpus > p.cpus_per_node > 0:", rules("what_slurm_offers_is_compared")),
    Fault(PREFLIGHT, "if count > there:", "if count >= there:", rules("what_slurm_offers_is_compared")),
    Fault(PREFLIGHT, 'if name == kind or name.startswith(kind + ":"))', "if name.startswith(kind))", rules("what_slurm_offers_is_compared")),
    Fault(PREFLIGHT, "if p.allow_accounts is not None and plan.account not in p.allow_accounts:", "if p.allow_accounts is not None and not plan.account:", rules("what_slurm_offers_is_compared")),
    Fault(PREFLIGHT, "    if not p.up:\n", "    if p.up is None:\n", rules("what_slurm_offers_is_compared")),
    Fault(PREFLIGHT, "room = free if left is None else min(free, left)", "room = free if left is None else max(free, left)", rules("room_for_the_checkpoints")),
    Fault(PREFLIGHT, '(getattr(plan.config, "keep", 2) + 2)', '(getattr(plan.config, "keep", 2) + 1)', rules("room_for_the_checkpoints")),
    Fault(PREFLIGHT, "if other and not config.override:", "if other and config.override:", rules("flags_against_those_of_the_run")),
    Fault(PREFLIGHT, 'and script and not any(c.level == "fail" for c in found)', "and script", rules("slurm_is_asked_only_where_nothing_failed_before")),
    Fault(PREFLIGHT, "found += check_data(plan) + check_vae(plan)", "found += check_data(plan)", rules("every_check_is_made")),
    Fault(PREFLIGHT, "used, soft, hard = (int(", "used, hard, soft = (int(", rules("what_a_quota_leaves")),
    # --- site profiles ----------------------------------------------------------------------------------------------------
    Fault(SITES, "set(partitions).issuperset(site.recognise)", "set(partitions) & set(site.recognise)", rules("which_profile_it_is")),
    Fault(SITES, "max(found, key=len)", "min(found, key=len)", rules("the_longest_key_names_the_data")),
    Fault(SITES, "            _merge(base[key], value)\n", "            base[key] = value\n", rules("own_profiles_are_merged_key_by_key")),
    Fault(SITES, "if reason := others_may_replace(own):", 'if reason := "":', rules("own_profiles_are_merged_key_by_key")),
    Fault("jobs/sites.toml", '[rangpur.partitions.comp3710]\naccount = "comp3710"', '[rangpur.partitions.comp3710]\naccount = ""', rules("the_profile_of_rangpur")),
    # --- what a person sees -----------------------------------------------------------------------------------------------
    Fault(WATCH, 'state={"COMPLETING": "ending", "SUSPENDED": "suspended"}', 'state={"SUSPENDED": "suspended"}', watching("the_state_of_a_run")),
    Fault(WATCH, "if job.start and (view.updated or 0) < job.start:", "if job.start and (view.updated or 0) > job.start:", watching("a_heartbeat_before_the_start_is_of_the_attempt_before")),
    Fault(WATCH, 'and age > HUNG_S:', 'and age > HUNG_S * 60:', watching("a_heartbeat_that_stopped")),
    Fault(WATCH, 'restarts=max(int(_number(seen.get("attempt")) or 1) - 1, 0)', 'restarts=int(_number(seen.get("attempt")) or 1)', watching("the_state_of_a_run")),
    Fault(WATCH, 'key=lambda j: (j.state == "PENDING", j.id)', 'key=lambda j: (j.state != "PENDING", j.id)', watching("which_jobs_are_a_runs")),
    Fault(WATCH, "if j.active and (j.id in ids or", "if (j.id in ids or", watching("which_jobs_are_a_runs")),
    Fault(WATCH, 'state="cut off", eta_s=None', 'state="failed", eta_s=None', watching("the_state_of_a_run")),
    Fault(WATCH, "        return view  # no Slurm to ask", "        pass  # no Slurm to ask", watching("where_slurm_cannot_be_asked_a_young_heartbeat_counts")),
    Fault(WATCH, "return holder if time.time() - about.st_mtime < LOCK_STALE else None", "return holder", watching("a_lock_of_another_host_counts_while_it_is_young")),
    Fault(WATCH, 'process_start(pid) == holder.get("start") != ""', 'process_start(pid) != ""', watching("a_process_that_holds_the_lock")),
    Fault(WATCH, "if len(starts) == 1:", "if starts:", watching("a_run_by_what_a_person_types")),
    Fault(WATCH, 'return f"{s // 3600} h {s % 3600 // 60:02}"', 'return f"{s // 3600} h {s % 60:02}"', watching("durations_for_people")),
    Fault(SHOW, 'rows[number][4:] = [watch.short_time(line.get("seconds")), rows[number][5], kimg, ended]', 'rows[number][4:] = [watch.short_time(line.get("seconds")), kimg, rows[number][5], ended]', watching("the_attempts_of_a_run")),
    Fault(SHOW, "bad_looks = bad_looks + 1 if view.state in FINAL else 0", "bad_looks = bad_looks + (view.state in FINAL)", watching("waiting_for_the_end_of_a_run")),
    Fault(SHOW, 'return DONE if view.state == "stopped" else view.code or 1', 'return DONE if view.state == "stopped" else 1', watching("waiting_for_the_end_of_a_run")),
    Fault(SHOW, "v.job_id if live else", "v.job_id if not live else", watching("a_table_of_runs")),
    Fault(SHOW, "self.seen[path] = file.tell()", "self.seen[path] = len(text)", watching("what_is_added_to_the_logs")),
    Fault(TERMINAL, "full = round(min(done / total, 1) * cells)", "full = round(done / total * cells)", watching("bars")),
    Fault(WHY, 'e.job.state in ("OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL"):', 'e.job.state in ("OUT_OF_MEMORY", "BOOT_FAIL"):', watching("the_surest_sign_counts")),
    Fault(WHY, 'if e.state == "diverged" or e.code == 77:', 'if e.state == "diverged":', watching("the_surest_sign_counts")),
    Fault(WHY, "for line in reversed(log.splitlines()[-400:]):", "for line in log.splitlines()[:400]:", watching("lines_of_a_log")),
    Fault(WHY, 'or ends[-1].get("attempt") == starts[-1].get("attempt")) else {}', "or True) else {}", watching("the_evidence_is_of_the_last_attempt")),
    Fault(WHY, "code - 128}{where}", "code}{where}", watching("what_slurms_record_means")),
    Fault(WHY, 'if j.get("kind") != "local"]', "]", watching("slurms_record_of_the_last_job")),
    # --- launch.py --------------------------------------------------------------------------------------------------------
    Fault(LAUNCH, "plan.config.total_kimg <= (stored_total(plan.run) or 0):", "plan.config.total_kimg < (stored_total(plan.run) or 0):", launching("a_finished_run_is_named_or_made_longer")),
    Fault(LAUNCH, "        if (code := already(plan, options)) is not None:  # another launch.py was quicker\n            return code\n", "", launching("two_launchers_at_once_queue_one_job")),
    Fault(LAUNCH, "    if refused(checks, options):\n", "    if refused(checks, options) and options.json:\n", launching("a_failed_check_queues_nothing")),
    Fault(LAUNCH, "for job in waiting + (running if now else []):", "for job in waiting + running:", launching("stop_of_a_running_job_lets_it_save")),
    Fault(LAUNCH, 'os.kill(holder["pid"], signal.SIGTERM)', 'os.kill(holder["pid"], signal.SIGKILL)', launching("stop_of_a_local_process")),
    Fault(LAUNCH, 'holder is not None and not running and now and holder.get("host")', 'holder is not None and not running and holder.get("host")', launching("stop_of_a_local_process")),
    Fault(LAUNCH, 'return f"afterany:{last}", f"starts', 'return f"afterok:{last}", f"starts', launching("a_run_after_another_waits_for_its_last_job")),
    Fault(LAUNCH, "last = max(live, key", "last = min(live, key", launching("a_run_after_another_waits_for_its_last_job")),
    Fault(LAUNCH, "combinations = list(itertools.product(*values))", "combinations = list(zip(*values))", launching("a_sweep_is_one_array_of_all_combinations")),
    Fault(LAUNCH, 'state in FINAL - {"done"} or', "state in FINAL or", launching("a_sweep_is_one_array_of_all_combinations")),
    Fault(LAUNCH, "    if code := launch(vae, first, partitions):\n        return code\n", "    launch(vae, first, partitions)\n", launching("a_pipeline_on_this_machine_waits_for_its_vae")),
    Fault(LAUNCH, '"name": options.name, "after": str(vae.run)}', '"name": options.name}', launching("a_pipeline_is_the_vae_and_diffusion_behind_it")),
    Fault(LAUNCH, '[*recorded.get("argv", []), *flags, "--run", str(run)]', '[*flags, *recorded.get("argv", []), "--run", str(run)]', launching("resume_goes_on_with_the_options_it_had")),
    Fault(LAUNCH, 'recorded.get("job") or job_of(run), recorded.get("after", "")', 'recorded.get("job") or job_of(run), ""', launching("resume_keeps_what_the_run_waits_for")),
    Fault(LAUNCH, "return max(launch(plan, options, partitions) for plan in plans)", "return min(launch(plan, options, partitions) for plan in plans)", launching("a_sweep_on_this_machine_reports_its_worst_end")),
    Fault(LAUNCH, "        terminal.error(str(error.args[0] if error.args else error))\n        sys.exit(USAGE)", "        terminal.error(str(error.args[0] if error.args else error))\n        sys.exit(BAD)", launching("exit_codes")),
    Fault(LAUNCH, "        terminal.error(str(error))\n        sys.exit(BAD)", "        terminal.error(str(error))\n        sys.exit(1)", launching("exit_codes")),
    Fault(LAUNCH, 'print("\\n".join(text.rstrip("\\n").splitlines()[-max(options.lines, 1) :])', 'print("\\n".join(text.rstrip("\\n").splitlines()[: max(options.lines, 1)])', launching("logs")),
    # --- the shell of a job -----------------------------------------------------------------------------------------------
    Fault(ENV, "trap : TERM USR1 USR2", "trap : USR1 USR2", scripts("a_signal_to_the_batch_shell_does_not_end_it_before_its_tasks")),
    Fault(ENV, '-m jobs.requeue "$RUN" --code "$code"', '-m jobs.requeue "$RUN" --code 0', scripts("the_code_of_the_tasks_is_handed_over")),
    Fault(ENV, "    local code=$?\n    trap '' TERM USR1 USR2 HUP INT\n", "    trap '' TERM USR1 USR2 HUP INT\n    local code=$?\n", scripts("the_code_of_the_tasks_is_handed_over")),
    Fault(ENV, "    trap '' TERM USR1 USR2 HUP INT\n", "", scripts("the_hand_over_is_deaf")),
    Fault(ENV, "    srun --kill-on-bad-exit=1", "    exec srun --kill-on-bad-exit=1", scripts("the_code_of_the_tasks_is_handed_over")),
    Fault(ENV, '    begin --job "$name" -- "$@"\n    trap hand_over EXIT\n', '    trap hand_over EXIT\n    begin --job "$name" -- "$@"\n', scripts("nothing_to_do_leaves_with_0")),
    Fault(ENV, '    trap hand_over EXIT\n    begin "$RUN"\n', '    begin "$RUN"\n    trap hand_over EXIT\n', scripts("a_refused_start_is_the_jobs_code", "nothing_to_do_leaves_with_0")),
    Fault(ENV, '[ ! -L "$cache" ] && ', "", scripts("compiled_code_is_kept_in_a_folder_of_ones_own_alone")),
    Fault(VENV, 'stamp=$(cat "$@" | cksum', 'stamp=$(echo "$@" | cksum', scripts("a_venv_is_made_once_and_filled_again_when_the_requirements_change")),
    Fault("jobs/vae.sh", "train vae", "train diffusion", scripts("an_sbatch_script_begins_its_own_job")),
    Fault("jobs/diffusion.sh", "unset RUN\n", "", scripts("an_sbatch_script_begins_its_own_job")),
    Fault("jobs/stylegan2.sh", "#SBATCH --signal=USR2@180", "#SBATCH --signal=B:USR2@180", scripts("the_headers_are_what_the_profile_says")),
]  # fmt: skip
