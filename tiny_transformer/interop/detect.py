"""What a file or directory from elsewhere is, told by looking at it: never by opening it with a library that runs code.

Pickles (`.pt`, `.pth`, `.ckpt`, `.pkl`, `pytorch_model.bin`) are programs: loading one does whatever its author wrote.
They are never read here; the message says how to convert one outside, where it is trusted.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from tiny_transformer.errors import ExitCode, UserError, command_line
from tiny_transformer.storage.marks import STEP_NAME

Kind = Literal["hf", "token_bins", "llama2c", "gguf"]

TOKEN_FILES = ("train.bin", "val.bin", "validation.bin")
_KINDS = "give a Hugging Face directory, a directory with train.bin and val.bin, a llama2.c .bin or a .gguf"
_PICKLED_SUFFIXES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npz")
# The first bytes: a zip archive (torch.save since 1.6), a pickle of protocol 2 and later.
_PICKLED_MAGIC = (b"PK\x03\x04", *(b"\x80" + bytes([protocol]) for protocol in range(2, 6)))
_OTHERS = {
    b"ggjt": ("a GGML file, older than GGUF", "take the Hugging Face directory it was made from"),
    b"ak42": ("a llama2.c file of version 1 or 2", "export version 0 with llama2.c's export.py"),
    b"\x89HDF": ("an HDF5 file (Keras)", "save it as a Hugging Face directory with safetensors"),
}


def kind_of(source: Path) -> Kind:
    """`hf`: a Hugging Face model directory; `token_bins`: a directory with train.bin; `llama2c`: a .bin or .bin.xz;
    `gguf`: a file that begins with these letters, whatever its name.

    Raises:
        UserError: nothing there, a pickle, or something that cannot be imported; says what it is and what to do.
    """
    if source.is_dir():
        if (source / "adapter_config.json").is_file() and not (source / "config.json").is_file():
            raise _adapter(source)
        if (source / "config.json").is_file():
            return "hf"
        if (source / "train.bin").is_file():
            return "token_bins"
        raise _no_directory_of_ours(source)
    if not source.exists():
        raise _absent(source)
    if not source.is_file():
        raise _unknown(source, "not a regular file")
    try:
        with source.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise UserError(f"cannot read {source}: {error.strerror}", exit_code=ExitCode.IO) from None
    if source.suffix.lower() == ".zip":
        raise _unknown(source, "a zip archive", remedy="unpack it, and import what is in it")
    if head.startswith(_PICKLED_MAGIC) or source.suffix in _PICKLED_SUFFIXES:
        raise _pickled(source)
    if head == b"GGUF":
        return "gguf"
    if head in _OTHERS:
        what, remedy = _OTHERS[head]
        raise UserError(f"{what} cannot be imported", where=str(source), remedy=remedy, exit_code=ExitCode.BAD_DATA)
    if source.suffix == ".safetensors":
        raise _unknown(source, "a file of weights without its config.json")
    if source.name in TOKEN_FILES:
        words = ("tiny-transformer", "import", source.parent, "--tokenizer", "gpt2", "--out_dir", "DIR")
        remedy = command_line(*words)
        raise UserError("token files are imported with their directory", where=str(source), remedy=remedy)
    if source.suffixes[-2:] == [".bin", ".xz"] or source.suffix == ".bin":
        return "llama2c"
    raise _unknown(source, "a file of a kind that is not known here")


def _no_directory_of_ours(source: Path) -> UserError:
    """What is wrong with a directory that is neither a model nor token files."""
    names = sorted(path.name for path in source.iterdir())
    for name in names:
        if Path(name).suffix in _PICKLED_SUFFIXES or name == "pytorch_model.bin":
            return _pickled(source / name)
    for name in ("config.json", "train.bin"):
        if name in names:
            return _unknown(source, f"a directory whose {name} is not a regular file")
    checkpoints = [name for name in names if STEP_NAME.fullmatch(name)]
    if checkpoints:
        best = next((mark for mark in ("best", "last") if mark in names), checkpoints[-1])
        remedy = f"name one: {command_line('tiny-transformer', 'import', source / best)} --out_dir DIR"
        return UserError("a run of several checkpoints cannot be imported as a whole", where=str(source), remedy=remedy)
    models = [name for name in names if name.endswith((".bin", ".bin.xz", ".gguf"))]
    if not models:
        return _unknown(source, "a directory with neither config.json nor train.bin")
    # The larger of a model and its tokenizer is the model.
    model = max(models, key=lambda name: (source / name).lstat().st_size)
    tokenizers = [name for name in models if name != model and not name.endswith(".gguf")]
    words: list[str | Path] = ["tiny-transformer", "import", source / model]
    if not model.endswith(".gguf"):
        words += ["--tokenizer", source / tokenizers[0] if tokenizers else "TOKENIZER.bin"]
    return UserError(
        "a folder of model files cannot be imported as a whole",
        where=str(source),
        remedy=f"name the file: {command_line(*words)} --out_dir DIR",
    )


def _absent(source: Path) -> UserError:
    """What to do about a name that is no path; a model of the hub, or its address, is not fetched."""
    at_hub = re.fullmatch(r"(?:(?:https?:/+)?huggingface\.co/|hf:/+)?([\w-][\w.-]*/([\w-][\w.-]*))/?", str(source))
    remedy = "name a file or a directory"
    if at_hub and not source.parent.is_dir() and source.suffix not in (".bin", ".gguf", ".xz", ".safetensors"):
        remedy += f"; for a model of the hub: hf download {at_hub[1]} --local-dir {at_hub[2]}, then import {at_hub[2]}"
    return UserError(f"{source} does not exist", remedy=remedy)


def _adapter(source: Path) -> UserError:
    return UserError(
        "an adapter of peft (adapter_config.json) is no model: it changes another one, its base",
        where=str(source),
        remedy="merge it into its base first, in peft: AutoPeftModelForCausalLM.from_pretrained(DIR)"
        ".merge_and_unload().save_pretrained(OUT), with the base's tokenizer beside it; then import OUT",
        exit_code=ExitCode.BAD_DATA,
    )


def _pickled(path: Path) -> UserError:
    return UserError(
        f"{path.name} is pickled, and pickles are never read here: loading one can run any program",
        where=str(path),
        remedy="where you trust it: load it with torch (weights_only=True), write it with safetensors.torch."
        "save_file; for Hugging Face models, from_pretrained(...).save_pretrained(...)",
        exit_code=ExitCode.BAD_DATA,
    )


def _unknown(path: Path, what: str, *, remedy: str = _KINDS) -> UserError:
    return UserError(
        f"{what} cannot be imported",
        where=str(path),
        remedy=remedy,
        exit_code=ExitCode.BAD_DATA,
    )
