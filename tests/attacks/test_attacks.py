"""Hostile files end in a message of ours: the right words, three lines at most, in bounded time and memory."""

from __future__ import annotations

import json
import os
import random
import struct
import sys
import time
import tracemalloc
import unicodedata
from pathlib import Path

import pytest
from gguf_attacks import gguf, gguf_good, gguf_key, gguf_keys, good_weights
from good_files import WEIGHTS, write_good
from make_attacks import ATTACKS, OUTSIDE, write_attack
from peak_memory import peak_kib
from rich.console import Console

from tiny_transformer.data.token_file import open_dataset
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.interop.command import run_import
from tiny_transformer.interop.detect import kind_of
from tiny_transformer.interop.gguf.importing import import_gguf
from tiny_transformer.interop.llama2c import import_llama2c
from tiny_transformer.models import end_token_ids, load_model
from tiny_transformer.storage import verify
from tiny_transformer.tokenizers import load_tokenizer

SECONDS = 1.0
PEAK_BYTES = 64 * 2**20


def open_llama2c(directory: Path) -> None:
    model = next(directory.glob("model.bin.xz"), directory / "model.bin")
    import_llama2c(model, directory / "tok.bin", directory / "out")


def import_whole(source: Path, out_dir: Path) -> None:
    """What the verb does."""
    run_import(source, out_dir=out_dir, tokenizer=None, dtype=None, console=Console(quiet=True))


OPEN = {
    "model": load_model,
    "tokenizer": load_tokenizer,
    "generation": end_token_ids,
    "llama2c": open_llama2c,
    "gguf": lambda directory: import_gguf(directory / "model.gguf", directory / "out"),
    "import": lambda directory: kind_of(directory / "model.bin"),
    "directory": lambda directory: import_whole(directory, directory / "out"),
    "manifest": verify,
    "data": open_dataset,
}


@pytest.mark.parametrize("target", ["model", "tokenizer", "generation", "llama2c", "gguf", "import", "directory"])
def test_what_is_not_spoilt_opens(target, tmp_path):
    write_good(tmp_path / "good")
    gguf_good(tmp_path / "good")
    OPEN[target](tmp_path / "good")


def test_there_are_enough_attacks():
    assert len(ATTACKS) >= 60


@pytest.mark.parametrize("name", ATTACKS)
def test_each_attack_ends_in_its_message(name, tmp_path):
    attack = write_attack(name, tmp_path / "it")
    size = sum(path.lstat().st_size for path in (tmp_path / "it").iterdir())
    tracemalloc.start()
    started = time.process_time()
    try:
        with pytest.raises(UserError) as caught:
            OPEN[attack.target](tmp_path / "it")
        seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    error = caught.value
    for word in attack.words:
        assert word in str(error), str(error)
    assert error.exit_code in (ExitCode.BAD_DATA, ExitCode.USAGE)
    assert error.remedy and len(error.lines()) <= 3 and max(map(len, error.lines())) < 600, str(error)
    assert seconds < SECONDS and peak < PEAK_BYTES + 4 * size, (seconds, peak)
    assert not (tmp_path / "it" / "out").exists()


def test_messages_do_not_carry_what_a_terminal_obeys():
    odd = [chr(code) for code in range(0x3000) if unicodedata.category(chr(code)) == "Cc"]
    odd += [*"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069", "\ud800"]
    for text in odd:
        message = str(UserError(f"key 'a{text}b'", where=f"x{text}.json", remedy=f"write{text}it"))
        assert message.split("\n")[0].strip() and text not in message.replace("\n", ""), hex(ord(text))
    assert str(UserError("a key 'è✓👩‍💻'")) == "error: a key 'è✓👩‍💻'"


