"""docs/TROUBLESHOOTING.md: every message is provoked by the product itself, and every cure works after it.

The page is the table of what is typed and shown; the table here says how the fault is planted. Where it cannot be had
on any machine, it is simulated at the narrowest boundary: a fault marked `simulated`.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import random
import shutil
import signal
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from trouble import PAGE, Entry, Place, in_a_process, read_entries, shows

CONFIG = {
    "model": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
              "intermediate_size": 64, "max_position_embeddings": 128},
    "data": {"data_dir": "data", "seq_len": 32},
    "training": {"steps": 4, "save_steps": 2, "micro_batch_size": 4, "sample_prompts": []},
    "out_dir": "runs/demo",
}  # fmt: skip
ANIMALS, PLACES = ("hen", "fox", "duck", "goat", "mouse", "owl"), ("hill", "pond", "barn", "road", "field")
TEXT = "\n<|endoftext|>\n".join(
    f"The {ANIMALS[i % 6]} number {i} ran to the {PLACES[i * i % 5]}. There it met a {ANIMALS[i * 7 % 5]} and they sat."
    for i in range(120)
)


def nothing(place: Place) -> None:
    """The fault is in the command, or is put right by it."""


def typed(place: Place, entry: Entry) -> tuple[int, str]:
    return place.type(entry.command)


@dataclass(frozen=True)
class Case:
    """How a trouble is had.

    Attributes:
        fault: plants it in the place.
        mend: what the cure asks for besides its commands.
        says: what the last command of the cure must show, and after a dash what it must not.
        provoke: types the command, where it is not just typed here.
        keeps: the fault stays while the cure is tried.
        fails: whether the command ends with a code other than 0, where it shows no `error:`.
        slow: takes more than a second or so.
    """

    fault: Callable[[Place], Any] = nothing
    mend: Callable[[Place], Any] = nothing
    says: str = ""
    hides: str = ""
    provoke: Callable[[Place, Entry], tuple[int, str]] = typed
    keeps: bool = False
    fails: bool = False
    slow: bool = False


def write(name: str, content: str | bytes) -> Callable[[Place], Any]:
    def fault(place: Place) -> None:
        path = place.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return fault


def rows(*keys: str) -> str:
    return "".join(json.dumps({key: f"{key} {i} is {i * i}" for key in keys}) + "\n" for i in range(40))


def first(*lines: str) -> Callable[[Place], Any]:
    return lambda place: [place.must(line) for line in lines]


def both(*faults: Callable[[Place], Any]) -> Callable[[Place], Any]:
    return lambda place: [fault(place) for fault in faults]


def without(package: str) -> Callable[[Place], Any]:
    """Simulated: the package cannot be imported."""
    return lambda place: place.patch.setitem(sys.modules, package, None)


# --- faults that take more than a line


def no_program(place: Place, entry: Entry) -> tuple[int, str]:
    return in_a_process([shutil.which("bash") or "bash", "-c", entry.command], PATH="/nonexistent")


def no_packages(place: Place, entry: Entry) -> tuple[int, str]:
    """Another Python: one that has not the environment's packages."""
    return in_a_process([sys.executable, "-S", *entry.command.split()[1:]])


def no_torch(place: Place, entry: Entry) -> tuple[int, str]:
    words = entry.command.split()[1:]
    code = f"import sys; sys.modules['torch'] = None; from tiny_transformer.cli import main; main({words})"
    return in_a_process([sys.executable, "-c", code])


def too_old(place: Place, entry: Entry) -> tuple[int, str]:
    """Simulated: no older Python is here. The sentence is pip's, its range that of pyproject.toml."""
    project = tomllib.loads((PAGE.parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version, needed = "3.10.12", project["requires-python"]
    assert not SpecifierSet(needed).contains(version) and SpecifierSet(needed).contains("3.11.0")
    return 1, f"ERROR: Package '{project['name']}' requires a different Python: {version} not in '{needed}'"


def no_network(place: Place) -> None:
    """Simulated: nothing on the hub is reached, and nothing was fetched."""
    place.patch.setenv("HF_HUB_OFFLINE", "1")
    place.patch.setenv("XDG_CACHE_HOME", str(place.path))
    place.patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place.path / "hub"))


