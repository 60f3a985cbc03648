"""The split expressions we know: what cuts a text into words before a byte-level BPE sees it.

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
