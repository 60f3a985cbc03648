"""Small hostile files, each by name with the words of the message it must end in.

`python tests/attacks/make_attacks.py DIR` writes them all for a look at; the test writes them into a temporary folder.
Every attack starts from a good directory (or file) and spoils one thing in it. Nothing here is larger than a few
hundred kilobytes; what would be huge is only declared.
"""

from __future__ import annotations

import json
import lzma
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attack import Attack, change, replaced_by, write
from gguf_attacks import GGUF_ATTACKS, gguf_good
from good_files import (
    INDEX,
    LLAMA2C,
    SHAPE,
    WEIGHTS,
    entries,
    llama2c_numbers,
    pieces,
    safetensors,
    tensors_of,
    write_good,
)
from tokenizer_attacks import NESTED, TOKENIZER_ATTACKS


def header(edit: Callable[[dict[str, Any]], object], **size: int) -> Callable[[Path], object]:
    """Change the header of the weights; the bytes that follow stay as many as the good file's."""

    def spoil(directory: Path) -> None:
        good = entries(tensors_of(SHAPE))
        num_bytes = max(entry["data_offsets"][1] for entry in good.values())
        edit(good)
        (directory / WEIGHTS).write_bytes(safetensors(good, **{"num_bytes": num_bytes, **size}))

    return spoil


def index(weight_map: Any, raw: str | None = None) -> Callable[[Path], object]:
    """An index in place of the one file."""

    def spoil(directory: Path) -> None:
        (directory / WEIGHTS).unlink()
        (directory / INDEX).write_text(raw or json.dumps({"weight_map": weight_map}))

    return spoil


def index_that_is_a_pipe(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    os.mkfifo(directory / INDEX)


def shard_that_is_a_pipe(directory: Path) -> None:
    index({"model.norm.weight": "a.safetensors"})(directory)
    os.mkfifo(directory / "a.safetensors")


def linked(name: str, target: str) -> Callable[[Path], object]:
    """A link of this name in the place of the file, if there was one."""
    return lambda d: ((d / name).unlink(missing_ok=True), (d / name).symlink_to(target))


def linked_to_a_copy(name: str) -> Callable[[Path], object]:
    """The same bytes as in the good directory, but beyond it: they would be imported."""
    return lambda d: ((d / name).rename(d.parent / "secret"), (d / name).symlink_to("../secret"))


def last_weight(value: float) -> Callable[[Path], object]:
    """Change the last weight of the file."""
    return lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:-4] + struct.pack("<f", value))


def model_bin(header: tuple[int, ...], rest: bytes = b"") -> Callable[[Path], object]:
    return write("model.bin", struct.pack("<7i", *header) + rest)


def packed_model(directory: Path) -> None:
    """Three hundred megabytes of zeros in fifty kilobytes, as its header says."""
    shape = (1024, 4096, 4, 2, 2, 8192, 8)
    packer = lzma.LZMACompressor(preset=0)
    with (directory / "model.bin.xz").open("wb") as file:
        file.write(packer.compress(struct.pack("<7i", *shape)))
        for _ in range(16):
            file.write(packer.compress(bytes(2**20)))
        file.write(packer.flush())