def parquet(place: Place) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": [f"It is {i}. " * 9 for i in range(40)]}), place.path / "rows.parquet")
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        place.patch.setitem(sys.modules, name, None)


def token_files(place: Place) -> None:
    for name in ("train.bin", "val.bin"):
        write(f"nanogpt/{name}", b"\1\0\2\0" * 900)(place)


def no_numba(place: Place) -> None:
    """Simulated: numba is not installed."""
    place.patch.setattr("tiny_transformer.generation.engines.find_spec", lambda name: None)


def no_bf16(place: Place) -> None:
    """Simulated: a processor without bf16 instructions."""
    place.patch.setattr("tiny_transformer.hardware.has_fast_bf16", lambda device: False)


def no_gpu(place: Place) -> None:
    """Simulated where there is one: PyTorch finds neither a CUDA GPU nor an Apple one."""
    for backend in ("torch.cuda", "torch.backends.mps"):
        place.patch.setattr(f"{backend}.is_available", lambda: False)


def no_compiler(place: Place) -> None:
    import torch._inductor.config as inductor

    place.patch.setattr(inductor.cpp, "cxx", (None, "/nonexistent"))
    place.patch.setattr(inductor, "force_disable_caches", True)


def full_gpu(place: Place) -> None:
    """Simulated: the error of PyTorch's CUDA allocator, raised where the gradient of more than two rows is computed."""
    import torch

    from tiny_transformer.training import loop

    real = loop.find_gradient

    def find_gradient(job: Any, state: Any, micro_batches: Any) -> Any:
        if job.config.micro_batch_size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity")
        return real(job, state, micro_batches)

    place.patch.setattr(loop, "find_gradient", find_gradient)


def small_disk(place: Place) -> None:
    place.patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))


def filling_disk(place: Place) -> None:
    """Simulated: the operating system refuses two writes after the first save, as it does on a full disk."""
    from tiny_transformer.storage.fs import Fs
    from tiny_transformer.training import patience

    real, refusals = Fs.write, [1, 1]

    def write_or_refuse(self: Any, fd: int, data: bytes) -> int:
        if refusals and (place.path / "runs/new/step-00000002").exists():
            refusals.pop()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, fd, data)

    place.patch.setattr(Fs, "write", write_or_refuse)
    place.patch.setattr(patience, "WAIT_SECONDS", 0.0)


def made_up_clock(place: Place, *, late: float, save: float) -> None:
    """Simulated: a clock on which a step takes a tenth of a second, after the thirtieth so much, and a save so much."""
    from tiny_transformer.storage import RunDirectory
    from tiny_transformer.training import loop

    now, compute, publish = [0.0], loop.find_gradient, RunDirectory.publish_step

    def find_gradient(job: Any, state: Any, micro_batches: Any) -> Any:
        now[0] += 0.1 if state.step < 30 else late
        return compute(job, state, micro_batches)

    def publish_step(directory: Any, step: int) -> Any:
        now[0] += save
        return publish(directory, step)

    place.patch.setattr(loop, "find_gradient", find_gradient)
    place.patch.setattr(RunDirectory, "publish_step", publish_step)
    place.patch.setattr(time, "monotonic", lambda: now[0])


def one_thread(place: Place) -> None:
    import torch

    torch.set_num_threads(1)


def other_owner(place: Place) -> None:
    from tiny_transformer.storage.lock import RunLock

    place.lock = RunLock(place.path / "runs/demo").__enter__()


def signalled(number: signal.Signals) -> Callable[[Place], Any]:
    def fault(place: Place) -> None:
        # The tests themselves may run under nohup, or in the background of a shell, which have both ignored.
        signal.signal(number, signal.SIG_DFL if number is signal.SIGHUP else signal.default_int_handler)
        place.at_step(4, lambda: os.kill(os.getpid(), number))

    return fault


