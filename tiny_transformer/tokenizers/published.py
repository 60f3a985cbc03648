"""Tokenizers fetched from the Hugging Face hub by name, checked against the hashes of the published files."""

from __future__ import annotations

import hashlib
import os
import socket
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.tokenizers.load import load_tokenizer
from tiny_transformer.tokenizers.tokenizer import CONFIG_FILE, TOKENIZER_FILE, Tokenizer


@dataclass(frozen=True)
class Published:
    """Where a tokenizer stands on the hub: file names with their SHA-256 (None: not known), and what may stand in."""

    repository: str
    files: dict[str, str | None] = field(default_factory=lambda: {TOKENIZER_FILE: None, CONFIG_FILE: None})
    fallback: str | None = None


PUBLISHED = {
    "gpt2": Published(
        "openai-community/gpt2",
        {
            "vocab.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
            "merges.txt": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        },
    ),
    "qwen3": Published(
        "Qwen/Qwen3-0.6B",
        {TOKENIZER_FILE: "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4", CONFIG_FILE: None},
        fallback="qwen2.5",
    ),
    "qwen2.5": Published("Qwen/Qwen2.5-0.5B"),
}


def download_tokenizer(name: str) -> Tokenizer:
    """A published tokenizer by its short name, or that of any hub repository `org/name`; cached by huggingface_hub.

    When a name has a stand-in and cannot be had itself, the stand-in is used and a warning says so.

    Raises:
        UserError: huggingface_hub is missing, the hub cannot be reached, or a file is not the published one.
    """
    wanted = PUBLISHED.get(name) or Published(name)
    try:
        directory = _fetch(wanted)
    except UserError as error:
        if wanted.fallback is None:
            raise
        try:
            tokenizer = download_tokenizer(wanted.fallback)
        except UserError:
            what = f"{error.what}; nor can its stand-in {wanted.fallback}"
            raise UserError(what, where=error.where, remedy=error.remedy, exit_code=error.exit_code) from None
        warnings.warn(f"{name} could not be had ({error.what}): using {wanted.fallback}", stacklevel=2)
        return tokenizer
    return load_tokenizer(directory, name=name)


def hub_is_reachable(timeout_seconds: float = 3.0) -> bool:
    """Whether a connection to the hub opens; the hub's own client tries for half a minute before it gives up."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # the proxy knows; its client will say
    address = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname, port), timeout=timeout_seconds).close()
    except OSError:
        return False
    return True


def _fetch(wanted: Published) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise UserError(
            f"fetching {wanted.repository} needs the package huggingface_hub",
            remedy="pip install huggingface_hub, or use --tokenizer bpe or a local directory",
        ) from None
    offline = not hub_is_reachable()  # then files fetched earlier still serve
    paths = []
    for file_name, sha256 in wanted.files.items():
        try:
            path = Path(hf_hub_download(wanted.repository, file_name, local_files_only=offline))
        except Exception as error:  # no network, no such repository, a refusal: huggingface_hub has a class for each
            reason = "no network, and not fetched before" if offline else type(error).__name__
            raise UserError(
                f"cannot fetch the tokenizer {wanted.repository} from the hub ({reason})",
                where=f"{wanted.repository}/{file_name}",
                remedy="use --tokenizer bpe (needs no network), or the path of a directory with tokenizer.json",
                exit_code=ExitCode.IO,
            ) from None
        if sha256 and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise UserError(
                f"the file fetched from {wanted.repository} is not the published one (SHA-256 differs)",
                where=str(path),
                remedy="delete the file and try again",
                exit_code=ExitCode.BAD_DATA,
            )
        paths.append(path)
    return paths[0].parent
