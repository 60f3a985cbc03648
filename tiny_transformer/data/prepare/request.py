"""What data was asked for: written into meta.json when it is prepared, compared when somebody asks again.

Two requests for text in files are the same when the files hold the same, wherever they stand and whatever they are
called. What is not known of prepared data (of imported token files, where documents and their split come from) agrees
with the defaults and with nothing else.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tiny_transformer.config.schema import DataConfig
from tiny_transformer.data.meta import OLD_IDENTITY, SOURCE_IDENTITY, Meta
from tiny_transformer.data.prepare import hub
from tiny_transformer.data.prepare.sources import STORIES, Source, source_of
from tiny_transformer.storage.reading import at_home
from tiny_transformer.tokenizers import TRAINED_KINDS, Tokenizer, make_tokenizer

# Keys of the section `data` that decide the tokens, in the order in which they are told.
KEYS = ("source", "tokenizer", "vocab_size", "max_bytes", "val_fraction", "text_field")


def request_of(data: DataConfig, source: Source, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """What meta.json keeps of a request.

    Args:
        data: the settings.
        source: the open source; its name and what identifies its text.
        tokenizer: the one that is ready; None where one is made from the text.
    """
    request = {
        **data.model_dump(mode="json", include={*KEYS, "seq_len"}),
        "source": source.name,
        SOURCE_IDENTITY: hashlib.sha256(source.fingerprint.encode()).hexdigest(),
    }
    return request if tokenizer is None else {**request, "tokenizer_fingerprint": tokenizer.fingerprint}


def is_trained_here(tokenizer: str) -> bool:
    """Whether a tokenizer of that name is made from the text that is prepared."""
    return tokenizer in (*TRAINED_KINDS, "auto")


def changed_keys(asked: dict[str, Any], there: dict[str, Any]) -> list[str]:
    """The keys in which two requests differ; the name of the source counts only where its text is another."""
    keys = {key for key in asked.keys() | there.keys() if asked.get(key) != there.get(key)}
    if SOURCE_IDENTITY not in keys:
        keys.discard("source")
    if "tokenizer" in keys:
        keys.discard("tokenizer_fingerprint")
    names = {
        SOURCE_IDENTITY: "the text of the source",
        OLD_IDENTITY: "an older version of this program made it",
        "tokenizer_fingerprint": "the content of the tokenizer",
    }
    return sorted({names.get(key, key) for key in keys})


def differences(data: DataConfig, meta: Meta, keys: Collection[str] = KEYS) -> list[str]:
    """Where prepared data is not what `data` asks for in these keys, each as `key: WHAT IS THERE, not WHAT IS ASKED`.

    Reads the files of a local source, to see whether they still hold what was prepared; nothing is fetched.
    """
    found, known, defaults = [], recorded(meta), DataConfig()
    for key in (key for key in KEYS if key in keys):
        there, asked = known.get(key, getattr(defaults, key)), getattr(data, key)
        is_same = there == asked or (key == "vocab_size" and asked == meta.vocab_size)
        is_there = _shown(there) if key in known else "not known"
        reason = None if is_same else f"{is_there}, not {_shown(asked)}"
        if key == "source":
            reason = _other_source(data, meta)
        elif key == "tokenizer" and _is_the_tokenizer(data.tokenizer, meta):
            reason = None
        if reason:
            found.append(f"{key}: {reason}")
    return found


def recorded(meta: Meta) -> dict[str, Any]:
    """The values of `KEYS` that prepared data was made with; of imported data only what is known."""
    request = {"source": meta.source, "tokenizer": meta.tokenizer, **meta.request}
    if SOURCE_IDENTITY not in request and request.get("val_fraction") == 0.02:
        request["val_fraction"] = None  # the default of the version that made it
    return {key: request[key] for key in KEYS if key in request}


def prepare_command(data: DataConfig, out_dir: Path) -> str:
    """The command line that makes what `data` asks for, whatever is there."""
    defaults = DataConfig()
    words = ["tiny-transformer", "prepare", "--source", data.source]
    for key in (*KEYS[1:], "seq_len"):
        if (value := getattr(data, key)) != getattr(defaults, key):
            words += [f"--{key}", str(value)]
    return shlex.join([*words, "--out_dir", str(out_dir), "--overwrite"])


def _other_source(data: DataConfig, meta: Meta) -> str | None:
    identity = _identity(data)
    known = meta.request.get(SOURCE_IDENTITY)
    if identity is not None and known is not None:
        if identity == known:
            return None
        if data.source == meta.source:
            return f"{data.source} has changed since it was prepared"
    elif data.source == meta.source:
        return None
    return f"{meta.source}, not {data.source}"


def _identity(data: DataConfig) -> str | None:
    """What identifies the text that the source gives now; None where that is not known without a network or a file."""
    is_there = at_home(data.source).exists()
    if data.source != STORIES and (data.source in hub.KNOWN_SETS or not is_there):
        return None
    return request_of(data, source_of(data), None)[SOURCE_IDENTITY]


def _is_the_tokenizer(name: str, meta: Meta) -> bool:
    there = meta.request.get("tokenizer", meta.tokenizer)
    if is_trained_here(name) or not at_home(name).exists():
        return name.replace("auto", "bpe") == there.replace("auto", "bpe")
    return make_tokenizer(name).fingerprint == meta.tokenizer_fingerprint


def _shown(value: Any) -> str:
    return "the default" if value is None else json.dumps(value) if not isinstance(value, str) else value