def test_links_of_the_hub_cache_and_inside_the_directory_are_followed(tmp_path):
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "abc123"
    write_good(snapshot)
    (repository / "blobs").mkdir()
    for i, name in enumerate(("config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json")):
        (snapshot / name).rename(repository / "blobs" / str(i))
        (snapshot / name).symlink_to(f"../../blobs/{i}")
    (snapshot / "template").write_text("hello")
    (snapshot / "chat_template.jinja").symlink_to("template")
    (tmp_path / "link").symlink_to(snapshot)  # the directory itself may be a link
    import_whole(tmp_path / "link", tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "hello"


@pytest.mark.parametrize(
    ("kind", "num_lists", "count"), [(0, 60, 2**20), (12, 7, 2**20), (8, 4, 2**18 - 100)], ids=["u8", "f64", "texts"]
)
def test_lists_of_a_gguf_that_nobody_asks_for_cost_little(tmp_path, kind, num_lists, count):
    write_good(tmp_path / "it")
    width = {0: 1, 8: 8, 12: 8}[kind]
    lists = [gguf_key(f"x{i}", 9, struct.pack("<IQ", kind, count) + bytes(width * count)) for i in range(num_lists)]
    gguf([*gguf_keys(), *lists], rest=good_weights())(tmp_path / "it")
    del lists
    size = (tmp_path / "it" / "model.gguf").stat().st_size
    before, started = peak_kib(reset=True), time.process_time()
    OPEN["gguf"](tmp_path / "it")
    seconds, grown = time.process_time() - started, (peak_kib() - before) * 1024
    assert seconds < SECONDS and grown < PEAK_BYTES + 2 * size, (seconds, grown)


def test_text_never_becomes_a_control_token(tmp_path):
    write_good(tmp_path / "it")
    tokenizer = load_tokenizer(tmp_path / "it")
    rng = random.Random(5)
    parts = ["<|endoftext|>", "<|", "|>", "endoftext", "he", " ", "\n", "é", "\0", "<", "t|>", "＜|endoftext|＞"]
    texts = ["".join(rng.choices(parts, k=rng.randrange(1, 8))) for _ in range(100_000)]
    assert sum("<|endoftext|>" in text for text in texts) > 20_000
    assert not any(tokenizer.end_id in ids for ids in tokenizer.encode_batch(texts))


_opened: list[str] | None = None


def _watch(event: str, arguments: tuple) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], str | bytes):
        _opened.append(os.fsdecode(arguments[0]))


@pytest.fixture
def opened_paths():
    """Every path that this process opens (through Python) while the test runs."""
    global _opened
    if _watch not in _watching:
        sys.addaudithook(_watch)  # for good: a hook cannot be taken off
        _watching.append(_watch)
    _opened = []
    yield _opened
    _opened = None


_watching: list = []
CLIMBING = [
    "../secret",
    "/etc/passwd",
    "a/../../secret",
    "..\\secret",
    "\0",
    "~/x",
    "file:///etc/passwd",
    "‥/x",
    ".",
]


def test_no_path_leaves_its_directory(tmp_path, opened_paths):
    """Five hundred ways out, in names of shards; a header is checked through Python's open, which is seen."""
    (tmp_path / "secret.safetensors").write_bytes(b"secret")
    directory = tmp_path / "it"
    write_good(directory)
    (directory / WEIGHTS).unlink()
    names = {
        f"{before}{climb}{suffix}"
        for before in ("", "./", "a/", "a/../", "//", ".\\", "%2e%2e/", "\u2024\u2024/", "\x7f", " ", "\ufeff")
        for climb in CLIMBING
        for suffix in ("", ".safetensors", "/x.safetensors", ".bin", "/..", "\0.safetensors")
    }
    assert len(names) >= 500
    for name in names:
        (directory / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
        opened_paths.clear()
        with pytest.raises(UserError, match="not a plain"):
            load_model(directory)
        ours = [path for path in opened_paths if path.startswith(str(tmp_path))]
        assert ours and all(path.startswith(f"{directory}/") for path in ours)
        assert not [path for path in opened_paths if "secret" in path or "passwd" in path]


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if attack.words == OUTSIDE])
def test_no_link_out_of_the_directory_is_opened(name, tmp_path, opened_paths):
    attack = write_attack(name, tmp_path / "it")
    opened_paths.clear()
    with pytest.raises(UserError):
        OPEN[attack.target](tmp_path / "it")
    links = [str(path) for path in (tmp_path / "it").iterdir() if path.is_symlink()]
    assert links and not set(links) & set(opened_paths)
