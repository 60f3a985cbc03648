"""Decoding one id at a time, for output that appears while it is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"


class Decodes(Protocol):
    """What a tokenizer must offer to decode one id at a time."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids."""
        ...

    def is_special(self, token_id: int) -> bool:
        """Whether an id stands for no text."""
        ...

    def is_byte_piece(self, token_id: int) -> bool:
        """Whether an id stands for a single byte of a character."""
        ...


class StreamDecoder:
    """Gives the text of a growing list of ids piece by piece: the pieces joined are `decode` of the whole list.

    A token may end inside a character, and some decoders treat the first token of a text in a special way (they drop
    its leading space). So each new token is decoded together with the ids whose text was given last, and only what is
    new is given; what may still change, the end of an unfinished character, is held back.
    """

    def __init__(self, tokenizer: Decodes) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # what the last piece came from, then what has come since
        self._num_context = 0  # how many of them belong to the last piece
        self._given = ""  # the text of `_ids` that has been given already

    def push(self, token_id: int) -> str:
        """The text that is certain after this id; often empty in the middle of a character."""
        if self._tokenizer.is_special(token_id):
            return ""
        self._ids.append(token_id)
        if self._tokenizer.is_byte_piece(token_id):
            return ""  # a run of byte pieces is decoded as one: its text is certain when it ends
        text = self._tokenizer.decode(self._ids)
        certain = text[:-1] if text.endswith(REPLACEMENT) else text
        piece = certain[len(self._given) :]
        if certain == text and piece:
            self._ids = self._ids[self._num_context :]
            self._num_context = len(self._ids)
            self._given = self._tokenizer.decode(self._ids)
        else:
            self._given += piece
        return piece

    def finish(self) -> str:
        """What was held back: an unfinished character comes out as U+FFFD, as `decode` would have it."""
        piece = self._tokenizer.decode(self._ids)[len(self._given) :]
        self._ids, self._num_context, self._given = [], 0, ""
        return piece
