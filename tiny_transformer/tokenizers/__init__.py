"""From text to token ids and back: byte, character and trained BPE tokenizers, gpt2, qwen3, any Hugging Face tokenizer.

Every kind is one class, `Tokenizer`, whose content is a Hugging Face `tokenizer.json`: what we train with is what other
programs open. `make_tokenizer` builds one by name, `load_tokenizer` reads the one a directory holds.
"""

from tiny_transformer.tokenizers.documents import DocumentEncoder, EncodedDocuments
from tiny_transformer.tokenizers.load import load_tokenizer
from tiny_transformer.tokenizers.make import TRAINED_KINDS, choose_vocab_size, make_tokenizer
from tiny_transformer.tokenizers.streaming import StreamDecoder
from tiny_transformer.tokenizers.tokenizer import END_TOKEN, Tokenizer, tell_apart

__all__ = [
    "END_TOKEN",
    "TRAINED_KINDS",
    "DocumentEncoder",
    "EncodedDocuments",
    "StreamDecoder",
    "Tokenizer",
    "choose_vocab_size",
    "load_tokenizer",
    "make_tokenizer",
    "tell_apart",
]
