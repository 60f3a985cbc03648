"""Reading a tokenizer from disk, as untrusted input: its size, structure, ids and expressions are checked first."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage.reading import check_inside
from tiny_transformer.tokenizers.patterns import GPT2_PATTERN
from tiny_transformer.tokenizers.tokenizer import CONFIG_FILE, END_TOKEN, TOKENIZER_FILE, Tokenizer
from tiny_transformer.tokenizers.validate import bad_tokenizer, check_content

MAX_FILE_BYTES = 64 * 2**20
CHAT_TEMPLATE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"  # a folder, a file for each template by name
# The two files of a tokenizer older than tokenizer.json, vocabulary and merges, as OpenAI and Hugging Face name them.
VOCAB_AND_MERGES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))


def load_tokenizer(path: str | Path, *, name: str | None = None) -> Tokenizer:
    """The tokenizer in a directory (prepared data, a checkpoint, any Hugging Face model) or `tokenizer.json`.

    Args:
        path: the directory, or the file itself; `tokenizer_config.json` beside it is read when there is one.
        name: what to call it; by default what it was called when it was saved, else the path.

    Raises:
        UserError: nothing there (usage), or a file that is too large or is not a tokenizer (bad data).
    """
    path = Path(path)
    directory = path if path.is_dir() else path.parent
    file = path / TOKENIZER_FILE if path.is_dir() else path
    config = _read_json(directory / CONFIG_FILE) if (directory / CONFIG_FILE).exists() else {}
    saved_name = config.get("tiny_transformer_name")
    if saved_name is not None and not isinstance(saved_name, str):
        raise bad_tokenizer(directory / CONFIG_FILE, "its tiny_transformer_name is no text")
    name = name or saved_name or str(path)
    if file.exists() or file.is_symlink():
        content = _read_json(file)
        where = file
    else:
        pairs = [(directory / vocab, directory / merges) for vocab, merges in VOCAB_AND_MERGES]
        found = [pair for pair in pairs if path.is_dir() and all(part.is_file() for part in pair)]
        if not found:
            packed = sorted(directory.glob("*.xz")) + sorted(directory.glob("*.gz"))
            pair_names = " or ".join("+".join(pair) for pair in VOCAB_AND_MERGES)
            raise UserError(
                f"no tokenizer in {path}",
                where=str(file),
                remedy=f"unpack {packed[0].name} and its like first"
                if packed
                else f"give a directory with {TOKENIZER_FILE} or {pair_names}, or one of byte, char, bpe, gpt2, qwen3",
            )
        content = gpt2_content(*found[0])
        where = found[0][0]
    check_content(content, where)
    return Tokenizer(content, name=name, config=config)


def gpt2_content(vocab_file: Path, merges_file: Path) -> dict[str, Any]:
    """The `tokenizer.json` content of a byte-level BPE given as GPT-2's two files, vocabulary and merges."""
    vocab = _read_json(vocab_file)
    lines = _read_text(merges_file).split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in merges):
        raise bad_tokenizer(merges_file, "a line of the merges is not two tokens with one space between")
    return byte_level_content(vocab, merges, pattern=GPT2_PATTERN)


def byte_level_content(vocab: dict[str, int], merges: list[list[str]], *, pattern: str | None) -> dict[str, Any]:
    """A byte-level BPE as `tokenizer.json` content; `pattern` cuts the text into words first (None: no cutting)."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    cut_first = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    end_id = vocab.get(END_TOKEN, len(vocab))
    return tokenizer_content(
        model={"type": "BPE", "vocab": vocab, "merges": merges},
        pre_tokenizer=byte_level if pattern is None else cut_first,
        decoder=byte_level,
        end_id=end_id,
    )


def tokenizer_content(*, model: dict, pre_tokenizer: dict | None, decoder: dict, end_id: int) -> dict[str, Any]:
    """`tokenizer.json` content around a model, with `<|endoftext|>` as its only control token."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": end_id, "content": END_TOKEN, **flags, "special": True}],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": {
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            **model,
        },
    }


def chat_templates(directory: Path) -> dict[str, str]:
    """The templates by which a chat becomes one text, by name, the one for every chat as `default`: from files of their
    own or `tokenizer_config.json`; none is run."""
    config = directory / CONFIG_FILE
    told = _read_json(config).get("chat_template") if config.exists() else None
    if isinstance(told, str):
        told = [{"name": "default", "template": told}]
    entries = [(t.get("name"), t.get("template")) for t in told or [] if isinstance(t, dict)]
    found = {name: text for name, text in entries if isinstance(name, str) and isinstance(text, str)}
    own = directory / CHAT_TEMPLATE
    if own.exists():
        found["default"] = _read_text(own)
    return found | {file.stem: _read_text(file) for file in more_chat_templates(directory)}


def more_chat_templates(directory: Path) -> list[Path]:
    """The files of the templates beside the default one, as transformers saves them: one for tools, one for documents.

    Raises:
        UserError: one has a name that would be a path elsewhere, or none that a template can be asked for by.
    """
    files = sorted((directory / MORE_TEMPLATES).glob("*.jinja"))
    for file in files:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", file.name):
            raise bad_tokenizer(file, "a chat template is named by letters, digits, dots, dashes and underscores")
    return files


def has_tokenizer(directory: Path) -> bool:
    """Whether `load_tokenizer` finds files in a directory; it may yet refuse them."""
    files = [(TOKENIZER_FILE,), *VOCAB_AND_MERGES]
    return any(all((directory / name).is_file() for name in names) for names in files)


def _read_text(file: Path) -> str:
    check_inside(file)
    if not file.is_file():
        raise bad_tokenizer(file, "not a regular file")
    size = file.stat().st_size
    if size > MAX_FILE_BYTES:
        raise bad_tokenizer(file, f"it has {size:,} bytes; a tokenizer file has at most {MAX_FILE_BYTES:,}")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise bad_tokenizer(file, f"invalid UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}", exit_code=ExitCode.IO) from None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(file))
    except (json.JSONDecodeError, RecursionError) as error:
        raise bad_tokenizer(file, f"not JSON ({error})") from None
    if not isinstance(value, dict):
        raise bad_tokenizer(file, "not a JSON object")
    return value
