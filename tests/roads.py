"""The two straight roads and the way to the loop, traced: every file of ours in which a function runs on the way.

`python tests/roads.py` writes the lists into docs/DESIGN.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import tiny_transformer

PACKAGE = Path(tiny_transformer.__file__).parent
NOT_CALLED = ("<module>", "<listcomp>")


class Arrived(BaseException):
    """Raised where a road ends; nothing on the way catches it."""


def files_on_the_way(walk: Callable[[], Any]) -> list[str]:
    """Files of the package, without folder and suffix of it, whose functions run while `walk` does; class bodies and
    what an import executes do not count."""
    found: list[str] = []

    def profile(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or code.co_name in NOT_CALLED or not code.co_filename.startswith(str(PACKAGE)):
            return
        is_class_body = not code.co_flags & 0x1 and code.co_name != "<module>"  # no fast locals
        name = Path(code.co_filename).relative_to(PACKAGE).as_posix()
        if not is_class_body and name not in found:
            found.append(name)

    with suppress(Arrived):
        walk()  # imports what it needs
    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        with suppress(Arrived):
            walk()
    finally:
        sys.setprofile(before)
    return found


def from_token_files_to_loss(data_dir: Path) -> list[str]:
    """Open prepared data, take a batch, build a Qwen3, compute the loss and its gradient."""
    from tiny_transformer.config.shapes import Qwen3Config
    from tiny_transformer.data.batches import Batches
    from tiny_transformer.data.meta import read_meta
    from tiny_transformer.data.token_file import TokenFile
    from tiny_transformer.models import build_model
    from tiny_transformer.training.losses import language_modelling_loss

    config = Qwen3Config(vocab_size=257, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)

    def walk() -> None:
        meta = read_meta(data_dir)
        tokens = TokenFile(data_dir / "train.bin", dtype=meta.dtype, vocab_size=meta.vocab_size, split=meta.train)
        batches = Batches(tokens, seq_len=32, global_batch_size=2, seed=0)
        loss_sum, _ = language_modelling_loss(build_model(config, seed=0), batches.batch(0))
        loss_sum.backward()

    return files_on_the_way(walk)


def from_checkpoint_to_text(checkpoint: Path) -> list[str]:
    """Open a checkpoint directory and continue a prompt."""
    from tiny_transformer.generation.sampling import SamplingConfig
    from tiny_transformer.generation.text import complete
    from tiny_transformer.models.open import OpenCheckpoint

    def walk() -> None:
        opened = OpenCheckpoint(checkpoint)
        settings = SamplingConfig(max_new_tokens=3, seed=1)
        complete(opened.model, opened.tokenizer, ["Once"], settings, opened.end_ids)

    return files_on_the_way(walk)


def from_command_line_to_loop(data_dir: Path, run_dir: Path) -> list[str]:
    """`tiny-transformer train --config FILE`, up to the first line of the training loop."""
    from tiny_transformer.cli import run
    from tiny_transformer.stages import run as engine

    words = ["--data_dir", str(data_dir), "--out_dir", str(run_dir), "--steps", "2", "--device", "cpu", "--overwrite"]
    shape = ["--model.hidden_size", "32", "--model.num_hidden_layers", "1", "--model.num_attention_heads", "2"]

    def arrive(*_: Any) -> str:
        raise Arrived

    line = ["train", *words, *shape, "--seq_len", "32"]
    kept, sys.argv = sys.argv, ["tiny-transformer", *line]  # a run keeps its command line
    inner, engine.train = engine.train, arrive
    try:
        return files_on_the_way(lambda: run(line))
    finally:
        engine.train, sys.argv = inner, kept


SENTENCES = {
    "token files to loss": "data/token_file → data/batches → models/qwen3/model → layers/attention → training/losses",
    "checkpoint to text": "models/open → models/qwen3/model → layers/cache → generation/decoder → generation/rows → "
    "generation/sampling",
    "command line to the loop": "cli/training → stages/command → stages/launch → stages/pretrain → stages/run → "
    "training/loop",
}


def trace(directory: Path) -> dict[str, list[str]]:
    """Each road and the files on it, walked with small things that are made in `directory`."""
    from tiny_transformer.cli import run

    data, run_dir = directory / "data", directory / "run"
    words = ["--max_bytes", "60000", "--tokenizer", "byte", "--val_fraction", "0.05", "--seq_len", "32"]
    run(["prepare", "--source", "stories", *words, "--out_dir", str(data)])
    shape = ["--model.hidden_size", "32", "--model.num_hidden_layers", "1", "--model.num_attention_heads", "2"]
    where = ["--data_dir", str(data), "--out_dir", str(run_dir), "--seq_len", "32", "--device", "cpu"]
    run(["train", *where, *shape, "--steps", "2"])
    return {
        "token files to loss": from_token_files_to_loss(data),
        "checkpoint to text": from_checkpoint_to_text(run_dir / "step-00000002"),
        "command line to the loop": from_command_line_to_loop(data, directory / "other"),
    }


def in_words(roads: dict[str, list[str]]) -> str:
    """The lists as docs/DESIGN.md has them."""
    return "\n".join(
        f"- *{name[0].upper()}{name[1:]}.* The sentence: {SENTENCES[name].replace(' → ', '` → `').join('``')}. "
        f"The whole way, {len(files)} files: {', '.join(sorted(files))}."
        for name, files in roads.items()
    )


def written(design: str) -> str:
    """What docs/DESIGN.md says of the roads."""
    return design.partition("<!-- roads -->\n")[2].partition("\n<!-- /roads -->")[0]


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        lists = in_words(trace(Path(scratch)))
    page = PACKAGE.parent / "docs/DESIGN.md"
    text = page.read_text(encoding="utf-8")
    before, after = text.partition("<!-- roads -->")[0], text.partition("<!-- /roads -->")[2]
    page.write_text(f"{before}<!-- roads -->\n{lists}\n<!-- /roads -->{after}", encoding="utf-8")
    print(lists)
