"""Import of a Hugging Face model directory: read, checked, and written as one of ours, in one file and with a manifest.

`load_model` opens such directories as they are; an import is for keeping one: sharded weights become one file, what is
not supported has been refused, and `tiny-transformer doctor` can later tell whether a byte has changed.
"""

from __future__ import annotations

from pathlib import Path

from tiny_transformer.config.decoder import TOKEN_IDS
from tiny_transformer.models import load_config, load_model, save_model
from tiny_transformer.models.config_file import end_token_ids, read_json
from tiny_transformer.storage.commit import publish
from tiny_transformer.tokenizers import load_tokenizer


def import_hf(source: Path | str, out_dir: Path | str) -> None:
    """Write a Hugging Face directory's model and tokenizer as a checkpoint, all or nothing.

    The data type is kept. A directory that was saved here comes out byte for byte the same.

    Args:
        source: config.json, safetensors (one file or shards with their index) and tokenizer.json.
        out_dir: a directory that does not exist yet.

    Raises:
        UserError: see `load_model` and `load_tokenizer`; or `out_dir` exists.
    """
    source = Path(source)
    load_config(source)  # told before the tokenizer and the weights are read
    tokenizer = load_tokenizer(source)
    model = load_model(source)
    hf = read_json(source / "config.json")
    token_ids = {name: hf[name] for name in TOKEN_IDS if hf.get(name) is not None}
    ends = end_token_ids(source)
    if ends:
        token_ids["eos_token_id"] = ends[0] if len(ends) == 1 and not isinstance(hf.get("eos_token_id"), list) else ends
    with publish(out_dir, info={"imported_from": source.absolute().name}) as staging:
        save_model(model, staging.path, **token_ids)
        tokenizer.save(staging.path)
