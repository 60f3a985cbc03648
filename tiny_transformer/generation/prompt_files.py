"""Many prompts from a file, answered into a file that grows: interrupted, it goes on where it was.

Each line of the output is one JSON object and says by itself what it is: which prompt, which sample, with which
settings. A row's random numbers depend on the seed, the prompt and how often it stood before, so neither the size of a
batch nor an interruption changes a text.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.generation.rows import check_prompts
from tiny_transformer.generation.sampling import SamplingConfig, row_keys
from tiny_transformer.generation.text import Writing, encode_prompt
from tiny_transformer.models.adapter_base import identity_of
from tiny_transformer.models.open import OpenCheckpoint
from tiny_transformer.storage.fs import refusals
from tiny_transformer.storage.reading import read_regular

MAX_BYTES = 256 * 2**20  # of a file of prompts
STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Prompt:
    """A prompt of a file.

    Attributes:
        text: what is continued.
        others: the other keys of its line, which the output repeats.
        replaced: those of them that it does not, because a line of an answer has them itself.
    """

    text: str
    others: dict[str, Any]
    replaced: tuple[str, ...] = ()


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file: each line of a `.txt` that is not empty, the `prompt` of each object of a `.jsonl`.

    Args:
        path: the file, or `-` for the lines of standard input.

    Raises:
        UserError: another kind of file, not UTF-8, a line without a prompt, or none at all; names the line.
    """
    where = "standard input" if str(path) == STANDARD_INPUT else str(path)
    if str(path) != STANDARD_INPUT and path.suffix not in (".txt", ".jsonl"):
        raise UserError(f"{path} is neither .txt nor .jsonl", remedy="a prompt a line, or objects with a key `prompt`")
    try:
        text = standard_input() if where == "standard input" else read_regular(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        remedy = "save it as UTF-8 (for Latin-1: iconv -f latin1 -t utf-8)"
        what = f"byte {error.start} is not UTF-8"
        raise UserError(what, where=where, remedy=remedy, exit_code=ExitCode.BAD_DATA) from None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    is_json = path.suffix == ".jsonl"
    prompts = [_of_json(line, f"{where}, line {n}") if is_json else Prompt(line.rstrip("\r"), {}) for n, line in lines]
    if not prompts:
        raise UserError("there are no prompts", where=where, remedy="write one a line", exit_code=ExitCode.BAD_DATA)
    return prompts


def standard_input() -> str:
    """All of standard input, without the mark of byte order that some programs begin with.

    Raises:
        UserError: BAD_DATA, it is not UTF-8.
    """
    try:
        return sys.stdin.read().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(
            f"byte {error.start} is not UTF-8",
            where="standard input",
            remedy="make UTF-8 of it, for example with iconv",
            exit_code=ExitCode.BAD_DATA,
        ) from None


def given_prompt(prompt: str) -> str:
    """The prompt, or for `-` all of standard input, without the line break that ends it."""
    return standard_input().removesuffix("\n") if prompt == STANDARD_INPUT else prompt


def _of_json(line: str, where: str) -> Prompt:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        remedy = '{"prompt": "Once upon a time"}'
        raise UserError("not an object with a text `prompt`", where=where, remedy=remedy, exit_code=ExitCode.BAD_DATA)
    others = {key: other for key, other in value.items() if key not in ("prompt", *_OURS)}
    return Prompt(value["prompt"], others, tuple(key for key in _OURS if key in value))


_OURS = ("index", "sample", "text", "finish_reason", "num_tokens", "settings")


class AnswerFile:
    """The output: whole lines only, each written at once.

    Args:
        path: created, or gone on with.

    Attributes:
        num_lines: how many answers stand there.
        settings: the settings they were written with; None in a new file.

    Raises:
        UserError: it holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole_bytes: int | None = None  # before a line that a kill cut short
        self.lines = self._whole_lines() if path.exists() else []
        self.settings: dict[str, Any] | None = self.lines[0]["settings"] if self.lines else None

    def _whole_lines(self) -> list[dict[str, Any]]:
        data = read_regular(self.path, 64 * MAX_BYTES)
        whole = data[: data.rfind(b"\n") + 1]
        lines = []
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            if not isinstance(value, dict) or not {"prompt", "index", "sample", "settings"} <= value.keys():
                raise UserError(
                    "this is no output of --prompts",
                    where=f"{self.path}, line {number}",
                    remedy="give --out another name: nothing is overwritten",
                    exit_code=ExitCode.BAD_DATA,
                )
            lines.append(value)
        if not lines and data:
            raise UserError("this is no output of --prompts", where=str(self.path), remedy="give --out another name")
        if len(whole) < len(data):
            self._whole_bytes = len(whole)
        return lines

    def with_seed(self, settings: SamplingConfig) -> SamplingConfig:
        """Settings whose seed nobody chose: with that of the answers that stand here, if there are any."""
        seed = (self.settings or {}).get("seed")
        return replace(settings, seed=seed) if isinstance(seed, int) else settings

    def add(self, answers: Sequence[dict[str, Any]]) -> None:
        """Append lines, in place of one that was cut short, and have them on the disk before going on.

        Raises UserError (IO) when the system refuses.
        """
        with refusals("write", self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._whole_bytes is not None:
                os.truncate(self.path, self._whole_bytes)
                self._whole_bytes = None
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write("".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers))
                file.flush()
                os.fsync(file.fileno())


def resume(out: AnswerFile, prompts: Sequence[Prompt], settings: dict[str, Any], num_samples: int) -> int:
    """How many answers of an output are done.

    Raises:
        UserError: they were written for other prompts or with other settings; nothing is changed.
    """
    if out.settings is not None and out.settings != settings:
        there = out.settings
        differing = sorted(key for key in settings.keys() | there.keys() if settings.get(key) != there.get(key))
        shown = ", ".join(f"{key} {there.get(key)} there, {settings.get(key)} asked for" for key in differing)
        raise UserError(f"other settings: {shown}", where=str(out.path), remedy="the same, or another --out")
    for number, line in enumerate(out.lines):
        index, sample = divmod(number, num_samples)
        found = line["index"], line["sample"], line["prompt"]
        if index >= len(prompts) or found != (index, sample, prompts[index].text):
            raise UserError(
                f"line {number + 1} answers another prompt or sample than the file of prompts has there",
                where=str(out.path),
                remedy="the same prompts and num_samples, or another --out",
            )
    return len(out.lines)


def answer_prompts(
    opened: OpenCheckpoint,
    prompts: Sequence[Prompt],
    settings: SamplingConfig,
    *,
    num_samples: int = 1,
    batch_size: int = 16,
    done: int = 0,
    told: dict[str, Any] | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """The answers in order, a batch at a time, each as a line of the output holds it.

    Args:
        opened: the checkpoint.
        prompts: all of them, those that are answered already too.
        settings: how the next token is chosen.
        num_samples: how often each prompt is continued.
        batch_size: rows that are written side by side.
        done: so many answers are left out.
        told: `described`, where that is known already.

    Raises:
        UserError: a prompt that cannot be encoded or is too long, told before anything is written.
    """
    encoded = [_encoded(opened, prompt.text, f"prompt {n} of {len(prompts)}") for n, prompt in enumerate(prompts, 1)]
    vocab_size = opened.config.vocab_size or opened.tokenizer.vocab_size
    check_prompts(encoded, vocab_size=vocab_size, context_length=opened.config.max_position_embeddings)
    rows = [(index, sample) for index in range(len(prompts)) for sample in range(num_samples)]
    keys = row_keys(settings.seed, [encoded[index] for index, _ in rows])
    told = described(settings, opened) if told is None else told
    for start in range(done, len(rows), batch_size):
        chosen = slice(start, start + batch_size)
        batch = [encoded[index] for index, _ in rows[chosen]]
        writing = Writing(opened.model, opened.tokenizer, batch, settings, end_ids=opened.end_ids, keys=keys[chosen])
        yield [
            {
                "index": index,
                "sample": sample,
                **prompts[index].others,
                "prompt": prompts[index].text,
                **asdict(continuation),
                "settings": told,
            }
            for (index, sample), continuation in zip(rows[chosen], writing.all(), strict=True)
        ]


def _encoded(opened: OpenCheckpoint, text: str, where: str) -> list[int]:
    try:
        return encode_prompt(opened.tokenizer, text)
    except UserError as error:
        error.where = f"{where}, {error.where}" if error.where else where
        raise


def described(settings: SamplingConfig, opened: OpenCheckpoint) -> dict[str, Any]:
    """The settings as an output holds them, with the checkpoint's directory and a hash of the weights that write: those
    of a run that was trained again are others, and those of adapters are among them."""
    model = {"checkpoint": str(opened.path), "weights": identity_of(opened.model)[:16]}
    return {**model, **{k: list(v) if k == "stop" else v for k, v in asdict(settings).items()}}


def answer_file(
    opened: OpenCheckpoint,
    prompts: Sequence[Prompt],
    settings: SamplingConfig,
    file: AnswerFile,
    *,
    num_samples: int,
    batch_size: int,
    tell: Callable[[int, int], None],
) -> int:
    """Answer prompts into a file, going on where it was; the number of answers that were there already.

    Args:
        opened, prompts, settings, num_samples, batch_size: see `answer_prompts`.
        file: the output.
        tell: called with the answers done and all of them.

    Raises:
        UserError: the output holds other answers; see `resume`.
    """
    told = described(settings, opened)
    before = done = resume(file, prompts, told, num_samples)
    total, sizes = len(prompts) * num_samples, {"num_samples": num_samples, "batch_size": batch_size}
    tell(done, total)
    for answers in answer_prompts(opened, prompts, settings, **sizes, done=done, told=told):
        file.add(answers)
        done += len(answers)
        tell(done, total)
    return before
