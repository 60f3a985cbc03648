"""How fast text becomes token files, and how fast token files are read: ratios against tiktoken and `tokenizers`.

    python benchmarks/data.py --quick                                # a smoke test on a little built-in text
    python benchmarks/data.py --text NOVELS.jsonl.xz --tokenizer DIR # the figures of docs/LOG.md

Peers get the same texts, in memory already; `prepare` starts from the file on disk and ends with token files, checksums
and all. They take turns, round by round; figures are medians. A result file tells the machine, versions, date and load.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import CORES, keep, machine

from tiny_transformer.config.schema import DataConfig
from tiny_transformer.data.batches import Batches
from tiny_transformer.data.meta import BLOCK_BYTES, SplitMeta
from tiny_transformer.data.prepare.command import prepare
from tiny_transformer.data.prepare.sources import open_source
from tiny_transformer.data.token_file import TokenFile
from tiny_transformer.tokenizers import Tokenizer, load_tokenizer, make_tokenizer
from tiny_transformer.tokenizers.fast import pattern_of, ranks_of

PACKAGES = ("numpy", "tiktoken", "tokenizers", "torch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default="stories", help="what `prepare --source` takes")
    parser.add_argument("--tokenizer", help="a directory with a published byte-level BPE, measured too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a few megabytes, one round, no result file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        results = {"machine": machine(PACKAGES), **measure(options, Path(scratch))}
    print(json.dumps(results, indent=1))
    if not options.quick:
        keep("data", results)


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All figures."""
    rounds = 1 if options.quick else options.rounds
    texts = list(open_source(options.text, max_bytes=3_000_000 if options.quick else None).documents())
    plain = write_rows(scratch / "plain.jsonl", texts, copies=1)
    packed = Path(options.text) if Path(options.text).is_file() else plain
    results: dict[str, Any] = {"text": Path(options.text).name, "text_bytes": size_of(texts), "documents": len(texts)}
    results["train_bpe"], trained = train_bpe(texts, vocab_size=1_000 if options.quick else 16_384)
    trained.save(scratch / "trained")
    results["prepare"] = {"trained": compare(texts, packed, plain, scratch / "trained", rounds)}
    if options.tokenizer:
        results["prepare"]["published"] = compare(texts, packed, plain, Path(options.tokenizer), rounds)
    more = write_rows(scratch / "more.jsonl", texts, copies=10)
    results["memory"] = {
        name: peak_memory(path, scratch / "trained", scratch / f"memory-{name}")
        for name, path in (("once", plain), ("ten_times", more))
    }
    results["batch"] = random_batches(scratch / "sparse.bin", num_bytes=10**8 if options.quick else 10**10)
    return results


