"""Documents streamed from data sets on the Hugging Face hub, through the `datasets` package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.tokenizers.published import hub_is_reachable

_OFFLINE_REMEDY = "use --source stories, which needs no network, or the path of a text file of yours"


@dataclass(frozen=True)
class HubSet:
    """A data set on the hub: where it is, which part of it, and which field holds the text.

    `intros_only` keeps of each text what stands before its first blank line.
    """

    repository: str
    config: str | None = None
    split: str = "train"
    text_field: str = "text"
    licence: str = "see the data set's page on the hub"
    intros_only: bool = False


_WIKIPEDIA_LICENCE = "CC BY-SA 3.0 and GFDL, by the authors of Wikipedia"
KNOWN_SETS = {
    "wikipedia": HubSet("wikimedia/wikipedia", "20231101.en", licence=_WIKIPEDIA_LICENCE),
    "wiki-intros": HubSet("wikimedia/wikipedia", "20231101.en", licence=_WIKIPEDIA_LICENCE, intros_only=True),
    "wiki-bookscorpus": HubSet("shahrukhx01/wikipedia-bookscorpus-en-preprocessed"),
    "tinystories": HubSet("roneneldan/TinyStories", licence="CDLA-Sharing-1.0, Ronen Eldan and Yuanzhi Li"),
}


def require_hub(hub_set: HubSet) -> None:
    """Refuse early, in one line, when the package or the network is missing."""
    try:
        import datasets  # noqa: F401
    except ImportError:
        raise UserError(
            f"the source {hub_set.repository} is read from the hub, which needs the package datasets",
            remedy=f"pip install 'tiny-transformer[hub]'; or {_OFFLINE_REMEDY}",
        ) from None
    if not hub_is_reachable():
        raise _unreachable(hub_set, "no network")


def read_documents(hub_set: HubSet) -> Iterator[str]:
    """The texts of a data set, in its order, without downloading the whole of it first."""
    import datasets

    try:
        rows = datasets.load_dataset(hub_set.repository, hub_set.config, split=hub_set.split, streaming=True)
        yield from (_text_of(row, hub_set) for row in rows)
    except UserError:
        raise
    except Exception as error:  # datasets and its file systems raise a dozen kinds for a hub that fails or refuses
        raise _unreachable(
            hub_set, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from None


def _text_of(row: dict[str, Any], hub_set: HubSet) -> str:
    text = row.get(hub_set.text_field)
    if not isinstance(text, str):
        names = ", ".join(name for name, value in row.items() if isinstance(value, str)) or "none"
        raise UserError(
            f"the rows of {hub_set.repository} have no text in the field {hub_set.text_field!r}",
            remedy=f"choose one with --text_field; fields that hold text: {names}",
            exit_code=ExitCode.BAD_DATA,
        )
    return text.split("\n\n", 1)[0] if hub_set.intros_only else text


def _unreachable(hub_set: HubSet, reason: str) -> UserError:
    return UserError(
        f"cannot read {hub_set.repository} from the Hugging Face hub ({reason})",
        remedy=_OFFLINE_REMEDY,
        exit_code=ExitCode.IO,
    )
