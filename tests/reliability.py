"""The table of promises in docs/RELIABILITY.md: what is promised, the tests that show it, and what they last said.

    RELIABILITY_FIGURES=docs/reliability.json python -m pytest -m "slow or not slow"     # notes what the tests say
    python tests/reliability.py                                                          # writes the page again

A test adds a figure of its own with `record_property("figure", "2,000 kills, 0 lost")`. A row whose tests were not run
is shown as "not shown".
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE, FIGURES = REPOSITORY / "docs/RELIABILITY.md", REPOSITORY / "docs/reliability.json"
HEAD = """# What is promised, and the test that shows it

Written by `python tests/reliability.py`; a test compares this page with it. *Last figure* is what the tests said when
they were last run with `RELIABILITY_FIGURES` set: cases that passed, of those that were run, and figures of their own.
A row whose tests have not been run is "not shown". SECURITY.md says whom these promises guard against.

| row | promise | tests | last figure |
| --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Row:
    """One promise and its tests, as `file::function`."""

    name: str
    promise: str
    tests: tuple[str, ...]


def row(name: str, promise: str, *tests: str) -> Row:
    return Row(name, promise, tests)


STORAGE, TRAINING = "tests/storage/test_", "tests/training/test_"
ROWS = (
    row(
        "D1",
        "kill -9 at any instant of a save loses nothing that was announced",
        f"{STORAGE}random_kills.py::test_kill_at_random_instants_loses_nothing_announced",
        f"{STORAGE}planted_bugs.py::test_planted_mistake_is_found",
    ),
    row(
        "D2",
        "kill -9 of the trainer anywhere: resumed, it ends like an undisturbed run, byte for byte",
        f"{TRAINING}killed.py::test_killed_anywhere_a_run_ends_like_an_undisturbed_one",
    ),
    row("D3", "kill at every system call of a save", f"{STORAGE}syscalls.py::test_kill_at_every_call"),
    row(
        "D4",
        "power loss: every save that was announced is there, whole",
        f"{STORAGE}faulty_fs.py::test_power_cut_after_every_operation_keeps_what_was_acknowledged",
        f"{STORAGE}faulty_fs.py::test_each_fsync_is_needed",
    ),
    row(
        "D5",
        "a full disk pauses a run; when there is room again it ends as if nothing had been; Ctrl+C stops it cleanly",
        f"{TRAINING}full_disk.py::test_a_disk_that_is_full_at_any_write_only_delays_a_run",
        f"{TRAINING}full_disk.py::test_asked_to_stop_while_it_waits_a_run_ends_cleanly_and_is_resumed",
        f"{TRAINING}full_disk.py::test_a_real_disk_that_fills_up_and_is_emptied",
        f"{STORAGE}syscalls.py::test_disk_full_from_every_call_on",
    ),
    row(
        "D6",
        "a run that does not fit is refused before its first step, and `--overwrite` then gives the old run back",
        f"{TRAINING}preflight.py::test_a_checkpoint_is_as_large_as_was_said",
        f"{TRAINING}preflight.py::test_a_disk_that_is_too_full_is_told_before_the_first_step",
        f"{TRAINING}one_owner.py::test_overwrite_that_ends_before_its_first_save_gives_the_old_run_back",
        f"{TRAINING}one_owner.py::test_killed_at_any_rename_of_overwrite_the_old_run_is_found_again",
    ),
    row(
        "D7",
        "any error of the disk at any call of a save: three lines and exit 74, no false `saved`",
        f"{STORAGE}syscalls.py::test_error_once_at_every_call",
        f"{STORAGE}syscalls.py::test_other_errors_where_they_occur",
        f"{TRAINING}damaged_state.py::test_a_disk_that_refuses_tensors_is_told_in_three_lines",
    ),
    row(
        "D8",
        "an fsync that failed is never tried again into a claim",
        f"{STORAGE}syscalls.py::test_failed_fsync_is_never_a_save",
        f"{STORAGE}faulty_fs.py::test_failed_fsync_starts_the_next_save_in_a_new_directory",
    ),
    row(
        "D9",
        "a write that reports success and writes nothing is noticed, at every write of a checkpoint and of the log",
        f"{TRAINING}damaged_state.py::test_every_lost_write_of_a_real_checkpoint_is_noticed",
        f"{TRAINING}damaged_state.py::test_a_lost_log_line_is_noticed_at_the_next_save",
        f"{STORAGE}syscalls.py::test_lost_write_is_noticed",
    ),
    row(
        "D10",
        "a directory, lock or log that was removed, renamed or replaced meanwhile is not written to",
        f"{TRAINING}one_owner.py::test_a_directory_that_is_not_the_same_any_more_is_not_written_to",
    ),
    row(
        "D11",
        "a file cut at any length is noticed, and the older checkpoint taken",
        f"{STORAGE}damage.py::test_every_truncation_is_noticed_and_the_older_checkpoint_taken",
    ),
    row(
        "D12",
        "a flipped bit is noticed: checkpoints, manifest, plan, log",
        f"{STORAGE}damage.py::test_every_flipped_bit_is_noticed",
        f"{TRAINING}damaged_state.py::test_every_flipped_bit_of_a_plan_is_refused_or_changes_nothing",
        f"{TRAINING}damaged_state.py::test_a_log_that_is_not_as_it_was_is_said",
    ),
    row(
        "D13",
        "who loads a model verifies what it reads and nothing else",
        f"{STORAGE}run_directory.py::test_only_what_is_read_is_verified",
    ),
    row(
        "D14",
        "after the first save there is a whole checkpoint at every moment",
        f"{STORAGE}random_kills.py::test_kill_at_random_instants_loses_nothing_announced",
    ),
    row(
        "D15",
        "of many starts in one directory one runs, whoever came or went meanwhile; a dead owner's lock is taken over",
        f"{STORAGE}run_lock.py::test_of_ten_simultaneous_starts_exactly_one_runs",
        f"{STORAGE}run_lock.py::test_lock_of_a_killed_owner_is_taken_over_at_once",
        f"{TRAINING}one_owner.py::test_a_run_that_came_and_went_while_another_prepared_is_left_alone",
    ),
    row(
        "D16",
        "asked to stop, a run saves within a step and leaves; a lost terminal or pipe, or nohup, costs nothing",
        f"{TRAINING}killed.py::test_asked_to_stop_a_run_saves_within_a_step_and_leaves",
        f"{TRAINING}steady_output.py::test_train_into_a_pipe_whose_reader_has_left",
        f"{TRAINING}steady_output.py::test_nohup_keeps_a_run_going",
    ),
    row(
        "D17",
        "a clock that jumps changes no weight and no order",
        f"{TRAINING}soak.py::test_a_clock_that_jumps_changes_nothing_but_its_own_readings",
    ),
    row(
        "D18",
        "too little memory ends in three lines, or with a C library's own message; no traceback, no half run",
        f"{TRAINING}soak.py::test_too_little_memory_is_told",
    ),
    row(
        "D20",
        "a resumed run ends with the same bits as one that was never stopped",
        f"{TRAINING}resume.py::test_a_stopped_run_ends_like_an_undisturbed_one",
        f"{TRAINING}chains.py::test_a_chain_of_stops_and_kills_ends_like_an_undisturbed_run",
        f"{TRAINING}state_fields.py::test_what_is_remembered_can_be_seen",
    ),
    row(
        "D23",
        "saved on N processes and loaded on M: the same bits",
        f"{TRAINING}shared_runs.py::test_weights_and_optimizer_are_the_same_bits_saved_on_n_and_loaded_on_m",
    ),
    row("D24", "a killed prepare goes on to the same bytes", "tests/data/test_prepare_killed.py"),
    row(
        "D26",
        "other settings, data or tokenizer on resume are refused, warned about or allowed as the schema says",
        f"{TRAINING}same_run.py::test_a_changed_key_does_on_resume_what_the_schema_says",
    ),
    row("D27", "a lost process is named, and the others end", f"{TRAINING}lost_rank.py"),
    row(
        "D28",
        "a run of an older version goes on as it would have then",
        f"{TRAINING}damaged_state.py::test_a_run_of_an_older_version_goes_on_as_it_would_have_then",
    ),
    row(
        "D30",
        "the log has every step once, in order; a torn last line is tolerated",
        f"{STORAGE}step_log.py::test_log_cut_at_every_byte_is_read_and_continued",
    ),
    row(
        "D31",
        "faults of all kinds, one after the other: the end is the same, and nothing is left over",
        f"{TRAINING}soak.py::test_soak",
    ),
    row(
        "D32",
        "a run moves: other directory, other name, other machine, any kind of copy, a disk without links",
        f"{TRAINING}moved_runs.py::test_a_copy_is_read_and_goes_on_however_it_was_made",
        f"{TRAINING}moved_runs.py::test_where_there_are_no_links_marks_are_text",
        f"{TRAINING}moved_runs.py::test_resumed_from_another_directory_a_run_finds_its_data_and_prepares_none",
    ),
    row(
        "F1",
        "any bytes as a file of a model, run or config: a message, at once, within bounds of memory",
        "tests/attacks/test_fuzz.py",
        "tests/config/test_hostile_configs.py::test_a_hostile_config_is_refused_at_once",
        f"{TRAINING}damaged_state.py::test_a_state_of_another_type_or_range_is_refused",
        f"{STORAGE}damage.py::test_nothing_in_a_run_is_waited_for_or_read_without_end",
    ),
    row("F2", "hostile safetensors, tokenizers and GGUF files are refused by name", "tests/attacks/test_attacks.py"),
    row(
        "F6",
        "a chat template from elsewhere is run only when asked to, within bounds; sixty hostile ones are refused",
        "tests/generation/test_chat.py::test_a_hostile_template_is_refused_and_harms_nothing",
        "tests/generation/test_chat.py::test_a_foreign_template_is_not_run_unasked",
    ),
    row("F7", "no pickle, no remote code, no validation by assert", "tests/attacks/test_no_foreign_code.py"),
    row(
        "P1",
        "secrets on the command line and private paths reach no file of a checkpoint and no message",
        f"{TRAINING}moved_runs.py::test_a_checkpoint_says_nothing_of_where_it_was_made",
        "tests/models/test_adapters.py::test_adapters_tell_no_more_of_the_disk_than_a_command_does",
        f"{TRAINING}moved_runs.py::test_a_value_that_looks_like_a_secret_is_not_echoed",
    ),
    row(
        "P4",
        "eight direct dependencies, every package pinned",
        "tests/test_repository.py::test_environments_agree",
        "tests/test_repository.py::test_few_dependencies_and_all_pinned",
    ),
    row(
        "P6",
        "files have the modes of the umask",
        f"{STORAGE}run_directory.py::test_modes_follow_the_umask_whoever_wrote_the_file",
    ),
    row("P7", "SECURITY.md names a row for each sentence", "tests/test_reliability.py::test_security_page"),
)


