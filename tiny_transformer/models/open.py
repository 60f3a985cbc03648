"""A checkpoint, opened in one place: model, tokenizer, end ids, chat template, the config of its run.

Whoever needs a trained model begins here: `open_checkpoint("demo").model`.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tiny_transformer.config.load import load_run_config
from tiny_transformer.config.schema import RunConfig
from tiny_transformer.errors import ExitCode, UserError, plain
from tiny_transformer.hardware import choose_hardware
from tiny_transformer.models import load_config, load_model
from tiny_transformer.models.config_file import end_token_ids, read_small_file
from tiny_transformer.models.find import find_checkpoint
from tiny_transformer.storage.runs import CONFIG_FILE
from tiny_transformer.tokenizers import Tokenizer, load_tokenizer, make_tokenizer
from tiny_transformer.tokenizers.load import CHAT_TEMPLATE

if TYPE_CHECKING:
    import torch

    from tiny_transformer.config.shapes import ModelConfig
    from tiny_transformer.models.contract import CausalLM


class OpenCheckpoint:
    """What stands in a checkpoint directory. Each part is read, and refused, when it is first asked for.

    Args:
        path: a Hugging Face model directory, of a run or from elsewhere.
        sentence: how it was chosen, for the user.
        device: of the weights: `auto`, `cpu`, `cuda` or `mps`.
        dtype: of the weights; None keeps the files'.
    """

    def __init__(
        self, path: Path, sentence: str = "", *, device: str = "cpu", dtype: torch.dtype | None = None
    ) -> None:
        self.path, self._sentence = path, sentence
        self._device, self._dtype = device, dtype

    @property
    def sentence(self) -> str:
        """How the checkpoint was chosen, to be shown: nothing in it that a terminal obeys."""
        return plain(self._sentence or f"using {self.path}")

    @cached_property
    def config(self) -> ModelConfig:
        """The model's shape. Errors: see `load_config`."""
        return load_config(self.path)

    @cached_property
    def model(self) -> CausalLM:
        """The model in evaluation mode. Errors: see `load_model` and `choose_hardware`."""
        return self.read_model()

    def read_model(self) -> CausalLM:
        """The model, read anew and not kept here: whoever opens several has one in memory at a time so."""
        return load_model(self.path, device=choose_hardware(self._device, "fp32").device, dtype=self._dtype)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with. Errors: see `load_tokenizer`."""
        return load_tokenizer(self.path)

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end a text: those of `generation_config.json` or `config.json`, and the tokenizer's own."""
        return tuple(dict.fromkeys((*end_token_ids(self.path), *own_end_ids(self.tokenizer))))

    @cached_property
    def template(self) -> str | None:
        """The chat template as Jinja text, unread; None for a model that was not taught to chat."""
        file = self.path / CHAT_TEMPLATE
        if not file.exists() and not file.is_symlink():
            return self.tokenizer.chat_template
        try:
            return read_small_file(file).decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"the chat template is not UTF-8 (byte {error.start})",
                where=str(file),
                remedy="fetch it again, or remove it: the model opens without",
                exit_code=ExitCode.BAD_DATA,
            ) from None

    @cached_property
    def run_config(self) -> RunConfig | None:
        """The config of the run that the checkpoint stands in; None for one that stands alone. Errors: see
        `load_run_config`."""
        path = self.path.parent / CONFIG_FILE
        return load_run_config(path) if path.exists() else None

    def check_tokenizer(self, name: str) -> None:
        """Refuse a tokenizer that is asked for by name, unless it is the checkpoint's own (or `auto`).

        Raises:
            UserError: it is another one: its ids would mean other words to this model.
        """
        if name in ("auto", self.tokenizer.name):
            return
        remedy = "leave out --tokenizer: the checkpoint has its own"
        try:
            asked = make_tokenizer(name)
        except UserError as error:
            if error.exit_code is not ExitCode.IO:
                raise
            what = f"{self.path} has the tokenizer {self.tokenizer.name}, and {name} cannot be compared with it"
            raise UserError(f"{what}: {error.what}", where=error.where, remedy=remedy, exit_code=ExitCode.IO) from None
        if asked.fingerprint != self.tokenizer.fingerprint:
            raise UserError(
                f"{self.path} was trained with the tokenizer {self.tokenizer.name}, not with {name}",
                where=str(self.path),
                remedy=remedy,
            )


def open_checkpoint(
    path: Path | str | None = None, *, device: str = "auto", dtype: torch.dtype | None = None
) -> OpenCheckpoint:
    """Find a checkpoint, check every byte of it, and open it.

    Args:
        path: a checkpoint or run directory, or a run's name; None for the newest. See `find_checkpoint`.
        device: of the weights: `auto`, `cpu`, `cuda` or `mps`.
        dtype: of the weights; None keeps the files'.

    Raises:
        UserError: see `find_checkpoint`.
    """
    return OpenCheckpoint(*find_checkpoint(path), device=device, dtype=dtype)


def own_end_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids at which a tokenizer's texts end: its end token and, where it marks beginnings, the next beginning."""
    return [token for token in (tokenizer.end_id, tokenizer.begin_id) if token is not None]
