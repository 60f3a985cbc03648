"""Eleven thousand spoilt files of every kind we read: each is opened or refused with a `UserError`, quickly."""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import random
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from gguf_attacks import gguf, gguf_good, gguf_keys, gguf_tensors
from good_files import LLAMA2C, SHAPE, WEIGHTS, entries, pieces, safetensors, tensors_of, write_good
from peak_memory import peak_kib

from tiny_transformer.data.meta import Meta, SplitMeta, read_meta
from tiny_transformer.errors import UserError
from tiny_transformer.interop.detect import kind_of
from tiny_transformer.interop.gguf.importing import import_gguf
from tiny_transformer.interop.llama2c import import_llama2c
from tiny_transformer.models import end_token_ids, load_model
from tiny_transformer.storage import Manifest, verify
from tiny_transformer.storage.manifest import digest
from tiny_transformer.tokenizers import load_tokenizer

EACH = 1000
ODD_BYTES = [
    b"",
    b"\0",
    b"\xff" * 8,
    b'"',
    b"null",
    b"-1",
    b"1e999",
    b"NaN",
    b"[",
    b"{",
    b"true",
    b"\x80",
    b"\xed\xa0\x80",
]
ODD_VALUES = [
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    10**30,
    1e308,
    float("nan"),
    "",
    "x",
    "../x",
    "\0",
    "\ud800",
    [],
    {},
    [[]],
    {"type": "Precompiled", "precompiled_charsmap": ""},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaa"},
    {"type": "Replace", "pattern": {"String": ""}, "content": "a"},
    {"type": "Prepend", "prepend": "ab" * 5000},
    {"type": "FixedLength", "length": 0},
    {"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated", "invert": True},
    {"type": "Metaspace", "replacement": "", "prepend_scheme": "always", "split": True},
    {"type": "Strip", "content": "h", "start": 2**63, "stop": 2**63},
    {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]},
    {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel"}]},
    {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}},
    {"type": "Unigram", "unk_id": 5, "vocab": [["a", 0.0], ["b", -1.0]], "byte_fallback": True},
    {"type": "WordPiece", "unk_token": "x", "continuing_subword_prefix": "##", "vocab": {"a": 0, "<|endoftext|>": 1}},
    {"type": "WordLevel", "unk_token": "x", "vocab": {"a": 0, "<|endoftext|>": 1}},
]


def spoilt_bytes(data: bytes, rng: random.Random) -> bytes:
    """Cut, change, repeat or remove bytes at random places."""
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        start = rng.randrange(len(damaged) + 1)
        stop = min(len(damaged), start + rng.choice([0, 1, 1, 4, 30]))
        kind = rng.random()
        if kind < 0.15:
            del damaged[start:]
        elif kind < 0.3:
            damaged[start:stop] = damaged[start:stop] * rng.choice([2, 50])
        else:
            damaged[start:stop] = rng.choice(
                [*ODD_BYTES, rng.randbytes(4), struct.pack("<q", rng.choice([-1, 2**40, 0]))]
            )
    return bytes(damaged)


