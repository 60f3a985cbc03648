"""Opens model directories in whichever transformers is found, as its users would, and notes what it says.

`python open_in_transformers.py ROOT` for a version beside the environment; `open_all` for the one that is installed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

PROMPT, NEW_TOKENS = "Once upon a time", 20


def open_all(transformers: Any, root: Path) -> dict[str, tuple[torch.Tensor, list[int], str]]:
    """For every directory under `root`: logits of the whole greedy text, its ids, and the words after the prompt.

    The text is written by the version's own code. For the logits its delta rule is replaced by an exact one: its own
    keeps four digits (see `exact_delta_rule`).
    """
    from exact_delta_rule import exact_chunk_rule, replacements

    found = {}
    for directory in sorted(path for path in root.iterdir() if path.is_dir()):
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        model, report = transformers.AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
        assert not any(report.values()), (directory.name, report)
        model = model.float().eval()
        inputs = tokenizer(PROMPT, return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0)
        kept = [(module, rule, getattr(module, rule)) for module, rule in replacements(transformers)]
        try:
            for module, rule, _ in kept:
                setattr(module, rule, exact_chunk_rule)
            with torch.inference_mode():
                logits = model(ids).logits[0].contiguous()
        finally:
            for module, rule, theirs in kept:
                setattr(module, rule, theirs)
        words = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        found[directory.name] = (logits, ids[0].tolist(), words)
    return found


if __name__ == "__main__":
    import transformers

    assert transformers.__version__.startswith("4.57"), transformers.__version__
    transformers.utils.logging.set_verbosity_error()
    folder = Path(sys.argv[1])
    answers = open_all(transformers, folder)
    save_file({name: logits for name, (logits, _, _) in answers.items()}, folder / "logits.safetensors")
    texts = {name: (ids, words) for name, (_, ids, words) in answers.items()}
    (folder / "texts.json").write_text(json.dumps(texts))
