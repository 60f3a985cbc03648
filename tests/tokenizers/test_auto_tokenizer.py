"""What we save is opened by transformers' AutoTokenizer, in versions 4 and 5, with the same ids and text."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tiny_transformer.tokenizers import make_tokenizer

TEXT = "Once upon a time, a dog's 1234 bones weren't there. ✓ 😀\n\n  two  spaces , and\tDON'T !"

OPEN_WITH_TRANSFORMERS = """
import json, sys
from pathlib import Path
from transformers import AutoTokenizer

answers = {}
for directory in map(Path, sys.argv[2:]):
    for model_type in ("none", "qwen3", "llama"):  # a checkpoint's config.json must not change the tokenizer
        if model_type != "none":
            (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
        tokenizer = AutoTokenizer.from_pretrained(directory)
        encoded = tokenizer(sys.argv[1])
        assert set(encoded) == {"input_ids", "attention_mask"}, set(encoded)  # generate(**encoded) takes no others
        ids = encoded["input_ids"]
        answers[f"{directory.name} {model_type}"] = [ids, tokenizer.decode(ids), tokenizer.eos_token_id, len(tokenizer)]
print(json.dumps(answers))
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", ["5", "4.57"])
def test_auto_tokenizer_gives_the_same_ids_and_text(version, tmp_path, repository):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if version != "5":
        older = repository / ".cache" / f"transformers-{version}"
        if not (older / "transformers").is_dir():
            pytest.skip(f"needs transformers {version} in {older}")
        environment["PYTHONPATH"] = str(older)
    tokenizers = {kind: make_tokenizer(kind, texts=[TEXT * 9]) for kind in ("byte", "char", "bpe")}
    for kind, tokenizer in tokenizers.items():
        tokenizer.save(tmp_path / kind)
    command = [sys.executable, "-c", OPEN_WITH_TRANSFORMERS, TEXT, *(str(tmp_path / kind) for kind in tokenizers)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    answers = json.loads(result.stdout.splitlines()[-1])
    assert len(answers) == 9
    for key, answer in answers.items():
        tokenizer = tokenizers[key.split()[0]]
        assert answer == [tokenizer.encode(TEXT), TEXT, tokenizer.end_id, tokenizer.vocab_size]
