"""The tokenizer files of llama2.c: SentencePiece pieces with scores, in a flat binary file.

Such a tokenizer always joins the two neighbours whose union has the best score. A byte-level BPE states the same as a
list of merges, best first: each way to cut a piece in two is one merge. So it becomes an ordinary `tokenizer.json`,
with the bytes of unknown characters as pieces `<0xNN>`, one space put before each text, and a begin token.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.tokenizers.load import MAX_FILE_BYTES
from tiny_transformer.tokenizers.tokenizer import Tokenizer

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"  # ids 0, 1, 2
FIRST_BYTE_ID, FIRST_PIECE_ID = 3, 259


def load_llama2c_tokenizer(path: str | Path, *, name: str | None = None) -> Tokenizer:
    """The tokenizer in a llama2.c file: int32 longest length, then per piece float32 score, int32 length, bytes.

    Ids: 0 unknown, 1 begin, 2 end, 3 to 258 the bytes, then the pieces.

    Raises:
        UserError: the file is too large, or not such a file.
    """
    path = Path(path)
    size = path.stat().st_size
    data = path.read_bytes() if size <= MAX_FILE_BYTES else b""
    scored: list[tuple[float, str]] = []
    offset = 4
    try:
        while offset < len(data):
            score, length = struct.unpack_from("<fi", data, offset)
            piece = data[offset + 8 : offset + 8 + length]
            if length < 0 or len(piece) != length:
                raise ValueError("a piece is longer than the file")
            scored.append((score, piece.decode("utf-8")))
            offset += 8 + length
        if len(scored) <= FIRST_PIECE_ID:
            raise ValueError("it has no pieces beyond the bytes")
    except (struct.error, ValueError) as error:
        raise UserError(
            f"not a llama2.c tokenizer: {error}",
            where=f"{path}, byte {offset:,}",
            remedy="fetch the file again",
            exit_code=ExitCode.BAD_DATA,
        ) from None
    return Tokenizer(content_of_pieces(scored), name=name or str(path))


def content_of_pieces(scored: list[tuple[float, str]]) -> dict[str, Any]:
    """`tokenizer.json` content from (score, piece) by id; the first 259 are the control tokens and the bytes."""
    pieces = [UNKNOWN, BEGIN, END, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [piece for _, piece in scored[FIRST_PIECE_ID:]]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    joined = {piece: score for score, piece in scored[FIRST_PIECE_ID:]}
    merges = [
        [piece[:cut], piece[cut:]]
        for piece in sorted(joined, key=joined.__getitem__, reverse=True)
        for cut in range(1, len(piece))
        if piece[:cut] in joined and piece[cut:] in joined
    ]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    template: list[dict] = [{"SpecialToken": {"id": BEGIN, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **flags, "special": True} for i, token in enumerate((UNKNOWN, BEGIN, END))
        ],
        "normalizer": {"type": "Prepend", "prepend": " "},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": template,
            "pair": [*template, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {BEGIN: {"id": BEGIN, "ids": [1], "tokens": [BEGIN]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": UNKNOWN,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }
