"""The files in configs/launch: they parse, torchrun knows its options in them, and our command line its own."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from tiny_transformer.config.load import load_run_config

SCRIPTS = ("one_node.sh", "slurm.sbatch", "skypilot.yaml")
VALUES = {"PROCESSES": "8", "SLURM_NNODES": "2", "SLURM_JOB_ID": "77", "HEAD_NODE": "node1", "SKYPILOT_NUM_NODES": "2"}
VALUES |= {"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_GPUS_PER_NODE": "8"}


def shell_of(path: Path) -> str:
    """The shell script in a launch file."""
    text = path.read_text(encoding="utf-8")
    return yaml.safe_load(text)["run"] if path.suffix == ".yaml" else text


def command_of(path: Path) -> list[str]:
    """What follows `torchrun`, with the file's own settings in the place of its variables."""
    text = path.read_text(encoding="utf-8")
    settings = {**VALUES, **dict(re.findall(r"^ *(CONFIG|OUT_DIR)[=:] *(\S+)", text, re.MULTILINE))}
    joined = shell_of(path).replace("\\\n", " ")
    line = next(line for line in joined.splitlines() if "torchrun" in line and not line.startswith("#"))
    line = re.sub(r'"\$\(echo [^)]*\)"', "10.0.0.1", line)  # the first of a list of addresses
    line = re.sub(r'"\$@"|"\$\{RESUME\[@\]\}"|\$RESUME', "", line)
    line = re.sub(r"\$(\w+)", lambda match: settings[match[1]], line)
    assert "$" not in line, line
    return shlex.split(line.partition("torchrun")[2])


def test_every_launch_file_is_tested(repository: Path) -> None:
    assert sorted(path.name for path in (repository / "configs/launch").iterdir()) == sorted(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_launch_file_parses_down_to_our_own_options(
    repository: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = repository / "configs/launch" / name
    checked = subprocess.run(["bash", "-n"], input=shell_of(path), text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
    torchrun = get_args_parser().parse_args(command_of(path))
    assert (torchrun.module, torchrun.training_script) == (True, "tiny_transformer")
    verb, *options = torchrun.training_script_args
    assert verb == "train"
    named = dict(zip(options[::2], options[1::2], strict=True))
    assert set(named) == {"--config", "--out_dir", "--grad_accum_steps", "--parallelism"}
    monkeypatch.chdir(repository)
    overrides = [f"{key.removeprefix('--')}={value}" for key, value in named.items() if key != "--config"]
    config = load_run_config(named["--config"], overrides)
    assert config.training.parallelism == named["--parallelism"]
    batch = config.training.micro_batch_size * config.training.grad_accum_steps
    num_processes = 8 * int(torchrun.nnodes.partition(":")[0])
    assert batch % num_processes == 0, f"{num_processes} processes cannot share it"


def test_a_stopped_run_is_continued_by_the_next_start(repository: Path) -> None:
    for name in ("slurm.sbatch", "skypilot.yaml"):
        script = shell_of(repository / "configs/launch" / name)
        condition = next(line for line in script.splitlines() if "--resume" in line)
        assert re.search(r'-f "\$OUT_DIR/config\.yaml"', condition)
    for line in (repository / "configs/launch/slurm.sbatch").read_text().splitlines():
        assert not line.startswith("#SBATCH") or re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", line), line
    sky = yaml.safe_load((repository / "configs/launch/skypilot.yaml").read_text())
    assert sky["envs"]["OUT_DIR"].startswith(next(iter(sky["file_mounts"]))), "the run must outlive its machines"


def test_rented_machines_prepare_their_data_before_their_processes_start(repository: Path) -> None:
    """Each machine once, where the config looks for it, with what reading from the hub needs; data/ is not uploaded."""
    sky = yaml.safe_load((repository / "configs/launch/skypilot.yaml").read_text())
    assert "'.[hub]'" in sky["setup"]
    lines = sky["run"].splitlines()
    (number,) = (i for i, line in enumerate(lines) if "-m tiny_transformer prepare" in line)
    assert number < next(i for i, line in enumerate(lines) if "torchrun" in line)
    words = shlex.split(lines[number].partition(" prepare ")[2])
    named = {key.removeprefix("--"): value for key, value in zip(words[::2], words[1::2], strict=True)}
    data = load_run_config(str(repository / sky["envs"]["CONFIG"])).data
    assert (named.pop("out_dir"), named.pop("seq_len")) == (str(data.data_dir), str(data.seq_len))
    assert named == {"source": "tinystories", "max_bytes": "50000000", "vocab_size": "4096"}
