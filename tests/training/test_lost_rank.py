"""Row D27 of the reliability table: a process that is lost ends the others, by name, within a minute.

Five kinds of loss on each of two processes, of the real command, with three seconds in the place of twenty. Who lives
must answer within these seconds, which takes a machine that lets it: so this runs alone (`clock`). The world is that of
`torchrun`, without its habit of ending all processes when one dies: the others must find out themselves.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from run_helpers import TINY
from worlds import Worlds

from tiny_transformer.errors import ExitCode

REPETITIONS = int(os.environ.get("LOST_RANKS", "1"))  # 20 for a full run
ENDED_BY_ITSELF = {"kill": -9, "SEGV": -11}


@pytest.mark.clock
@pytest.mark.timeout(1800 * REPETITIONS)
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("fault", ["kill", "SEGV", "SIGSTOP", "hang", "closed socket"])
def test_a_lost_process_ends_the_others_by_name(
    worlds: Worlds, tiny_data: Path, tmp_path: Path, fault: str, rank: int
) -> None:
    training = {"micro_batch_size": 2, "grad_accum_steps": 2, "steps": 100_000, "save_steps": None, "eval_steps": None}
    tree = {
        **TINY,
        "data": {**TINY["data"], "data_dir": str(tiny_data)},
        "training": {**TINY["training"], **training, "lost_rank_seconds": 3},
    }
    (tmp_path / "lost.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    for repetition in range(REPETITIONS):
        arguments = ["train", "--config", str(tmp_path / "lost.yaml"), "--out_dir", str(tmp_path / f"run-{repetition}")]
        arguments = {"arguments": arguments, "fault": fault, "at_step": 20, "rank": rank}
        ended = worlds.run(2, "command", timeout=600.0, after=1.0 if fault == "SIGSTOP" else 60.0, **arguments)
        said = f"{ended.codes} after {ended.seconds}: {ended.output}"
        assert ended.codes[1 - rank] == ExitCode.IO, said
        named = [line for line in ended.output.splitlines() if line.startswith("error: ")]
        assert named and all(line.startswith(f"error: rank {rank} ") for line in named), said
        assert len(named) == 1 or fault == "closed socket", said  # cut off, it cannot know that the others know
        if fault in ENDED_BY_ITSELF:
            assert ended.codes[rank] == ENDED_BY_ITSELF[fault], said
        elif fault != "SIGSTOP":
            assert ended.codes[rank] == ExitCode.IO, said
