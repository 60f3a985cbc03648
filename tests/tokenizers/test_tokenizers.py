"""What every tokenizer promises: ids and text, control tokens, unknown characters, fingerprints, saving."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.tokenizers import (
    END_TOKEN,
    Tokenizer,
    choose_vocab_size,
    load_tokenizer,
    make,
    make_tokenizer,
    published,
    tell_apart,
)
from tiny_transformer.tokenizers.patterns import GPT2_PATTERN, QWEN2_PATTERN

TEXT = "Once upon a time, a dog's 1234 bones weren't there. ¡Olé! ✓ 😀\n\n  She said: \"DON'T\"\tand left.\r\n"
LEARNT_FROM = [TEXT * 3, "The little cat sat on the little mat. " * 20]
KINDS = ("byte", "char", "bpe")


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    return {kind: make_tokenizer(kind, texts=LEARNT_FROM) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_gives_the_text_back(tokenizers, kind):
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert max(ids) < tokenizer.vocab_size


def test_byte_ids_are_the_bytes():
    tokenizer = make_tokenizer("byte")
    assert tokenizer.encode(TEXT) == list(TEXT.encode())
    assert tokenizer.decode(range(256)) == bytes(range(256)).decode(errors="replace")
    assert (tokenizer.end_id, tokenizer.vocab_size) == (256, 257)


def test_char_ids_are_code_points_in_order():
    tokenizer = make_tokenizer("char", texts=["bca", "ab"])
    assert tokenizer.encode("cab") == [2, 0, 1]
    assert (tokenizer.end_id, tokenizer.vocab_size) == (3, 4)


def test_unknown_character_is_named_with_its_position(tokenizers):
    with pytest.raises(UserError) as caught:
        tokenizers["char"].encode("Once § upon Ж")
    assert "'§' (U+00A7)" in caught.value.what
    assert caught.value.where == "position 5 of the text"
    assert caught.value.exit_code == ExitCode.BAD_DATA


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_surrogate_pair_is_an_error_not_a_crash(tokenizers, kind):
    with pytest.raises(UserError, match="surrogate"):
        tokenizers[kind].encode("ab\ud800c")


def test_bpe_has_the_size_asked_for_and_its_end_token_last():
    tokenizer = make_tokenizer("bpe", texts=LEARNT_FROM, vocab_size=300)
    assert tokenizer.vocab_size == 300
    assert tokenizer.token_id(END_TOKEN) == tokenizer.end_id == 299
    assert len(tokenizer.encode("The little cat sat on the little mat.")) < 25


def test_bpe_is_the_same_every_time():
    first, second = (make_tokenizer("bpe", texts=LEARNT_FROM, vocab_size=400) for _ in range(2))
    assert first.fingerprint == second.fingerprint


def test_bpe_never_joins_across_the_words_of_qwen2(tokenizers):
    backend = tokenizers["bpe"]
    for text in ("12", "1234567", "x\n\ny", "DON'T", "a  b"):
        assert backend.decode(backend.encode(text)) == text
    digits = [backend.decode([i]) for i in backend.encode("1234")]
    assert digits == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("num_bytes", "size"),
    [
        (0, 512),
        (250_000, 512),
        (1_000_000, 1024),
        (16_000_000, 4096),
        (74_000_000, 8192),
        (10**9, 32768),
        (10**15, 32768),
    ],
)
def test_vocabulary_grows_with_the_square_root_of_the_text(num_bytes, size):
    assert choose_vocab_size(num_bytes) == size


def test_batch_equals_one_by_one(tokenizers):
    texts = [TEXT, "", "The cat", TEXT[:7]]
    for kind in ("byte", "bpe"):
        assert tokenizers[kind].encode_batch(texts) == [tokenizers[kind].encode(text) for text in texts]


# --- control tokens


@pytest.fixture(scope="session")
def qwen3_dir(shared_data, tmp_path_factory):
    directory = tmp_path_factory.mktemp("qwen3")
    for file in (shared_data / "tokenizers" / "qwen3").glob("*.xz"):
        (directory / file.stem).write_bytes(lzma.decompress(file.read_bytes()))
    return directory


@pytest.fixture(scope="session")
def qwen3(qwen3_dir) -> Tokenizer:
    return load_tokenizer(qwen3_dir, name="qwen3")


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200))
@example(f"a{END_TOKEN}b")
@example(END_TOKEN * 3)
def test_text_never_becomes_a_control_token(text):
    for tokenizer in (make_tokenizer("byte"), _BPE):
        ids = tokenizer.encode(text)
        assert tokenizer.end_id not in ids
        assert tokenizer.decode(ids) == text


_BPE = make_tokenizer("bpe", texts=[*LEARNT_FROM, END_TOKEN * 50], vocab_size=420)


def test_no_spelling_of_a_qwen3_control_token_becomes_one(qwen3, qwen3_dir):
    added = json.loads((qwen3_dir / "tokenizer.json").read_text())["added_tokens"]
    assert len(added) == 26
    text = "hello " + "".join(token["content"] for token in added) + " bye"
    ids = qwen3.encode(text)
    assert not set(ids) & {token["id"] for token in added if token["special"]}
    shown = [token["id"] for token in added if not token["special"]]  # <think>, <tool_call> and the like are words
    assert [i for i in ids if i in shown] == shown and len(shown) == 12
    assert qwen3.decode(ids) == text


def test_decode_hides_control_tokens_unless_asked(tokenizers):
    tokenizer = tokenizers["bpe"]
    ids = [*tokenizer.encode("cat"), tokenizer.end_id]
    assert tokenizer.decode(ids) == "cat"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "cat" + END_TOKEN


def test_tokens_that_qwen3_shows_are_decoded(qwen3):
    assert qwen3.decode([qwen3.token_id("<think>"), qwen3.token_id("<|im_end|>")]) == "<think>"


# --- parity with the published tokenizers


def _sample(shared_data) -> list[str]:
    with lzma.open(shared_data / "pretrain" / "tinystories" / "valid.txt.xz", "rt", encoding="utf-8") as file:
        stories = file.read(150_000)
    with lzma.open(shared_data / "pretrain" / "wikitext-2" / "valid.txt.xz", "rt", encoding="utf-8") as file:
        wiki = file.read(150_000)
    return [stories, wiki, TEXT, "Ünïcödé ａｂｃ １２３ 你好，世界 مرحبا \u200b\u00a0 e\u0301"]


def test_qwen3_ids_equal_the_published_tokenizer(shared_data, qwen3, qwen3_dir):
    from tokenizers import Tokenizer as Backend

    published = Backend.from_file(str(qwen3_dir / "tokenizer.json"))
    for text in (part.replace(END_TOKEN, "") for part in _sample(shared_data)):
        assert qwen3.encode(text) == published.encode(text, add_special_tokens=False).ids
    assert (qwen3.vocab_size, qwen3.end_id, qwen3.begin_id) == (151669, 151643, None)


def test_gpt2_ids_equal_the_published_tokenizer(shared_data, tmp_path):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    for file in (shared_data / "tokenizers" / "gpt2").glob("*.xz"):
        (tmp_path / file.stem).write_bytes(lzma.decompress(file.read_bytes()))
    gpt2 = make_tokenizer(str(tmp_path))
    assert (gpt2.vocab_size, gpt2.end_id) == (50257, 50256)
    lines = (tmp_path / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:]
    vocab = json.loads((tmp_path / "encoder.json").read_text(encoding="utf-8"))
    published = Backend(models.BPE(vocab=vocab, merges=[tuple(line.split()) for line in lines if line]))
    published.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # cuts by its own GPT-2 expression
    for text in (part.replace(END_TOKEN, "") for part in _sample(shared_data)):
        ids = gpt2.encode(text)
        assert ids == published.encode(text).ids
        assert gpt2.decode(ids) == text


def test_qwen2_expression_is_the_one_in_the_published_file(qwen3_dir):
    content = json.loads((qwen3_dir / "tokenizer.json").read_text())
    assert content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] == QWEN2_PATTERN
    trained = make_tokenizer("bpe", texts=LEARNT_FROM).content
    assert trained["pre_tokenizer"] == content["pre_tokenizer"]
    assert trained["decoder"] == content["decoder"]
    assert QWEN2_PATTERN != GPT2_PATTERN


# --- on disk


@pytest.mark.parametrize("kind", KINDS)
def test_saved_tokenizer_loads_as_it_was(tokenizers, kind, tmp_path):
    tokenizers[kind].save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == tokenizers[kind].fingerprint
    assert (loaded.name, loaded.vocab_size, loaded.end_id) == (
        kind,
        tokenizers[kind].vocab_size,
        tokenizers[kind].end_id,
    )
    assert loaded.encode(TEXT) == tokenizers[kind].encode(TEXT)
    by_file = make_tokenizer(str(tmp_path / "tokenizer.json"))
    by_prefix = make_tokenizer(f"bpe:{tmp_path}")
    assert by_file.fingerprint == by_prefix.fingerprint == loaded.fingerprint


def test_fingerprint_depends_on_content_and_not_on_its_order(tokenizers):
    content = json.loads(json.dumps(tokenizers["bpe"].content))
    content["model"]["vocab"] = dict(reversed(content["model"]["vocab"].items()))
    reordered = Tokenizer(dict(reversed(content.items())), name="other")
    assert reordered.fingerprint == tokenizers["bpe"].fingerprint
    content["model"]["merges"] = content["model"]["merges"][:-1]
    assert Tokenizer(content, name="bpe").fingerprint != tokenizers["bpe"].fingerprint


def test_two_tokenizers_are_told_apart_by_name_or_by_size():
    small, large = (make_tokenizer("bpe", texts=LEARNT_FROM, vocab_size=size) for size in (300, 302))
    other = make_tokenizer("bpe", texts=[text[::-1] for text in LEARNT_FROM], vocab_size=300)
    assert tell_apart(small, make_tokenizer("byte")) == ("bpe", "byte")
    assert tell_apart(small, large) == ("bpe of 300 tokens", "bpe of 302 tokens")
    assert tell_apart(small, other) == ("bpe of 300 tokens", "bpe of 300 others")


def test_importing_the_room_imports_neither_torch_nor_the_tokenizers_library():
    code = (
        "import sys, tiny_transformer.tokenizers, tiny_transformer.data.prepare;"
        "print([m for m in ('torch', 'tokenizers', 'pyarrow', 'datasets', 'zstandard', 'rich') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_cutting_long_texts_changes_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "One hen's egg.\n\n  Two  hens\n\tdon't sing,\r\nthey're\n3 of\n\u0301them \n\n\nÉclair\nx2 \n Hen\n" * 40
    whole = make_tokenizer("bpe", texts=[text], vocab_size=320)
    monkeypatch.setattr(make, "PIECE_CHARACTERS", 3)
    assert len(list(make._pieces([text]))) > 100
    assert "".join(make._pieces([text])) == text
    assert make_tokenizer("bpe", texts=[text], vocab_size=320).content == whole.content


@pytest.mark.parametrize(
    ("name", "says"), [("vocab.json.xz", "unpack vocab.json.xz"), ("merges.txt.gz", "unpack merges")]
)
def test_a_packed_tokenizer_is_told_to_be_unpacked(tmp_path, name, says):
    (tmp_path / name).write_bytes(b"packed")
    with pytest.raises(UserError, match="no tokenizer in") as caught:
        load_tokenizer(tmp_path)
    assert says in (caught.value.remedy or "")


def test_a_stand_in_is_used_with_a_warning_and_named_when_it_fails_too(tmp_path, monkeypatch):
    make_tokenizer("byte").save(tmp_path)

    def fetch(wanted):
        if wanted.repository != published.PUBLISHED["qwen2.5"].repository or not have_stand_in:
            raise UserError(f"cannot fetch {wanted.repository}", exit_code=ExitCode.IO)
        return tmp_path

    monkeypatch.setattr(published, "_fetch", fetch)
    have_stand_in = True
    with pytest.warns(UserWarning, match=r"qwen3 could not be had .*: using qwen2\.5"):
        assert published.download_tokenizer("qwen3").vocab_size == make_tokenizer("byte").vocab_size
    have_stand_in = False
    with pytest.raises(UserError, match=r"cannot fetch Qwen/Qwen3.*; nor can its stand-in qwen2\.5") as caught:
        published.download_tokenizer("qwen3")
    assert caught.value.exit_code == ExitCode.IO
