"""Making a tokenizer by name: byte, char or bpe for the text at hand, gpt2 or qwen3 as published, one on disk."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage.reading import at_home
from tiny_transformer.tokenizers.load import byte_level_content, load_tokenizer, tokenizer_content
from tiny_transformer.tokenizers.patterns import QWEN2_PATTERN, byte_characters
from tiny_transformer.tokenizers.published import PUBLISHED, download_tokenizer
from tiny_transformer.tokenizers.tokenizer import END_TOKEN, Tokenizer
from tiny_transformer.tokenizers.validate import library_errors

# Made from the text that is being prepared; the others are what they are.
TRAINED_KINDS = ("bpe", "char")
PIECE_CHARACTERS = 100_000
_LINE_BEFORE_LETTER = re.compile(r"\n(?=[^\W\d_])")
MIN_BPE_VOCAB = 256 + 1  # the bytes and the end token


def make_tokenizer(
    name: str, *, texts: Iterable[str] | None = None, vocab_size: int | None = None, text_bytes: int | None = None
) -> Tokenizer:
    """The tokenizer called `name`.

    Args:
        name: `byte`, `char`, `bpe`, `auto` (the same as `bpe`), `gpt2`, `qwen3`, `qwen2.5`, a directory or
            `tokenizer.json`, `bpe:DIRECTORY`, or a hub id `org/name`.
        texts: what `char` and `bpe` are made from; not looked at for the others.
        vocab_size: number of ids of `bpe`, the end token included; by default `choose_vocab_size` of the text.
        text_bytes: size of the whole text when `texts` is a sample of it; by default the size of `texts`.

    Raises:
        UserError: no such tokenizer, nothing to train on, no network, or a broken file.
    """
    kind, _, directory = name.partition(":")
    kind = "bpe" if kind == "auto" else kind
    if vocab_size is not None and kind != "bpe":
        raise UserError(
            f"vocab_size {vocab_size} does not apply to the {name} tokenizer",
            remedy="leave vocab_size out, or use --tokenizer bpe",
        )
    if kind == "byte" and not directory:
        return byte_tokenizer()
    if kind in TRAINED_KINDS and not directory:
        if texts is None:
            raise UserError(
                f"the {kind} tokenizer is made from text, and there is none here",
                remedy=f"give a directory that holds one, such as {kind}:DIRECTORY, or use byte",
            )
        return char_tokenizer(texts) if kind == "char" else _bpe_from(texts, vocab_size, text_bytes)
    if kind == "bpe" and vocab_size is not None:
        raise UserError(
            f"vocab_size {vocab_size} does not apply to {name}, which is trained already",
            remedy="leave vocab_size out, or use --tokenizer bpe",
        )
    path = at_home(directory or name)
    if path.exists():
        return load_tokenizer(path)
    if not directory and (name in PUBLISHED or _looks_like_hub_id(name)):
        return download_tokenizer(name)
    raise UserError(
        f"no tokenizer called {name}",
        remedy="use byte, char, bpe, gpt2, qwen3, or the path of a directory with tokenizer.json",
    )


def byte_tokenizer() -> Tokenizer:
    """256 byte tokens, id = byte value, and no merges: any text, the longest ids."""
    vocab = {character: byte for byte, character in enumerate(byte_characters())}
    return Tokenizer(byte_level_content(vocab, [], pattern=None), name="byte")


def char_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """One id per character of `texts`, in code-point order, then the end token.

    Our own `encode` refuses other characters. Programs that read the file put the end token in their place, which
    shows, where they would leave them out otherwise.
    """
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    if not characters:
        raise _no_text("char")
    vocab = {character: i for i, character in enumerate(sorted(characters))}
    content = tokenizer_content(
        model={"type": "BPE", "vocab": {**vocab, END_TOKEN: len(vocab)}, "merges": [], "unk_token": END_TOKEN},
        pre_tokenizer=None,
        decoder={"type": "Fuse"},
        end_id=len(vocab),
    )
    return Tokenizer(content, name="char")


def bpe_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE trained on `texts`, cut into words by Qwen2's expression; the end token has the last id.

    It may end with fewer than `vocab_size` ids: when no pair occurs twice, there is nothing left to merge.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, trainers

    if vocab_size < MIN_BPE_VOCAB:
        raise UserError(
            f"vocab_size {vocab_size} is too small for bpe",
            remedy=f"at least {MIN_BPE_VOCAB}: the 256 bytes and {END_TOKEN}",
        )
    untrained = byte_level_content({}, [], pattern=QWEN2_PATTERN)
    backend = Backend.from_str(json.dumps({**untrained, "added_tokens": []}))
    backend.model = models.BPE()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,
        initial_alphabet=byte_characters(),
        show_progress=False,
    )
    with library_errors("no BPE can be trained on this text"):
        backend.train_from_iterator(_pieces(texts), trainer)
    model = json.loads(backend.to_str())["model"]
    if not model["merges"]:
        raise _no_text("bpe")
    return Tokenizer(byte_level_content(model["vocab"], model["merges"], pattern=QWEN2_PATTERN), name="bpe")


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """Long texts in pieces, so that the threads that count words finish together (a book is a long last task).

    A piece ends with a line break before a letter: no word of Qwen2's expression goes across it, so the counts are the
    same.
    """
    for text in texts:
        start = 0
        while cut := _LINE_BEFORE_LETTER.search(text, start + PIECE_CHARACTERS):
            yield text[start : cut.end()]
            start = cut.end()
        yield text[start:]


def choose_vocab_size(text_bytes: int) -> int:
    """The BPE size for so much text: the power of two nearest to the square root of its bytes, from 512 to 32,768.

    So 1 MB gives 1,024, 16 MB gives 4,096 and 1 GB gives 32,768: each token is then seen often enough to be learnt, and
    the embedding stays a modest part of a model that such an amount of text can train.
    """
    exponent = round(math.log2(max(text_bytes, 1)) / 2)
    return 2 ** min(max(exponent, 9), 15)


def _bpe_from(texts: Iterable[str], vocab_size: int | None, text_bytes: int | None) -> Tokenizer:
    if vocab_size is None:
        if text_bytes is None:
            texts = list(texts)
            text_bytes = sum(len(text.encode("utf-8", errors="replace")) for text in texts)
        vocab_size = choose_vocab_size(text_bytes)
    return bpe_tokenizer(texts, vocab_size)


def _looks_like_hub_id(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(part and part.strip(".") for part in parts)


def _no_text(kind: str) -> UserError:
    return UserError(
        f"there is too little text to make a {kind} tokenizer from",
        remedy="give more text, or use --tokenizer byte",
        exit_code=ExitCode.BAD_DATA,
    )
