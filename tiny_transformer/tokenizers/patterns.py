"""What byte-level BPEs share: the expressions that cut a text into words, and the characters that stand for bytes.

An expression in a downloaded file may be written so that matching it takes exponential time, so only these are run.
Each is the published one, character for character; other programs name them by the model they came with.
"""

# Shared endings: numbers aside, the Qwen2 and Llama-3 expressions are one.
_CONTRACTIONS_AND_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKS_AND_BLANKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2_PATTERN = rf"{_CONTRACTIONS_AND_WORDS}|\p{{N}}|{_MARKS_AND_BLANKS}"
LLAMA3_PATTERN = rf"{_CONTRACTIONS_AND_WORDS}|\p{{N}}{{1,3}}|{_MARKS_AND_BLANKS}"

KNOWN_PATTERNS = frozenset(
    {
        GPT2_PATTERN,
        QWEN2_PATTERN,
        LLAMA3_PATTERN,
        r"\p{N}{1,3}",  # DeepSeek, OLMo: numbers in threes, before their word expression
        r"\p{N}",
        r"\d",
        r"\s+",
        r" {2,}",
    }
)


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in a byte-level BPE, by byte value (GPT-2's table).

    Bytes that print as Latin-1 stand for themselves; the others are numbered from U+0100 in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
