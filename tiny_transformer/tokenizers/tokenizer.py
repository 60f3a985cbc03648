"""The one tokenizer class: a Hugging Face tokenizer, plus the promises that training and generation need.

The promises: text never becomes a control token (words added to a vocabulary without being control tokens are text,
and encode as the file says), a character outside the vocabulary is an error with its place and never a silent gap, the
content has a fingerprint, and what is saved is opened by other programs as it is, with the same ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage.commit import Staging, write_into
from tiny_transformer.tokenizers.documents import DocumentEncoder, plain_encoder
from tiny_transformer.tokenizers.fast import fast_encoder
from tiny_transformer.tokenizers.streaming import StreamDecoder
from tiny_transformer.tokenizers.validate import library_errors

if TYPE_CHECKING:
    import tokenizers

END_TOKEN = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
# The parts of tokenizer.json that decide which ids a text gets and which text ids give.
CONTENT_KEYS = ("added_tokens", "decoder", "model", "normalizer", "post_processor", "pre_tokenizer")
# What other tokenizers call the token after a document, looked for when there is no `<|endoftext|>`.
OTHER_END_TOKENS = ("</s>", "<|end_of_text|>", "<eos>", "<｜end▁of▁sentence｜>")


class Tokenizer:
    """Text to ids and back.

    `name`, `content`, `vocab_size` (the highest id + 1), `end_id` (what ends a document) and `begin_id` (what the
    tokenizer itself puts before a text, or None) are attributes.

    Args:
        content: a parsed `tokenizer.json`.
        name: what the user asked for (`bpe`, `qwen3`, a path); shown, and kept in `meta.json`.
        config: a parsed `tokenizer_config.json`, saved again as it came; one is written when there was none.

    Raises:
        UserError: the content is not a tokenizer, or it has no token to end a document with.
    """

    def __init__(self, content: dict[str, Any], *, name: str, config: dict[str, Any] | None = None) -> None:
        self.name, self.content, self._config = name, content, dict(config or {})
        self._backend = _build_backend(content, name)
        self._ids = self._backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self._ids.values()) + 1
        added = content.get("added_tokens") or []
        self._special_ids = frozenset(token["id"] for token in added if token["special"])
        self.end_id = self._find_end_id()
        self.begin_id = self._find_begin_id()
        self._characters = _characters_of(content)

    def __repr__(self) -> str:
        return f"Tokenizer({self.name!r}, vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]!r})"

    @property
    def pad_id(self) -> int | None:
        """The id that other programs fill short rows with, as `tokenizer_config.json` names it."""
        return self._ids.get(_spelling(self._config.get("pad_token")))

    def token_id(self, token: str) -> int | None:
        """The id of one token by its spelling, control tokens included; None when there is no such token."""
        return self._ids.get(token)

    def spelling(self, token_id: int) -> str:
        """How a token is written in the vocabulary; "" where there is no such id."""
        return self._backend.id_to_token(token_id) or ""

    def with_control_tokens(self, spellings: Sequence[str]) -> Tokenizer:
        """The same tokenizer, which knows these control tokens too; new ones get the ids after the highest.

        A chat template of its own is forgotten, as another one is about to be saved beside it.

        Raises:
            UserError: one of them is a word already: text could become a control token.
        """
        words = [token for token in spellings if token in self._ids and self._ids[token] not in self._special_ids]
        if words:
            raise UserError(
                f"{words[0]} is an ordinary word of the tokenizer {self.name}, so text would become a control token",
                remedy="another --template",
                exit_code=ExitCode.BAD_DATA,
            )
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        new = [token for token in dict.fromkeys(spellings) if token not in self._ids]
        added = [
            {"id": self.vocab_size + place, "content": token, **flags, "special": True}
            for place, token in enumerate(new)
        ]
        content = {**self.content, "added_tokens": [*(self.content.get("added_tokens") or []), *added]}
        config = {key: value for key, value in self._config.items() if key != "chat_template"}
        return Tokenizer(content, name=self.name, config=config)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Ids of `text`; the spelling of a control token is encoded as plain text.

        Args:
            text: what is encoded.
            add_special_tokens: put the begin token first, where this tokenizer has one. An end token is never added.

        Raises:
            UserError: `text` has a character that the vocabulary lacks (it names the character and its position), or
                half of a surrogate pair.
        """
        begin = [self.begin_id] if add_special_tokens and self.begin_id is not None else []
        return begin + self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of every text, on all cores; the same as `encode` one by one."""
        for text in texts:
            self._check_characters(text)
        with library_errors(f"the tokenizer {self.name} cannot encode this text"):
            return [e.ids for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def document_encoder(self) -> DocumentEncoder:
        """What turns many documents into ids at once, begin and end tokens in place; several threads may call it.

        It is tiktoken where that is installed and gives the same ids, else the `tokenizers` library.
        """
        slow = plain_encoder(self)
        if self.begin_id is not None:
            return slow
        with library_errors(f"the tokenizer {self.name} cannot encode its own tokens"):
            return fast_encoder(self.content, self._backend, end_id=self.end_id, slow=slow) or slow

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`. Bytes that are not UTF-8 become U+FFFD; control tokens are left out unless asked for."""
        if skip_special_tokens:
            ids = (i for i in ids if i not in self._special_ids)
        with library_errors(f"the tokenizer {self.name} cannot decode these ids"):
            return self._backend.decode(list(ids), skip_special_tokens=False)

    def stream_decoder(self) -> StreamDecoder:
        """A decoder that takes one id at a time and never gives half a character."""
        return StreamDecoder(self)

    def is_special(self, token_id: int) -> bool:
        """Whether the id is a control token (hidden by `decode`)."""
        return token_id in self._special_ids

    def is_byte_piece(self, token_id: int) -> bool:
        """Whether the id is a byte-fallback piece `<0xNN>`, of which several make one character."""
        if not self.content["model"].get("byte_fallback"):
            return False
        token = self.spelling(token_id)
        return len(token) == 6 and token.startswith("<0x") and token.endswith(">")

    @property
    def chat_template(self) -> str | None:
        """The chat template (Jinja) of `tokenizer_config.json`, the default one where it has several; None: none."""
        template = self._config.get("chat_template")
        named = template if isinstance(template, list) else []
        texts = [t.get("template") for t in named if isinstance(t, dict) and t.get("name") == "default"]
        template = texts[0] if texts else template
        return template if isinstance(template, str) else None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides ids and text; equal content in another order is equal."""
        content = {key: self.content.get(key) for key in CONTENT_KEYS}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def writes_texts_as(self, other: Tokenizer) -> bool:
        """Whether every text gets the same ids as from another tokenizer, and ends the same: this one is equal, or it
        knows more control tokens, which no text can become."""
        own, theirs = (t.content.get("added_tokens") or [] for t in (self, other))
        more = [token for token in own if token not in theirs]
        return (
            all(self.content.get(key) == other.content.get(key) for key in CONTENT_KEYS if key != "added_tokens")
            and all(token in own for token in theirs)
            and all(token["special"] for token in more)
            and (self.end_id, self.begin_id) == (other.end_id, other.begin_id)
        )

    def save(
        self, directory: Staging | Path | str, *, max_length: int | None = None, end_ids: Sequence[int] = ()
    ) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, which transformers' AutoTokenizer opens as they are.

        Args:
            directory: made where it is missing.
            max_length: the model's context: `model_max_length`, to which other programs cut, is no more than this.
            end_ids: the ids at which the model's texts end. An `eos_token` that is none of them, and that no text was
                trained to end with, gives way to the first. Absent: `end_id`.
        """
        if not isinstance(directory, Staging):
            Path(directory).mkdir(parents=True, exist_ok=True)
        for file_name, text in self.files(max_length, end_ids).items():
            write_into(directory, file_name, text)

    def files(self, max_length: int | None = None, end_ids: Sequence[int] = ()) -> dict[str, str]:
        """What `save` writes: the text of each file."""
        config = self._config_to_save(max_length, end_ids or (self.end_id,))
        contents = {TOKENIZER_FILE: self.content, CONFIG_FILE: config}
        return {name: json.dumps(value, ensure_ascii=False, indent=1) + "\n" for name, value in contents.items()}

    def _config_to_save(self, max_length: int | None, end_ids: Sequence[int]) -> dict[str, Any]:
        """`tokenizer_config.json`: what it said when it was read, and what other programs need besides."""
        end = self._backend.id_to_token(self.end_id)
        begin = end if self.begin_id is None else self._backend.id_to_token(self.begin_id)
        config = {
            "eos_token": end,
            "pad_token": end,
            # transformers 4 adds token_type_ids otherwise, which generate() refuses.
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
            "tiny_transformer_name": self.name,
            **self._config,
            # The class that takes tokenizer.json at its word, in transformers 4 and 5 alike. Others build their own
            # normalizer: 5's LlamaTokenizer gives other ids than 4's where a text begins with a space.
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        if "bos_token" not in self._config:  # ours: ctranslate2 opens no model without; ids stay what they are
            config |= {"bos_token": begin, "unk_token": self.content["model"].get("unk_token") or end}
        if self._ids.get(_spelling(config["eos_token"])) not in end_ids:
            config["eos_token"] = self._backend.id_to_token(end_ids[0])
        declared = config.get("model_max_length")
        if max_length is not None and not (isinstance(declared, int | float) and 0 < declared <= max_length):
            config["model_max_length"] = max_length
        return config

    def _find_end_id(self) -> int:
        declared = _spelling(self._config.get("eos_token"))
        for token in (END_TOKEN, declared, *OTHER_END_TOKENS):
            if isinstance(token, str) and token in self._ids:
                return self._ids[token]
        raise UserError(
            f"the tokenizer {self.name} has no token that ends a document",
            where=TOKENIZER_FILE,
            remedy=f"name one as eos_token in {CONFIG_FILE}, or add {END_TOKEN} to its added_tokens",
            exit_code=ExitCode.BAD_DATA,
        )

    def _find_begin_id(self) -> int | None:
        """The id that the tokenizer's own template puts before a text, if it does; it may be the end token's."""
        waiting = [self.content.get("post_processor") or {}]
        while waiting:
            step = waiting.pop()  # of several steps the last works on what the others made: its token stands first
            waiting += step.get("processors") or []
            if step.get("type") in ("BertProcessing", "RobertaProcessing"):
                return self._ids.get(step["cls"][0])
            first = (step.get("single") or [{}])[0]
            if isinstance(first, dict) and "SpecialToken" in first:
                return step["special_tokens"][first["SpecialToken"]["id"]]["ids"][0]
        return None

    def _check_characters(self, text: str) -> None:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(
                f"the text has half of a surrogate pair (U+{ord(text[error.start]):04X}), which is no character",
                where=f"position {error.start} of the text",
                remedy="save the text as UTF-8 and try again",
                exit_code=ExitCode.BAD_DATA,
            ) from None
        if self._characters is None:
            return
        unknown = set(text) - self._characters
        if unknown:
            position = min(text.index(character) for character in unknown)
            raise UserError(
                f"the character {text[position]!r} (U+{ord(text[position]):04X}) is not in the vocabulary of the "
                f"{self.name} tokenizer",
                where=f"position {position} of the text",
                remedy=f"leave it out; the {len(self._characters)} characters known are those of the training text",
                exit_code=ExitCode.BAD_DATA,
            )


def _build_backend(content: dict[str, Any], name: str) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Backend

    with library_errors(f"the tokenizer {name} cannot be built", TOKENIZER_FILE):
        backend = Backend.from_str(json.dumps(content))
    backend.no_truncation()
    backend.no_padding()
    # Tokens marked special are never found in a text; other added words are, as the file's flags for them say.
    backend.encode_special_tokens = True
    return backend


def tell_apart(one: Tokenizer, other: Tokenizer) -> tuple[str, str]:
    """How a message calls two different tokenizers: by their names, and by their sizes where the names are equal."""
    if one.name != other.name:
        return one.name, other.name
    which = "others" if one.vocab_size == other.vocab_size else "tokens"
    return f"{one.name} of {one.vocab_size:,} tokens", f"{other.name} of {other.vocab_size:,} {which}"


def _characters_of(content: dict[str, Any]) -> frozenset[str] | None:
    """All characters a text may hold, when the model drops or replaces others (a character vocabulary); else None."""
    model = content["model"]
    whole_text = content.get("pre_tokenizer") is None and content.get("normalizer") is None
    changes_others = model.get("unk_token") in (None, END_TOKEN)
    if model.get("type") == "BPE" and whole_text and not model["merges"] and changes_others:
        return frozenset(token for token in model["vocab"] if len(token) == 1)
    return None


def _spelling(token: Any) -> Any:
    """A token of `tokenizer_config.json`, which may stand there with its flags."""
    return token.get("content") if isinstance(token, dict) else token
