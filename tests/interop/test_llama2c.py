"""Import of llama2.c models: against a slow reference of its arithmetic, with a trained model, with damaged files."""

from __future__ import annotations

import lzma
import math
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.interop.llama2c import import_llama2c
from tiny_transformer.models import load_model
from tiny_transformer.tokenizers.load import load_tokenizer

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high."
)
# width, feed-forward, layers, heads, key/value heads, vocabulary (negative: untied), context
SHAPES = {"grouped": (24, 20, 2, 6, 2, 263, 16), "untied multi-head": (16, 12, 3, 2, 2, -263, 8)}


def arrays_of(header: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Random arrays in the order of the file."""
    dim, inner, layers, heads, groups, vocab, context = header
    kv = dim // heads * groups
    shapes = {
        "embedding": (abs(vocab), dim),
        "rms_att": (layers, dim),
        "wq": (layers, dim, dim),
        "wk": (layers, kv, dim),
        "wv": (layers, kv, dim),
        "wo": (layers, dim, dim),
        "rms_ffn": (layers, dim),
        "w1": (layers, inner, dim),
        "w2": (layers, dim, inner),
        "w3": (layers, inner, dim),
        "rms_final": (dim,),
        "cos": (context, dim // heads // 2),
        "sin": (context, dim // heads // 2),
    }
    if vocab < 0:
        shapes["head"] = (abs(vocab), dim)
    rng = np.random.default_rng(3)
    return {name: rng.normal(0, 0.3, shape).astype("<f4") for name, shape in shapes.items()}


def llama2c_logits(header: tuple[int, ...], w: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """The last token's logits, one token and one head at a time, neighbours turned: the original's arithmetic."""
    _, _, layers, heads, groups, vocab, _ = header
    size = header[0] // heads

    def norm(x, weight):
        return weight * x / math.sqrt(np.mean(x * x) + 1e-5)

    def turned(vector, position):
        out = vector.copy()
        for i in range(0, len(vector), 2):
            angle = position * 10_000 ** (-(i % size) / size)
            c, s = math.cos(angle), math.sin(angle)
            out[i], out[i + 1] = vector[i] * c - vector[i + 1] * s, vector[i] * s + vector[i + 1] * c
        return out

    keys, values = [[[] for _ in range(layers)] for _ in range(2)]
    for position, token in enumerate(ids):
        x = w["embedding"][token].astype(np.float64)
        for layer in range(layers):
            h = norm(x, w["rms_att"][layer])
            query = turned(w["wq"][layer] @ h, position)
            keys[layer].append(turned(w["wk"][layer] @ h, position))
            values[layer].append(w["wv"][layer] @ h)
            mixed = []
            for head in range(heads):
                own = slice(head * size, (head + 1) * size)
                shared = slice(head // (heads // groups) * size, (head // (heads // groups) + 1) * size)
                scores = np.array([query[own] @ key[shared] for key in keys[layer]]) / math.sqrt(size)
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                mixed.append(sum(p * value[shared] for p, value in zip(weights, values[layer], strict=True)))
            x = x + w["wo"][layer] @ np.concatenate(mixed)
            h = norm(x, w["rms_ffn"][layer])
            gate = w["w1"][layer] @ h
            x = x + w["w2"][layer] @ (gate / (1 + np.exp(-gate)) * (w["w3"][layer] @ h))
    return w["embedding" if vocab > 0 else "head"] @ norm(x, w["rms_final"])


def write_model(path: Path, header: tuple[int, ...]) -> dict[str, np.ndarray]:
    arrays = arrays_of(header)
    path.write_bytes(struct.pack("<7i", *header) + b"".join(a.tobytes() for a in arrays.values()))
    return arrays


@pytest.fixture
def tokenizer_file(tmp_path) -> Path:
    """263 tokens: three control tokens, the bytes, and four pieces."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "a", "b", "ab", " "]
    data = struct.pack("<i", 6)
    for i, piece in enumerate(pieces):
        data += struct.pack("<fi", float(-i), len(piece)) + piece.encode()
    path = tmp_path / "tok.bin"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_the_reference_arithmetic(shape, tokenizer_file, tmp_path):
    arrays = write_model(tmp_path / "m.bin", SHAPES[shape])
    import_llama2c(tmp_path / "m.bin", tokenizer_file, tmp_path / "out")
    ids = [1, 260, 5, 261, 17, 3]
    with torch.no_grad():
        got = load_model(tmp_path / "out")(torch.tensor([ids]))[0, -1]
    expected = llama2c_logits(SHAPES[shape], arrays, ids)
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=2e-5)
    assert np.abs(expected).max() > 1


@pytest.fixture(scope="module")
def stories260k(shared_data, tmp_path_factory) -> Path:
    """The trained model, imported."""
    source, out = shared_data / "models" / "stories260K", tmp_path_factory.mktemp("imported") / "stories260K"
    import_llama2c(source / "stories260K.bin.xz", source / "tok512.bin.xz", out)
    return out


@torch.no_grad()
def test_the_trained_model_writes_its_known_story(stories260k):
    model, tokenizer = load_model(stories260k), load_tokenizer(stories260k)
    ids = [tokenizer.begin_id, *tokenizer.encode("Once upon a time")]
    while not tokenizer.decode(ids).endswith("\n"):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        assert len(ids) < 100
    assert tokenizer.decode(ids) == STORY + "\n"


@torch.no_grad()
def test_the_trained_model_writes_its_known_story_through_the_cache(stories260k):
    model, tokenizer = load_model(stories260k), load_tokenizer(stories260k)
    ids = [tokenizer.begin_id, *tokenizer.encode("Once upon a time")]
    cache = model.make_cache(1, 512)
    new = torch.tensor([ids])
    while ids[-1] != 1 or len(ids) == 1:
        ids.append(int(model(new, cache=cache)[0, -1].argmax()))
        new = torch.tensor([ids[-1:]])
    text = tokenizer.decode(ids)
    assert text.startswith(STORY + "\n") and text.endswith('said, "Thank you, Lily! You are a good friend."')