def killed(place: Place, entry: Entry) -> tuple[int, str]:
    """By itself, at the fifth step, so that it does not matter how fast the machine is."""
    code = (
        "import os, sys\nfrom tiny_transformer.training import loop\nfrom tiny_transformer.cli import main\n"
        "real = loop.find_gradient\n"
        "def dying(job, state, rows): return os.kill(os.getpid(), 9) if state.step == 5 else real(job, state, rows)\n"
        "loop.find_gradient = dying\nmain(sys.argv[1:])"
    )
    write("dies.py", code)(place)
    command = entry.command.replace("tiny-transformer", f"{sys.executable} dies.py", 1)
    return in_a_process(["bash", "-c", f"{command}; exit $?"])


def changed_byte(name: str) -> Callable[[Place], Any]:
    def fault(place: Place) -> None:
        raw = (place.path / name).read_bytes()
        (place.path / name).write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))

    return fault


def cut(name: str) -> Callable[[Place], Any]:
    return lambda place: write(name, (place.path / name).read_bytes()[:-100])(place)


LETTERS = first(
    "tiny-transformer prepare --source my.txt --tokenizer char --seq_len 32 --out_dir letters_data",
    "tiny-transformer train --config config.yaml --data_dir letters_data --out_dir runs/letters --steps 1",
)
ADAPTERS = first(
    "tiny-transformer finetune --init_from demo --source answers.jsonl --lora --steps 1 --out_dir runs/adapters"
)
POSTS = write("posts.jsonl", rows("body", "title"))
GGUF = first("tiny-transformer export demo --gguf f32 --out whole.gguf")
THEIRS = lambda place: shutil.copytree(place.path / "runs/demo/best", place.path / "theirs")  # noqa: E731
CHANCE = random.Random(0)
NOISE = both(  # letters that come by chance: there is nothing to learn, but all to learn by heart
    write(
        "my.txt",
        "\n".join(" ".join("".join(CHANCE.choices("abcdefghijklmnop", k=5)) for _ in range(20)) for _ in range(30)),
    ),
    first(
        "tiny-transformer prepare --source my.txt --tokenizer byte --val_fraction 0.2 --seq_len 32 "
        "--out_dir data --overwrite"
    ),
)
GONE = lambda place: shutil.rmtree(place.path / "runs")  # noqa: E731