class Collector:
    """A pytest plugin: what the tests of the table say, into a JSON file, beside what earlier runs said."""

    def __init__(self, path: Path) -> None:
        self.path, self.found = path, {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call":
            return
        name = report.nodeid.partition("[")[0]
        told = self.found.setdefault(name, {"passed": 0, "run": 0, "figures": [], "date": time.strftime("%Y-%m-%d")})
        if report.outcome != "skipped":
            told["run"] += 1
            told["passed"] += report.outcome == "passed"
        told["figures"] += [value for key, value in report.user_properties if key == "figure"]

    def pytest_sessionfinish(self) -> None:
        named = {test for row in ROWS for test in row.tests}
        kept = json.loads(self.path.read_text()) if self.path.exists() else {}
        new = {name: told for name, told in self.found.items() if name in named or name.partition("::")[0] in named}
        merged = dict(sorted({**kept, **{name: told for name, told in new.items() if told["run"]}}.items()))
        self.path.write_text(json.dumps(merged, indent=1) + "\n")


def pytest_configure(config: Any) -> None:
    """Imported by tests/conftest.py."""
    if path := os.environ.get("RELIABILITY_FIGURES"):
        config.pluginmanager.register(Collector(REPOSITORY / path))


def figure_of(row: Row, figures: dict[str, Any]) -> str:
    """What the tests of a row last said."""
    said = []
    for test in row.tests:
        told = [value for name, value in figures.items() if name == test or name.partition("::")[0] == test]
        if not told:
            return "not shown" if len(row.tests) == 1 else f"not shown ({test.rpartition('::')[2]})"
        passed, run = sum(t["passed"] for t in told), sum(t["run"] for t in told)
        own = "; ".join(text for t in told for text in t["figures"][:3])
        said.append(f"{passed:,} of {run:,}{f' ({own})' if own else ''}, {max(t['date'] for t in told)}")
    return "; ".join(said)


def page(figures: dict[str, Any]) -> str:
    """The whole page."""
    lines = []
    for row in ROWS:
        tests = "<br>".join(f"`{test.removeprefix('tests/')}`" for test in row.tests)
        lines.append(f"| {row.name} | {row.promise} | {tests} | {figure_of(row, figures)} |\n")
    return HEAD + "".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(json.loads(FIGURES.read_text()) if FIGURES.exists() else {}), encoding="utf-8")