def test_the_imported_directory_writes_the_same_story_in_transformers(stories260k):
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(stories260k)
    model = transformers.AutoModelForCausalLM.from_pretrained(stories260k)
    prompt = tokenizer("Once upon a time", return_tensors="pt")
    written = model.generate(**prompt, do_sample=False, max_new_tokens=60)
    text = tokenizer.decode(written[0], skip_special_tokens=True)
    assert text.startswith(STORY + "\n")
    assert model.generation_config.eos_token_id == [1, 2]  # a story ends where the next one begins


@pytest.mark.parametrize(
    "text", ["Once upon a time", "", " two  spaces ", "Zoë said: 你好!\n\n\tEnd", "a" * 50, "'\"<s>"]
)
def test_tokens_equal_repeated_merging_of_the_best_pair(stories260k, shared_data, text):
    data = lzma.decompress((shared_data / "models" / "stories260K" / "tok512.bin.xz").read_bytes())
    pieces, scores, offset = [], [], 4
    while offset < len(data):
        score, length = struct.unpack_from("<fi", data, offset)
        pieces.append(data[offset + 8 : offset + 8 + length])
        scores.append(score)
        offset += 8 + length
    ids_of = {piece: i for i, piece in enumerate(pieces) if i >= 259}
    ids: list[int] = []
    for character in (" " + text) if text else "":
        encoded = character.encode()
        ids += [ids_of[encoded]] if encoded in ids_of else [byte + 3 for byte in encoded]
    while True:
        joined = [
            (scores[ids_of[pieces[a] + pieces[b]]], -i)
            for i, (a, b) in enumerate(pairwise(ids))
            if a >= 259 and b >= 259 and pieces[a] + pieces[b] in ids_of
        ]
        if not joined:
            break
        i = -max(joined)[1]
        ids[i : i + 2] = [ids_of[pieces[ids[i]] + pieces[ids[i + 1]]]]
    assert load_tokenizer(stories260k).encode(text) == ids


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: b"", ["0 bytes", "28"]),
        (lambda data: data[:27], ["27 bytes", "28"]),
        (lambda data: data[:-1], ["bytes, but its header describes"]),
        (lambda data: data + b"\0", ["bytes, but its header describes"]),
        (lambda data: struct.pack("<7i", *[2**17, 2**20, 1024, 16, 2, 2**24, 2**24]) + data[28:], ["describes"]),
        (lambda data: struct.pack("<7i", *[-24, 20, 2, 6, 2, 263, 16]) + data[28:], ["impossible header", "-24"]),
        (lambda data: struct.pack("<7i", *[24, 20, 2, 0, 2, 263, 16]) + data[28:], ["impossible header"]),
        (lambda data: struct.pack("<7i", *[24, 20, 2, 6, 4, 263, 16]) + data[28:], ["impossible header", "divide"]),
        (lambda data: struct.pack("<7i", *[24, 20, 2, 6, 2, 0, 16]) + data[28:], ["impossible header"]),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_model_is_refused(damage, words, packed, tokenizer_file, tmp_path):
    path = tmp_path / ("m.bin.xz" if packed else "m.bin")
    write_model(path, SHAPES["grouped"])
    data = damage(path.read_bytes())
    path.write_bytes(lzma.compress(data) if packed else data)
    refused(path, tokenizer_file, tmp_path, words, where=path)


def refused(model: Path, tokenizer: Path, folder: Path, words: list[str], where: Path, code=ExitCode.BAD_DATA) -> None:
    with pytest.raises(UserError) as caught:
        import_llama2c(model, tokenizer, folder / "out")
    assert caught.value.exit_code == code and str(where) in str(caught.value.where)
    assert caught.value.remedy and len(caught.value.lines()) == 3
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert not (folder / "out").exists() and not list(folder.glob(".tmp*"))


def test_a_damaged_archive_is_refused(tokenizer_file, tmp_path):
    write_model(tmp_path / "m.bin", SHAPES["grouped"])
    packed = lzma.compress((tmp_path / "m.bin").read_bytes())
    path = tmp_path / "m.bin.xz"
    for data in (packed[:-20], b"not xz", packed[:1000] + b"XX" + packed[1002:]):
        path.write_bytes(data)
        refused(path, tokenizer_file, tmp_path, ["cannot be read"], where=path)


def test_missing_files_and_a_taken_directory_are_refused(tokenizer_file, tmp_path):
    path = tmp_path / "m.bin"
    refused(path, tokenizer_file, tmp_path, ["no such file"], where=path, code=ExitCode.USAGE)
    write_model(path, SHAPES["grouped"])
    refused(path, tmp_path / "no.bin", tmp_path, ["no such file"], where=tmp_path / "no.bin", code=ExitCode.USAGE)
    (tmp_path / "taken" / "something").mkdir(parents=True)
    with pytest.raises(UserError, match="already there"):
        import_llama2c(path, tokenizer_file, tmp_path / "taken")


def test_a_tokenizer_of_another_size_or_kind_is_refused(tokenizer_file, tmp_path):
    path = tmp_path / "m.bin"
    write_model(path, (24, 20, 2, 6, 2, 264, 16))
    refused(path, tokenizer_file, tmp_path, ["263 tokens", "264"], where=tokenizer_file)
    packed = tmp_path / "tok.bin.xz"
    packed.write_bytes(lzma.compress(tokenizer_file.read_bytes()[:-3]))
    refused(path, packed, tmp_path, ["not a llama2.c tokenizer"], where=packed)