def compare(texts: list[str], packed: Path, plain: Path, tokenizer_dir: Path, rounds: int) -> dict[str, Any]:
    """Megabytes per second of `prepare` and of its peers, and ratios to the fastest of them."""
    import tiktoken
    import tokenizers

    tokenizer = load_tokenizer(tokenizer_dir)
    backend = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.content))
    ranks, pattern = ranks_of(tokenizer.content, backend), pattern_of(tokenizer.content)
    if ranks is None or pattern is None:
        raise SystemExit(f"{tokenizer_dir} is not a BPE that tiktoken can be given")
    peer = tiktoken.Encoding("peer", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    fast = tokenizer.document_encoder()
    runs: dict[str, Callable[[], Any]] = {
        "tiktoken": lambda: peer.encode_ordinary_batch(texts, num_threads=CORES),
        "prepare, packed": lambda: prepare_anew(packed, tokenizer_dir),
        "prepare, plain": lambda: prepare_anew(plain, tokenizer_dir),
        "encoder, one thread": lambda: [fast([text]) for text in texts],
        "tiktoken, one thread": lambda: [peer.encode_ordinary(text) for text in texts],
        "tokenizers": lambda: backend.encode_batch_fast(texts, add_special_tokens=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    speed = {name: size_of(texts) / 1e6 / statistics.median(values) for name, values in seconds.items()}
    return {
        "vocab_size": tokenizer.vocab_size,
        "megabytes_per_second": {name: round(value, 1) for name, value in speed.items()},
        "ratios": {
            f"{ours} / {theirs}": round(speed[ours] / speed[theirs], 2)
            for ours, theirs in (
                ("prepare, packed", "tiktoken"),
                ("prepare, plain", "tiktoken"),
                ("encoder, one thread", "tiktoken, one thread"),
                ("prepare, packed", "tokenizers"),
            )
        },
        "same ids": same_ids(peer, prepared_ids(packed, tokenizer_dir), texts, tokenizer),
    }


def prepare_anew(source: Path, tokenizer_dir: Path) -> None:
    with tempfile.TemporaryDirectory(dir=tokenizer_dir.parent) as out_dir:
        prepare(DataConfig(source=str(source), tokenizer=str(tokenizer_dir)), out_dir)


def prepared_ids(source: Path, tokenizer_dir: Path) -> np.ndarray:
    """How often each id occurs in the token files."""
    with tempfile.TemporaryDirectory() as out_dir:
        meta = prepare(DataConfig(source=str(source), tokenizer=str(tokenizer_dir)), out_dir)
        files = [np.fromfile(Path(out_dir) / f"{name}.bin", dtype=meta.dtype) for name in ("train", "val")]
    return np.bincount(np.concatenate(files), minlength=meta.vocab_size)


def same_ids(peer: Any, counts: np.ndarray, texts: list[str], tokenizer: Tokenizer) -> bool:
    """Whether the token files hold what the peer gives, each id as often (texts are all different)."""
    expected = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for ids in peer.encode_ordinary_batch(texts, num_threads=CORES):
        expected += np.bincount(ids, minlength=tokenizer.vocab_size)
    expected[tokenizer.end_id] += len(texts)
    return bool(np.array_equal(counts, expected))


def train_bpe(texts: list[str], *, vocab_size: int) -> tuple[dict[str, Any], Tokenizer]:
    """A BPE from 50 MB of the texts."""
    sample, num_bytes = [], 0
    for text in texts:
        if num_bytes < 50_000_000:
            sample.append(text)
            num_bytes += len(text.encode())
    started = time.perf_counter()
    tokenizer = make_tokenizer("bpe", texts=sample, vocab_size=vocab_size)
    seconds = time.perf_counter() - started
    return {"vocab_size": vocab_size, "text_bytes": num_bytes, "seconds": round(seconds, 1)}, tokenizer


def peak_memory(source: Path, tokenizer_dir: Path, out_dir: Path) -> dict[str, Any]:
    """Of a process that prepares `source` (it has threads and no children; this reads Linux's figures)."""
    code = (
        "import sys; from pathlib import Path; from tiny_transformer.config.schema import DataConfig;"
        "from tiny_transformer.data.prepare.command import prepare;"
        "prepare(DataConfig(source=sys.argv[1], tokenizer=sys.argv[3]), sys.argv[2]);"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    command = [sys.executable, "-c", code, str(source), str(out_dir), str(tokenizer_dir)]
    started = time.perf_counter()
    kilobytes = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    seconds = time.perf_counter() - started
    return {
        "file_bytes": source.stat().st_size,
        "peak_megabytes": round(kilobytes / 1000, 1),
        "megabytes_per_second": round(source.stat().st_size / 1e6 / seconds, 1),
    }


def random_batches(path: Path, *, num_bytes: int) -> dict[str, Any]:
    """Milliseconds to a batch of 64 x 512 from a sparse file, its checksums verified on first touch."""
    with path.open("wb") as file:
        file.truncate(num_bytes)
    path.with_suffix(".docs").write_bytes(bytes(8))
    num_blocks, rest = divmod(num_bytes, BLOCK_BYTES)
    checksums = [zlib.crc32(bytes(BLOCK_BYTES))] * num_blocks + ([zlib.crc32(bytes(rest))] if rest else [])
    split = SplitMeta(num_bytes // 2, 1, num_bytes, num_bytes // 2, "", "", checksums, None)
    tokens = TokenFile(path, dtype="uint16", vocab_size=16_384, split=split)
    batches = Batches(tokens, seq_len=512, global_batch_size=64, seed=0)

    def milliseconds(steps: range) -> float:
        seconds = []
        for step in steps:
            started = time.perf_counter()
            batches.batch(step)
            seconds.append(time.perf_counter() - started)
        return round(1000 * statistics.median(seconds), 2)

    first = milliseconds(range(10))
    started = time.perf_counter()
    for start in range(0, len(tokens), BLOCK_BYTES):
        tokens.read(start, min(start + BLOCK_BYTES, len(tokens)))
    seconds = time.perf_counter() - started
    return {
        "file_bytes": num_bytes,
        "milliseconds": milliseconds(range(10, 210)),
        "milliseconds, blocks never touched before": first,
        "verifying the whole file, gigabytes_per_second": round(num_bytes / 1e9 / seconds, 2),
    }


def write_rows(path: Path, texts: list[str], *, copies: int) -> Path:
    """The texts as rows of a .jsonl, over and over, numbered so that no two are the same."""
    with path.open("w", encoding="utf-8") as file:
        for copy in range(copies):
            for text in texts:
                file.write(json.dumps({"text": f"{copy}\n{text}" if copy else text}, ensure_ascii=False) + "\n")
    return path


def size_of(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


if __name__ == "__main__":
    main()