NORM = "model.norm.weight"
OUTSIDE = ("is a link that leads outside",)
ATTACKS = {
    # config.json
    "config-empty": Attack("model", write("config.json", ""), ("cannot read config.json",)),
    "config-half": Attack("model", write("config.json", '{"model_type": "qwen3", '), ("cannot read config.json",)),
    "config-list": Attack("model", write("config.json", "[1, 2]"), ("not a JSON object",)),
    "config-nested": Attack("model", write("config.json", NESTED), ("lists and objects",)),
    "config-nested-less": Attack("model", write("config.json", '{"a":' * 9_000), ("cannot read config.json",)),
    "config-million-lists": Attack("model", write("config.json", f'{{"a": [{"[]," * 200_000}[]]}}'), ("lists and",)),
    "config-too-large": Attack("model", write("config.json", b" " * (2**20 + 1)), ("1,048,576 bytes",)),
    "config-key-twice": Attack(
        "model", write("config.json", '{"model_type": "qwen3", "model_type": "llama"}'), ("'model_type' appears twice",)
    ),
    "config-latin1": Attack("model", write("config.json", b'{"model_type": "\xe9"}'), ("cannot read config.json",)),
    "config-remote-code": Attack(
        "model", change("config.json", auto_map={"AutoModel": "evil.Model"}), ("auto_map is not supported",)
    ),
    "config-quantized": Attack("model", change("config.json", quantization_config={}), ("quantization_config",)),
    "config-unknown-type": Attack("model", change("config.json", model_type="../../etc/passwd"), ("not supported",)),
    "config-type-is-a-list": Attack("model", change("config.json", model_type=["qwen3"]), ("not supported",)),
    "config-type-null": Attack("model", change("config.json", model_type=None), ("not supported",)),
    "config-negative-layers": Attack("model", change("config.json", num_hidden_layers=-1), ("num_hidden_layers -1",)),
    "config-billion-layers": Attack("model", change("config.json", num_hidden_layers=10**9), ("num_hidden_layers",)),
    "config-thousand-layers": Attack(
        "model", change("config.json", num_hidden_layers=1024), ("1024 layers", "24 tensors")
    ),
    "config-petabyte-embedding": Attack(
        "model", change("config.json", vocab_size=2**24, hidden_size=2**17), ("model.embed_tokens.weight",)
    ),
    "config-zero-heads": Attack("model", change("config.json", num_attention_heads=0), ("num_attention_heads 0",)),
    "config-heads-do-not-divide": Attack(
        "model", change("config.json", num_attention_heads=3, num_key_value_heads=2), ("num_key_value_heads 2",)
    ),
    "config-infinite-theta": Attack(
        "model", write("config.json", json.dumps(SHAPE).replace("10000.0", "1e999")), ("rope_theta",)
    ),
    "config-nan-epsilon": Attack("model", change("config.json", rms_norm_eps=float("nan")), ("rms_norm_eps",)),
    "config-huge-integer": Attack("model", change("config.json", hidden_size=10**4000), ("hidden_size",)),
    "config-digits-without-end": Attack(
        "model", write("config.json", f'{{"hidden_size": {"9" * 5000}}}'), ("cannot read config.json",)
    ),
    "config-rope-scaling": Attack(
        "model", change("config.json", rope_scaling={"type": "longrope", "factor": 4}), ("rope_type 'longrope'",)
    ),
    "config-two-thetas": Attack(
        "model", change("config.json", rope_parameters={"rope_theta": 5.0}), ("rope_theta", "disagree")
    ),
    "config-rope-is-text": Attack("model", change("config.json", rope_parameters="default"), ("not a mapping",)),
    "config-layer-types-without-end": Attack(
        "model", change("config.json", layer_types=[1] * 200_000), ("layer_types has 200,000 entries",)
    ),
    "config-heads-are-a-fraction": Attack(
        "model", change("config.json", num_attention_heads=2.0), ("num_attention_heads 2.0", "integer")
    ),
    "config-heads-are-true": Attack("model", change("config.json", num_key_value_heads=True), ("integer",)),
    "config-size-is-text": Attack("model", change("config.json", hidden_size="16"), ("hidden_size '16'", "integer")),
    "config-theta-is-true": Attack("model", change("config.json", rope_theta=True), ("rope_theta True",)),
    "config-tie-is-a-number": Attack("model", change("config.json", tie_word_embeddings=1), ("tie_word_embeddings 1",)),
    "config-flag-is-a-number": Attack(
        "model", change("config.json", model_type="llama", mlp_bias=0), ("mlp_bias 0 is not supported",)
    ),
    "config-bias-is-null": Attack("model", change("config.json", attention_bias=None), ("attention_bias None",)),
    "config-is-a-directory": Attack("model", replaced_by("config.json", Path.mkdir), ("no config.json",)),
    "config-is-a-pipe": Attack("model", replaced_by("config.json", os.mkfifo), ("no config.json",)),
    # safetensors
    "weights-empty": Attack("model", write(WEIGHTS, b""), ("0 bytes, too few",)),
    "weights-seven-bytes": Attack("model", write(WEIGHTS, b"\0" * 7), ("7 bytes, too few",)),
    "weights-header-beyond-the-file": Attack("model", write(WEIGHTS, safetensors({}, length=2**40)), ("too few",)),
    "weights-header-length-all-ones": Attack("model", write(WEIGHTS, b"\xff" * 64), ("too few",)),
    "weights-header-too-long": Attack(
        "model", lambda d: os.truncate(d / WEIGHTS, 0) or sparse(d / WEIGHTS), ("at most 16,777,216",)
    ),
    "weights-header-not-json": Attack("model", write(WEIGHTS, safetensors(b"\x80\x04pickle", 0)), ("not UTF-8",)),
    "weights-header-not-an-object": Attack("model", write(WEIGHTS, safetensors(b"[]", 0)), ("not a JSON object",)),
    "weights-header-half": Attack("model", write(WEIGHTS, safetensors(b'{"a":', 0)), ("not JSON",)),
    "weights-header-nested": Attack("model", write(WEIGHTS, safetensors(b"[" * 100_000, 0)), ("nested too deeply",)),
    "weights-header-of-lists": Attack(
        "model", write(WEIGHTS, safetensors(b'{"a":[' + b"[]," * 300_000 + b"[]]}", 0)), ("more than 100,000",)
    ),
    "weights-tensor-twice": Attack(
        "model", write(WEIGHTS, safetensors(b'{"a":{"dtype":"F32"},"a":{"dtype":"F32"}}', 0)), ("key twice",)
    ),
    "weights-unknown-dtype": Attack("model", header(lambda h: h[NORM].update(dtype="F31")), ("dtype: 'F31'",)),
    "weights-dtype-is-a-list": Attack("model", header(lambda h: h[NORM].update(dtype=["F32"])), ("unknown dtype",)),
    "weights-negative-shape": Attack("model", header(lambda h: h[NORM].update(shape=[-16])), ("impossible shape",)),
    "weights-shape-overflows": Attack(
        "model", header(lambda h: h[NORM].update(shape=[2**61, 2**61, 16])), ("its shape and dtype ask for",)
    ),
    "weights-nine-dimensions": Attack("model", header(lambda h: h[NORM].update(shape=[1] * 9)), ("impossible shape",)),
    "weights-shape-of-booleans": Attack("model", header(lambda h: h[NORM].update(shape=[True])), ("impossible shape",)),
    "weights-offsets-backwards": Attack(
        "model", header(lambda h: h[NORM].update(data_offsets=[64, 0])), ("takes -64 bytes",)
    ),
    "weights-offsets-overlap": Attack(
        "model", header(lambda h: h[NORM].update(data_offsets=[0, 64])), ("do not begin where",)
    ),
    "weights-offset-beyond": Attack(
        "model", header(lambda h: h[NORM].update(data_offsets=[2**40, 2**40 + 64])), ("do not begin where",)
    ),
    "weights-three-offsets": Attack("model", header(lambda h: h[NORM].update(data_offsets=[0, 1, 2])), ("positions",)),
    "weights-one-byte-short": Attack("model", header(lambda h: None, num_bytes=1), ("follow the header",)),
    "weights-surplus-bytes": Attack("model", header(lambda h: None, num_bytes=10**5), ("follow the header",)),
    "weights-extra-key": Attack("model", header(lambda h: h[NORM].update(code="x")), ("not exactly dtype",)),
    "weights-metadata-is-a-list": Attack("model", header(lambda h: h.update(__metadata__=[1])), ("__metadata__",)),
    "weights-integers": Attack("model", header(lambda h: h[NORM].update(dtype="I32")), ("dtype I32",)),
    "weights-other-shape": Attack("model", header(lambda h: h[NORM].update(shape=[4, 4])), ("[4, 4]", "[16]")),
    "weights-missing-tensor": Attack(
        "model",
        lambda d: write(WEIGHTS, safetensors(entries({k: s for k, s in tensors_of(SHAPE).items() if k != NORM})))(d),
        ("missing tensors: model.norm.weight",),
    ),
    "weights-name-without-end": Attack(
        "model",
        lambda d: write(WEIGHTS, safetensors(entries({**tensors_of(SHAPE), "x" * 100_000: (1,)})))(d),
        ("does not have: xxx",),
    ),
    "weights-are-a-pipe": Attack("model", replaced_by(WEIGHTS, os.mkfifo), ("no model.safetensors",)),
    "weights-pickled": Attack(
        "model", lambda d: (d / WEIGHTS).rename(d / "pytorch_model.bin"), ("pickled", "never read")
    ),
    # the index of sharded weights
    "index-climbs-out": Attack("model", index({NORM: "../secret.safetensors"}), ("not a plain",)),
    "index-absolute": Attack("model", index({NORM: "/etc/x.safetensors"}), ("not a plain",)),
    "index-folder": Attack("model", index({NORM: "a/b.safetensors"}), ("not a plain",)),
    "index-backslash": Attack("model", index({NORM: "..\\b.safetensors"}), ("not a plain",)),
    "index-zero-byte": Attack("model", index({NORM: "a\0b.safetensors"}), ("not a plain",)),
    "index-name-without-end": Attack("model", index({NORM: "a" * 10_000 + ".safetensors"}), ("not a plain",)),
    "index-hidden": Attack("model", index({NORM: ".safetensors"}), ("not a plain",)),
    "index-look-alike-dots": Attack("model", index({NORM: "‥／x.safetensors"}), ("not a plain",)),
    "index-pickle": Attack("model", index({NORM: "pytorch_model.bin"}), ("not a plain",)),
    "index-number": Attack("model", index({NORM: 5}), ("not a plain",)),
    "index-itself": Attack("model", index({NORM: INDEX}), ("not a plain",)),
    "index-empty-map": Attack("model", index({}), ("weight_map",)),
    "index-list": Attack("model", index([NORM]), ("weight_map",)),
    "index-no-map": Attack("model", index(None, raw='{"metadata": {}}'), ("weight_map",)),
    "index-not-json": Attack("model", index(None, raw="weight_map"), ("cannot read model.safetensors.index.json",)),
    "index-missing-shard": Attack("model", index({NORM: "a.safetensors"}), ("no such file",)),
    "index-is-a-pipe": Attack("model", index_that_is_a_pipe, ("no model.safetensors and no",)),
    "index-shard-is-a-pipe": Attack("model", shard_that_is_a_pipe, ("not a regular file",)),
    # the ids that end a text
    "eos-text": Attack("generation", change("generation_config.json", eos_token_id="2"), ("eos_token_id '2'",)),
    "eos-negative": Attack("generation", change("generation_config.json", eos_token_id=[-1]), ("eos_token_id [-1]",)),
    "eos-true": Attack("generation", change("generation_config.json", eos_token_id=True), ("eos_token_id True",)),
    "eos-many": Attack("generation", change("generation_config.json", eos_token_id=[1] * 5000), ("at most 100",)),
    "eos-nested": Attack("generation", change("generation_config.json", eos_token_id=[[1]]), ("eos_token_id [[1]]",)),
    "generation-is-a-pipe": Attack(
        "generation", replaced_by("generation_config.json", os.mkfifo), ("not a regular file",)
    ),
    "generation-not-json": Attack("generation", write("generation_config.json", "{"), ("generation_config.json",)),
    **TOKENIZER_ATTACKS,
    # links
    "link-weights-to-passwd": Attack("model", linked(WEIGHTS, "/etc/passwd"), OUTSIDE),
    "link-weights-to-a-device": Attack("model", linked(WEIGHTS, "/dev/zero"), OUTSIDE),
    "link-weights-to-nothing": Attack("model", linked(WEIGHTS, "../nothing"), OUTSIDE),
    "link-weights-beside": Attack("directory", linked_to_a_copy(WEIGHTS), OUTSIDE),
    "link-weights-to-itself": Attack("model", linked(WEIGHTS, WEIGHTS), ("model.safetensors",)),
    "link-shard-beside": Attack(
        "directory",
        lambda d: (
            index(dict.fromkeys(tensors_of(SHAPE), "a.safetensors"))(d),
            write_good(d.parent / "other"),
            (d / "a.safetensors").symlink_to("../other/model.safetensors"),
        ),
        OUTSIDE,
    ),
    "link-index-beside": Attack(
        "directory",
        lambda d: (index({NORM: "a.safetensors"})(d), linked_to_a_copy(INDEX)(d)),
        OUTSIDE,
    ),
    **{
        f"link-{name}-beside": Attack("directory", linked_to_a_copy(name), OUTSIDE)
        for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
    },
    "link-tokenizer-to-a-device": Attack("tokenizer", linked("tokenizer.json", "/dev/zero"), OUTSIDE),
    "link-vocabulary-beside": Attack(
        "tokenizer",
        lambda d: (
            (d / "tokenizer.json").unlink(),
            (d / "vocab.json").symlink_to("/etc/passwd"),
            (d / "merges.txt").write_text(""),
        ),
        OUTSIDE,
    ),
    "link-template-to-passwd": Attack("directory", linked("chat_template.jinja", "/etc/passwd"), OUTSIDE),
    "link-to-a-blob-of-another-model": Attack(
        "model",
        lambda d: ((d.parent / "blobs").mkdir(), linked(WEIGHTS, "../blobs/x")(d)),  # no snapshots/ above it
        OUTSIDE,
    ),
    # llama2.c
    "llama2c-empty": Attack("llama2c", write("model.bin", b""), ("0 bytes are too few",)),
    "llama2c-half-a-header": Attack("llama2c", write("model.bin", b"\1" * 27), ("27 bytes are too few",)),
    "llama2c-header-alone": Attack("llama2c", model_bin(LLAMA2C), ("but its header describes",)),
    "llama2c-negative-width": Attack("llama2c", model_bin((-16, *LLAMA2C[1:])), ("impossible header",)),
    "llama2c-zero-heads": Attack("llama2c", model_bin((16, 24, 2, 0, 1, 263, 8)), ("impossible header",)),
    "llama2c-all-ones": Attack("llama2c", write("model.bin", b"\xff" * 28), ("impossible header",)),
    "llama2c-largest-numbers": Attack("llama2c", model_bin((2**31 - 1,) * 7), ("impossible header",)),
    "llama2c-petabytes": Attack("llama2c", model_bin((2**17, 2**20, 1024, 16, 2, 2**24, 2**24)), ("describes",)),
    "llama2c-packed-zeros": Attack("llama2c", packed_model, ("packed bytes are too few",)),
    "llama2c-other-vocabulary": Attack(
        "llama2c",
        model_bin((16, 24, 2, 2, 1, 264, 8), bytes(4 * llama2c_numbers((16, 24, 2, 2, 1, 264, 8)))),
        ("263 tokens", "264"),
    ),
    "llama2c-tokenizer-empty": Attack("llama2c", write("tok.bin", b""), ("not a llama2.c tokenizer",)),
    "llama2c-piece-beyond": Attack(
        "llama2c", write("tok.bin", struct.pack("<ifi", 6, 0.0, 2**31 - 1)), ("longer than the file",)
    ),
    "llama2c-piece-negative": Attack(
        "llama2c", write("tok.bin", struct.pack("<ifi", 6, 0.0, -5) + b"abcdefgh"), ("longer than the file",)
    ),
    "llama2c-piece-without-end": Attack(
        "llama2c",
        write("tok.bin", struct.pack("<i", 6) + b"".join(pieces()) + struct.pack("<fi", 0.0, 10**6) + b"ab" * 500_000),
        ("1,000,000 bytes",),
    ),
    "llama2c-piece-not-utf8": Attack(
        "llama2c", write("tok.bin", struct.pack("<ifi", 6, 0.0, 2) + b"\xff\xfe"), ("not a llama2.c tokenizer",)
    ),
    # what is handed to `import`
    "import-ggml": Attack("import", write("model.bin", b"ggjt" + b"\0" * 60), ("a GGML file",)),
    "import-zip-pickle": Attack("import", write("model.bin", b"PK\3\4" + b"\0" * 60), ("pickled", "never read")),
    "import-bare-pickle": Attack("import", write("model.bin", b"\x80\4cos\nsystem\n"), ("pickled", "never read")),
    "import-llama2c-version-1": Attack("import", write("model.bin", b"ak42" + b"\0" * 60), ("version 1 or 2",)),
    "import-hdf5": Attack("import", write("model.bin", b"\x89HDF\r\n\x1a\n"), ("HDF5",)),
    "import-config-is-a-directory": Attack(
        "directory", replaced_by("config.json", Path.mkdir), ("config.json is not a regular file",)
    ),
    "import-config-is-a-pipe": Attack(
        "directory", replaced_by("config.json", os.mkfifo), ("config.json is not a regular file",)
    ),
    "import-no-tokenizer": Attack(
        "directory", lambda d: (d / "tokenizer.json").unlink(), ("without a tokenizer", "tokenizer.json beside")
    ),
    "import-sentencepiece-alone": Attack(
        "directory", lambda d: (d / "tokenizer.json").rename(d / "tokenizer.model"), ("save_pretrained",)
    ),
    "import-tokenizer-too-large": Attack(
        "directory", change("tokenizer.json", model__vocab__zz=262), ("263 ids", "262 rows")
    ),
    "import-template-is-a-pipe": Attack(
        "directory", lambda d: os.mkfifo(d / "chat_template.jinja"), ("chat_template.jinja is not a regular file",)
    ),
    "import-template-too-large": Attack(
        "directory", write("chat_template.jinja", b" " * (2**20 + 1)), ("at most 1,048,576 bytes",)
    ),
    "import-eos-beyond": Attack(
        "directory", change("generation_config.json", eos_token_id=[256, 262]), ("eos_token_id [256, 262]", "262 ids")
    ),
    "import-bos-is-text": Attack("directory", change("config.json", bos_token_id="1"), ("bos_token_id '1'",)),
    "import-pad-negative": Attack("directory", change("config.json", pad_token_id=-1), ("pad_token_id -1",)),
    "import-weight-not-a-number": Attack(
        "directory", last_weight(float("nan")), ("layers.1.mlp.down_proj.weight has weights",)
    ),
    "import-weight-infinite": Attack("directory", last_weight(float("inf")), ("infinite or not numbers",)),
    "import-pipe": Attack("import", replaced_by("model.bin", os.mkfifo), ("not a regular file",)),
    # what we wrote ourselves
    "manifest-empty": Attack("manifest", write("manifest.json", ""), ("manifest.json",)),
    "manifest-not-ours": Attack("manifest", write("manifest.json", '{"files": {"../x": 1}}'), ("manifest.json",)),
    "manifest-nested": Attack("manifest", write("manifest.json", NESTED), ("manifest.json",)),
    "meta-empty": Attack("data", write("meta.json", ""), ("not JSON",)),
    "meta-nested": Attack("data", write("meta.json", NESTED), ("not JSON",)),
    "meta-other-hash": Attack("data", write("meta.json", '{"format_version": 1, "meta_sha256": "0"}'), ("own hash",)),
    **GGUF_ATTACKS,
}


def sparse(path: Path) -> None:
    """A header that claims 32 MiB, in a file that is as large but takes no room on the disk."""
    with path.open("wb") as file:
        file.write((2**25).to_bytes(8, "little"))
        file.truncate(2**25 + 8)


def write_attack(name: str, directory: Path) -> Attack:
    """Write a good directory and spoil it."""
    write_good(directory)
    gguf_good(directory)
    ATTACKS[name].spoil(directory)
    return ATTACKS[name]


if __name__ == "__main__":
    for attack_name in ATTACKS:
        write_attack(attack_name, Path(sys.argv[1]) / attack_name)
    print(f"{len(ATTACKS)} attacks in {sys.argv[1]}")