CASES: dict[str, Case] = {
    # installing and starting
    "The command is not found": Case(provoke=no_program, fails=True, says="demo"),
    "No module named typer": Case(provoke=no_packages, fails=True, says="demo"),
    "A package is not installed for this Python": Case(provoke=no_torch, says="The hen"),
    "Python is too old": Case(provoke=too_old, fails=True),
    "The hub needs a package": Case(without("datasets"), says="my.txt in mine"),
    "Parquet files need a package": Case(parquet, says="rows.parquet in rows"),
    "A token on the command line": Case(says="The hen"),
    # text and data
    "There is no such file": Case(says="my.txt in mine"),
    "A folder of PDFs": Case(write("papers/one.pdf", b"%PDF-1.4\n"), write("papers/one.txt", TEXT), says="papers in d"),
    "A Word file": Case(write("book.docx", b"PK\3\4" + bytes(99)), write("book.txt", TEXT), says="book.txt in d"),
    "Text that is not UTF-8": Case(write("old.txt", (TEXT + " café ").encode("latin1")), says="new.txt in d"),
    "UTF-16 from a Windows program": Case(write("windows.txt", TEXT.encode("utf-16")), says="new.txt in d"),
    "A download that was cut short": Case(write("cut.txt.gz", gzip.compress(TEXT.encode())[:500]),
                                          write("cut.txt.gz", gzip.compress(TEXT.encode())), says="cut.txt.gz in d"),
    "The model writes braces and quotation marks": Case(write("rows.txt", rows("text") * 9), says="rows.jsonl in rows"),
    "A broken line of JSON": Case(write("broken.jsonl", rows("text").replace("1}", "1", 1).replace('"}\n', '"\n', 2)
                                        .replace('"\n', '"}\n', 1)), says="broken.jsonl in d"),
    "No text in the field": Case(POSTS, says="posts.jsonl in d"),
    "One document only": Case(write("word.txt", "Hen.\n"), says="my.txt in d"),
    "Fewer tokens than one sequence": Case(write("poem.txt", "<|endoftext|>\n".join(f"A hen, {i}.\n" for i in range(9))
                                                 ), says="poem.txt in d"),
    "The data directory holds something else": Case(POSTS, says="posts.jsonl in posts"),
    "Training would read another text than the one you named": Case(POSTS, says="runs/new"),
    "Token files of another program": Case(token_files),
    "Prepared data is damaged": Case(cut("data/train.bin"), says="runs/new"),
    "Without a network: a data set": Case(no_network, says="stories in stories"),
    "Without a network: a tokenizer": Case(no_network, says="my.txt in d"),
    "An address is not fetched": Case(mend=write("a.txt", TEXT), says="a.txt in d"),
    # settings
    "No GPU is found": Case(no_gpu, says="device  "),
    "No Apple GPU is found": Case(no_gpu, says="device  "),
    "bf16 was asked for and is not used": Case(no_bf16, says="fp32"),
    "Compiling fails": Case(no_compiler, keeps=True, slow=True, says="runs/plain"),
    # memory, disk, time
    "CUDA out of memory": Case(full_gpu, keeps=True, says="runs/new/report.html"),
    "The disk has no room for the run": Case(small_disk, says="runs/new"),
    "The disk fills up while it trains": Case(filling_disk, says="everything is whole"),
    "Saving takes most of the time": Case(lambda place: made_up_clock(place, late=0.1, save=2.0), keeps=True,
                                          hides="of the time"),
    "Training is slow: one thread": Case(one_thread, slow=True, says="cpu (2 threads)"),
    "Training slowed down": Case(lambda place: made_up_clock(place, late=1.0, save=0.1), hides="a second; before"),
    # stopping and resuming
    "The directory is in use": Case(other_owner, lambda place: place.lock.__exit__(None, None, None), says="runs/new"),
    "Ctrl+C does not stop it at once": Case(signalled(signal.SIGINT), fails=True, says="resuming from step 5"),
    "It stops when the terminal closes": Case(signalled(signal.SIGHUP), lambda place: signalled(signal.SIGHUP)(place),
                                              keeps=True, fails=True, says="6 steps"),
    "It was killed": Case(provoke=killed, fails=True, slow=True, says="resuming from step 4"),
    "There is nothing to resume": Case(says="resuming from step 4"),
    "Resume is refused: the data is gone": Case(lambda place: (place.path / "data").rename("moved"),
                                                says="resuming from step 4"),
    "Resume is refused: the data has changed": Case(both(write("other.txt", TEXT.replace("hen", "cat")), first(
        "tiny-transformer prepare --source other.txt --tokenizer byte --seq_len 32 --out_dir data --overwrite")),
        says="starting from runs/demo/"),
    "The newest checkpoint is damaged": Case(changed_byte("runs/demo/step-00000004/model.safetensors"),
                                             says="everything is whole"),
    "A half-written checkpoint": Case(lambda place: (place.path / "runs/demo/step-00000004/manifest.json").unlink(),
                                      says="The hen"),
    # learning
    "Not a number (NaN)": Case(hides="Not a number"),
    "The loss jumps, or ends higher than it began": Case(slow=True, hides="learning rate is too high"),
    "The loss does not fall": Case(slow=True, hides="learning rate is too low"),
    "Validation gets worse while training gets better": Case(NOISE, slow=True, says="best at step", hides="200 steps,"),
    "The same text again and again": Case(slow=True, hides="data was seen"),
    "Each update is mostly chance": Case(slow=True, hides="batch is too small"),
    "Every gradient is clipped": Case(slow=True, hides="was clipped in"),
    "The validation loss says little": Case(write("more.txt", TEXT * 30), hides="142 tokens"),
    # writing
    "There is no checkpoint": Case(GONE, says="The hen"),
    "Poor text": Case(slow=True, says="The hen"),
    "An answer never ends": Case(says="finish_reason"),
    "A character that the model does not know": Case(LETTERS, says="hole"),
    "The tokenizer is another one": Case(LETTERS, says="hen"),
    "The quick engine cannot be had": Case(no_numba, says="The hen", hides="numba is not"),
    "A quantized model is slow": Case(no_numba, says="The hen", hides="numba is not"),
    "Drafting does not pay": Case(says="speculation: "),
    # fine-tuning
    "Records of an unknown form": Case(POSTS, says="runs/answers"),
    "Adapters for another model": Case(both(ADAPTERS, first(
        "tiny-transformer train --config config.yaml --hidden_size 64 --steps 1 --out_dir runs/wide")), says="The hen"),
    "There is nothing to merge": Case(ADAPTERS),
    "A classifier cannot write": Case(write("labels.jsonl", "".join(
        json.dumps({"text": f"so {word} {i}", "label": word}) + "\n" for i in range(20) for word in ("dull", "fine")))),
    # other programs
    "A pickled checkpoint": Case(both(write("old.pt", b"\x80\x02}q\x00." + bytes(50)), THEIRS)),
    "A family that is not computed here": Case(both(write("falcon/config.json", '{"model_type": "falcon"}'),
                                                    write("falcon/model.safetensors", b""), THEIRS)),
    "A GGUF file is refused": Case(both(write("cut.gguf", b"GGUF\3\0\0\0" + bytes(8)), GGUF)),
    "The exported file is there already": Case(GGUF, says="wrote whole.gguf"),
}  # fmt: skip

