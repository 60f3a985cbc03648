"""What people type first, in the words of other programs, and what to type here instead."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from tiny_transformer.errors import command_line
from tiny_transformer.models.find import RUNS_DIR, looks_like_model

# An option's name elsewhere -> the options here that may be meant; a verb's first of them is.
_TEXT, _MODEL = ("--source", "--data_dir", "--prompt"), ("--init_from", "--preset", "--ckpt")
OPTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("file", "text", "input", "data", "data_path", "data_file", "train_file", "dataset"), _TEXT),
    **dict.fromkeys(("model", "model_path", "base", "base_model", "checkpoint", "m"), _MODEL),
    **dict.fromkeys(("name", "run_name", "run", "output", "output_dir", "save_dir", "o"), ("--out_dir", "--out")),
    **dict.fromkeys(("time", "duration", "max_minutes"), ("--minutes",)),
    **dict.fromkeys(("p", "start"), ("--prompt",)),
    **dict.fromkeys(("length", "num_tokens", "tokens", "n_predict", "n"), ("--max_new_tokens",)),
    **dict.fromkeys(("temp", "t"), ("--temperature",)),
}
SWITCHES = {"gpu": "--device cuda", "cuda": "--device cuda", "cpu": "--device cpu"}
VERBS = {
    **dict.fromkeys(("eval", "test", "validate", "perplexity"), "evaluate"),
    **dict.fromkeys(("write", "complete", "predict", "run"), "generate"),
    **dict.fromkeys(("sft", "tune", "fine-tune"), "finetune"),
    **dict.fromkeys(("dpo", "orpo", "grpo", "rlhf"), "align"),
    **dict.fromkeys(("tokenize", "encode", "preprocess"), "prepare"),
    **dict.fromkeys(("convert", "gguf"), "export"),
    "help": "--help",
    "version": "--version",
    "resume": "train --resume --out_dir",
}


def option_meant(name: str, words: Sequence[str], options: Collection[str]) -> str | None:
    """What to type instead of an option that a verb does not have, with its value; None where that is not known.

    Args:
        name: as typed, with its dashes.
        words: of the command line.
        options: that the verb has.
    """
    plain = name.lstrip("-").replace("-", "_")
    if plain in SWITCHES:
        return SWITCHES[plain]
    meant = next((option for option in OPTIONS.get(plain, ()) if option in options), None)
    return None if meant is None else f"{meant} {_value_of(name, words)}".rstrip()


def _value_of(name: str, words: Sequence[str]) -> str:
    """The value of an option on a command line, for a shell; "" where it has none."""
    for word, following in zip(words, [*words[1:], "-"], strict=True):
        if word.startswith(f"{name}="):
            return command_line(word.partition("=")[2])
        if word == name and not following.startswith("-"):
            return command_line(following)
    return ""


def word_meant(word: str) -> str:
    """What a word without an option says to a verb that goes on from a model, such as `--source rows.jsonl`."""
    path = Path(word)
    is_model = looks_like_model(path) or (path.name == word and looks_like_model(RUNS_DIR / word))
    option = "--init_from" if is_model else "--config" if path.suffix in (".yaml", ".yml", ".toml") else "--source"
    return f"{option} {command_line(word)}"


def verb_meant(words: Sequence[str], train_options: Collection[str]) -> str | None:
    """The words to type where the first is no verb; None where that is not known."""
    first = words[0]
    if first.startswith("--") and "--" + first.partition("=")[0][2:].replace("-", "_") in train_options:
        return command_line("train", *words)
    if first in VERBS:
        return " ".join([VERBS[first], *map(command_line, words[1:])])
    if first.startswith("-") or not Path(first).exists():
        return None
    if word_meant(first).startswith("--init_from"):
        return command_line("generate", "--ckpt", *words)
    return command_line("train", *words, *(() if len(words) > 1 else ("--minutes", 10)))
