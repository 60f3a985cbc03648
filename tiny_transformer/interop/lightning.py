"""Our models under Lightning: for those whose experiments live there already.

The training loop of this project (`training/loop.py`) is the one to read and to use; nothing here depends on Lightning
elsewhere. Loss and gradients are the same: the test compares them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tiny_transformer.data.batches import TokenBatch
from tiny_transformer.errors import UserError
from tiny_transformer.training.losses import language_modelling_loss

try:
    from lightning import LightningModule
except ImportError:
    raise UserError("training under Lightning needs the lightning package", remedy="pip install lightning") from None

if TYPE_CHECKING:
    from tiny_transformer.models.contract import CausalLM


class LitLanguageModel(LightningModule):
    """A model with its next-token loss and AdamW, for `lightning.Trainer`.

    Its data are `DataLoader(batches, batch_size=None)` of `data.batches.TokenBatch` objects. It logs `train_loss` and
    `val_loss` in nats per token. After training, `model` is what `save_model` writes; Lightning's own checkpoints are
    pickles.

    Args:
        model: from `build_model` or `load_model`.
        learning_rate: the peak; it rises over `warmup_steps` and then stays.
        weight_decay: on matrices only.
        warmup_steps: updates until the peak.
    """

    def __init__(
        self, model: CausalLM, *, learning_rate: float = 3e-4, weight_decay: float = 0.1, warmup_steps: int = 100
    ) -> None:
        super().__init__()
        self.model = model
        self.learning_rate, self.weight_decay, self.warmup_steps = learning_rate, weight_decay, warmup_steps

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, V) of `input_ids` (B, T)."""
        return self.model(input_ids)

    def training_step(self, batch: TokenBatch, batch_index: int) -> torch.Tensor:
        """The mean loss of a batch in nats per token."""
        loss = self._loss(batch)
        self.log("train_loss", loss, prog_bar=True, batch_size=batch.num_targets)
        return loss

    def validation_step(self, batch: TokenBatch, batch_index: int) -> None:
        """Log the mean loss; over several batches it is the mean over their tokens."""
        self.log("val_loss", self._loss(batch), prog_bar=True, batch_size=batch.num_targets)

    def configure_optimizers(self) -> Any:
        """AdamW, its decay on matrices only, and a warm-up counted in updates."""
        matrices = [parameter for parameter in self.model.parameters() if parameter.ndim >= 2]
        others = [parameter for parameter in self.model.parameters() if parameter.ndim < 2]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=self.learning_rate,
            betas=(0.9, 0.95),
        )
        rise = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (self.warmup_steps + 1)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rise, "interval": "step"}}

    def _loss(self, batch: TokenBatch) -> torch.Tensor:
        loss_sum, _ = language_modelling_loss(self.model, batch)
        return loss_sum / batch.num_targets