ENTRIES = read_entries(PAGE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, prepared; a config; a run of it; questions and answers."""
    from tiny_transformer.cli import run

    root = tmp_path_factory.mktemp("trouble")
    answers = [{"instruction": f"Count to {i}.", "output": f"It is {i}."} for i in range(30)]
    (root / "my.txt").write_text(TEXT)
    (root / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (root / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for command in ("prepare --source my.txt --tokenizer byte --seq_len 32 --out_dir data", "train config.yaml"):
            assert run(command.split()) == 0
    return root


@pytest.fixture
def place(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Place]:
    import torch

    shutil.copytree(made, tmp_path / "place", symlinks=True)
    monkeypatch.chdir(tmp_path / "place")
    monkeypatch.setenv("COLUMNS", "200")
    before = torch.get_num_threads()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT)}
    with pytest.MonkeyPatch.context() as patch:
        yield Place(tmp_path / "place", patch, capsys)
    torch.set_num_threads(before)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def marked(entry: Entry) -> Any:
    """Slow are those that train, be it four steps."""
    trains = any(verb in line for verb in (" train ", " finetune ") for line in entry.cure)
    is_slow = trains or CASES.get(entry.title, Case()).slow
    return pytest.param(entry, id=entry.title, marks=[pytest.mark.slow] * is_slow)


@pytest.mark.parametrize("entry", [marked(entry) for entry in ENTRIES])
def test_the_message_is_provoked_and_the_cure_works(entry: Entry, place: Place) -> None:
    case = CASES.get(entry.title, Case())
    case.fault(place)
    code, output = case.provoke(place, entry)
    assert shows(output, entry.shown), output
    assert (code != 0) == (case.fails or "error:" in entry.shown), output
    if not case.keeps:
        place.patch.undo()
    case.mend(place)
    output = ""
    for line in entry.cure:
        output = place.must(line) or output
    assert case.says in output, output
    assert not case.hides or case.hides not in output, output


def test_the_page_has_enough_entries_and_the_table_no_others() -> None:
    titles = [entry.title for entry in ENTRIES]
    assert len(titles) >= 40 and len(set(titles)) == len(titles)
    assert CASES.keys() <= set(titles), CASES.keys() - set(titles)
