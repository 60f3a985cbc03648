"""Records to learn from, row by row: of files, a folder, a glob, or a data set of the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tiny_transformer.data.prepare.files import read_rows
from tiny_transformer.data.prepare.find import find_files, looks_like_hub_id
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage.reading import at_home
from tiny_transformer.tokenizers.published import hub_is_reachable


def records_of(source: str, tell: Callable[[str], None] | None = None) -> Iterator[tuple[str, Any]]:
    """Records with their places: of files, of a data set of the hub, or of a copy of one, a folder with its card.

    Args:
        source: where they are.
        tell: called with a sentence about what of a folder or pattern is read, and what is passed over.
    """
    here = at_home(source)
    if _has_card(here) or (not here.exists() and looks_like_hub_id(source)):
        yield from _hub_rows(str(here) if here.exists() else source)
        return
    found = find_files(source, only_rows=True)
    if tell is not None and found.note:
        tell(found.note)
    for path in found.paths:
        for line, row in read_rows(path):
            yield f"{path}, {'row' if path.suffix == '.parquet' else 'line'} {line}", row


def _has_card(path: Path) -> bool:
    """Whether a folder is laid out as the hub has it: the card says which files are for training."""
    try:
        with (path / "README.md").open(encoding="utf-8", errors="replace") as card:
            return card.readline(8).rstrip() == "---"
    except OSError:
        return False


def _hub_rows(name: str) -> Iterator[tuple[str, Any]]:
    """The rows of a data set's training split, which the package `datasets` keeps in its own cache."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{name} is read from the hub, which needs the package datasets", remedy="pip install datasets"
        ) from None
    if not Path(name).exists() and not _is_cached(name, datasets) and not hub_is_reachable():
        raise UserError(
            f"{name} is read from the Hugging Face hub, which cannot be reached (no network)",
            remedy="give a file of yours: --source FILE",
            exit_code=ExitCode.IO,
        )
    try:
        rows = datasets.load_dataset(name, split="train")
    except Exception as error:  # a dozen kinds for a hub that fails or refuses
        raise UserError(
            f"{name} cannot be read from the Hugging Face hub ({type(error).__name__})",
            remedy="check the name and the network, or give a file of yours: --source FILE",
            exit_code=ExitCode.IO,
        ) from None
    for number, row in enumerate(rows, start=1):
        yield f"{name}, row {number}", row


def _is_cached(name: str, datasets: Any) -> bool:
    """Whether `datasets` has read something of that owner before; its names of directories are its own affair."""
    return any(Path(datasets.config.HF_DATASETS_CACHE).glob(f"{name.partition('/')[0]}___*"))