def spoilt_json(value: Any, rng: random.Random) -> bytes:
    """Replace, remove or swap values anywhere inside."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice([1, 1, 2, 4])):
        inner: Any = value
        while isinstance(inner, dict | list) and inner:
            key = rng.choice(list(inner)) if isinstance(inner, dict) else rng.randrange(len(inner))
            if not isinstance(inner[key], dict | list) or not inner[key] or rng.random() < 0.3:
                if rng.random() < 0.2:
                    del inner[key]
                else:
                    inner[key] = copy.deepcopy(rng.choice(ODD_VALUES))
                break
            inner = inner[key]
    return json.dumps(value).encode()


def spoilt(data: bytes, rng: random.Random) -> bytes:
    """Half of the time as bytes, half as JSON, where it is JSON."""
    if data[:1] == b"{" and rng.random() < 0.6:
        return spoilt_json(json.loads(data), rng)
    return spoilt_bytes(data, rng)


def weights(rng: random.Random) -> bytes:
    """The header spoilt, and mostly with a length that fits it again: most spoilt lengths end at the first check."""
    good = entries(tensors_of(SHAPE))
    raw = spoilt(json.dumps(good).encode(), rng)
    end = max(entry["data_offsets"][1] for entry in good.values())
    return safetensors(raw, end, length=len(raw) if rng.random() < 0.9 else rng.choice([0, 7, 2**30, 2**63, 2**64 - 1]))


def index(directory: Path, rng: random.Random) -> None:
    if (directory / WEIGHTS).exists():
        (directory / WEIGHTS).rename(directory / "a.safetensors")
    good = {"weight_map": dict.fromkeys(tensors_of(SHAPE), "a.safetensors")}
    (directory / f"{WEIGHTS}.index.json").write_bytes(spoilt(json.dumps(good).encode(), rng))


def file(name: str) -> Callable[[Path, random.Random], object]:
    """Spoil one file, each time anew from the good one."""

    def spoil(directory: Path, rng: random.Random) -> None:
        (directory / name).write_bytes(spoilt((directory.parent / "good" / name).read_bytes(), rng))

    return spoil


def llama2c_header(directory: Path, rng: random.Random) -> None:
    numbers = [rng.choice([n, n, n, -n, 0, n + 1, 2**31 - 1, rng.randrange(2**31)]) for n in LLAMA2C]
    good = (directory.parent / "good" / "model.bin").read_bytes()
    (directory / "model.bin").write_bytes(struct.pack("<7i", *numbers) + good[28 : rng.choice([28, 1000, len(good)])])


def llama2c_tokenizer(directory: Path, rng: random.Random) -> None:
    (directory / "tok.bin").write_bytes(spoilt_bytes(struct.pack("<i", 6) + b"".join(pieces()), rng))


def open_llama2c(directory: Path) -> None:
    shutil.rmtree(directory / "out", ignore_errors=True)
    import_llama2c(directory / "model.bin", directory / "tok.bin", directory / "out")


def gguf_file(directory: Path, rng: random.Random) -> None:
    """The header spoilt byte by byte, or one of its numbers by an odd one; often what follows is cut."""
    good = (directory.parent / "good" / "model.gguf").read_bytes()
    keys = gguf_keys()
    tensors = gguf_tensors()
    if rng.random() < 0.5:
        entries = rng.choice([keys, tensors])
        i = rng.randrange(len(entries))
        entries[i] = spoilt_bytes(entries[i], rng)
        gguf(keys, tensors, rest=good[-rng.choice([1, 5000, 40_000]) :])(directory)
    else:
        at = rng.choice([4, 8, 16, 24, rng.randrange(len(good))])
        odd = struct.pack("<Q", rng.choice([0, 1, 255, 2**20, 2**31, 2**40, 2**63, 2**64 - 1]))
        (directory / "model.gguf").write_bytes(good[:at] + odd + good[at + 8 :])


def open_gguf(directory: Path) -> None:
    shutil.rmtree(directory / "out", ignore_errors=True)
    import_gguf(directory / "model.gguf", directory / "out")


def first_bytes(directory: Path, rng: random.Random) -> None:
    heads = [b"GGUF", b"PK\3\4", b"\x80\4", b"ak42", b"\x89HDF", b""]
    name = rng.choice(["model.bin", "a.pt", "a.gguf", "a.safetensors", "a", "a.bin.xz"])
    (directory / name).write_bytes(spoilt_bytes(rng.choice(heads) + rng.randbytes(20), rng))
    (directory / "name").write_text(name)


def encode_and_decode(directory: Path) -> None:
    tokenizer = load_tokenizer(directory)
    ids = tokenizer.encode("the cat ✓ he <|endoftext|> aaaa")
    tokenizer.decode([*ids, tokenizer.end_id])
    tokenizer.document_encoder()(["he"])


def manifest(directory: Path, rng: random.Random) -> None:
    """A manifest of the good files with something spoilt in it, and the hash of itself right again."""
    names = ("config.json", "generation_config.json", "tokenizer_config.json")
    good = json.loads(Manifest({name: digest(directory / name) for name in names}, {"step": 3}).encode())
    body = json.loads(spoilt_json(good, rng)) if rng.random() < 0.9 else good
    body.pop("manifest_sha256", None)
    raw = json.dumps({**body, "manifest_sha256": "0" * 64}, indent=1).encode() + b"\n"
    sealed = raw.replace(b"0" * 64 + b'"\n}\n', hashlib.sha256(raw).hexdigest().encode() + b'"\n}\n')
    (directory / "manifest.json").write_bytes(sealed if rng.random() < 0.9 else spoilt_bytes(sealed, rng))


def meta(directory: Path, rng: random.Random) -> None:
    """A meta.json with something spoilt in it, and the hash of its content right again."""
    split = SplitMeta(4, 1, 4, 4, "0" * 64, "0" * 64, [5], {"nats_per_token": 0.5})
    good = json.loads(
        Meta("uint16", 262, 8, 4, "byte", "0" * 64, "text", "none", 0, {"tokenizer": "byte"}, split, split).to_json()
    )
    body = json.loads(spoilt_json(good, rng)) if rng.random() < 0.9 else good
    body.pop("meta_sha256", None)
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    sealed = json.dumps({**body, "meta_sha256": hashlib.sha256(text.encode()).hexdigest()}).encode()
    (directory / "meta.json").write_bytes(sealed if rng.random() < 0.9 else spoilt_bytes(sealed, rng))


# What must have been entered many times: the function behind the first checks, where it is looked up.
BEHIND_THE_DOOR = {
    "config.json": "tiny_transformer.models.checkpoint.empty_model",
    "safetensors": "tiny_transformer.models.safetensors_file._span",
    "index": "tiny_transformer.models.checkpoint._open",
    "generation_config.json": "tiny_transformer.models.config_file.read_json",
    "tokenizer.json": "tiny_transformer.tokenizers.tokenizer._build_backend",
    "tokenizer_config.json": "tiny_transformer.tokenizers.tokenizer._build_backend",
    "llama2c model": "tiny_transformer.interop.llama2c._read_header",
    "llama2c tokenizer": "tiny_transformer.interop.llama2c.load_llama2c_tokenizer",
    "gguf": "tiny_transformer.interop.gguf.importing.tokenizer_from_gguf",
    "import": "tiny_transformer.interop.detect._pickled",
    "manifest.json": "tiny_transformer.storage.manifest.is_safe_name",
    "meta.json": "tiny_transformer.data.meta.checked",
}
TARGETS: dict[str, tuple[Callable[[Path, random.Random], object], Callable[[Path], object]]] = {
    "config.json": (file("config.json"), load_model),
    "safetensors": (lambda d, rng: (d / WEIGHTS).write_bytes(weights(rng)), load_model),
    "index": (index, load_model),
    "generation_config.json": (file("generation_config.json"), end_token_ids),
    "tokenizer.json": (file("tokenizer.json"), encode_and_decode),
    "tokenizer_config.json": (file("tokenizer_config.json"), load_tokenizer),
    "llama2c model": (llama2c_header, open_llama2c),
    "llama2c tokenizer": (llama2c_tokenizer, open_llama2c),
    "gguf": (gguf_file, open_gguf),
    "import": (first_bytes, lambda d: kind_of(d / (d / "name").read_text())),
    "manifest.json": (manifest, verify),
    "meta.json": (meta, read_meta),
}


def test_there_are_ten_thousand_inputs():
    assert EACH * len(TARGETS) >= 10_000


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_thousand_spoilt_files_are_opened_or_refused(target, tmp_path, monkeypatch):
    entered = mock.Mock(return_value=None)
    place, _, name = BEHIND_THE_DOOR[target].rpartition(".")
    behind = getattr(importlib.import_module(place), name)
    monkeypatch.setattr(BEHIND_THE_DOOR[target], lambda *a, **k: entered() or behind(*a, **k))
    spoil, opened = TARGETS[target]
    for name in ("good", "it"):
        write_good(tmp_path / name)
        gguf_good(tmp_path / name)
    opened_ids, refused, slowest = 0, 0, 0.0
    memory = peak_kib(reset=True)
    for seed in range(EACH):
        spoil(tmp_path / "it", random.Random(f"{target} {seed}"))
        started = time.process_time()
        try:
            opened(tmp_path / "it")
            opened_ids += 1
        except UserError as error:
            assert len(error.lines()) <= 3, f"seed {seed}"
            refused += 1
        except BaseException as error:  # a panic in Rust is no Exception
            raise AssertionError(f"{target}, seed {seed}: {type(error).__name__} escaped") from error
        slowest = max(slowest, time.process_time() - started)
    assert refused > EACH // 4, (opened_ids, refused)
    assert slowest < 1
    assert entered.call_count > EACH // 20
    size = sum(path.stat().st_size for path in (tmp_path / "good").iterdir()) // 1024
    assert peak_kib() - memory < 64 * 1024 + 4 * size  # over all of them, so over each
