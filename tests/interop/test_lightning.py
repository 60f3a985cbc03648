"""A few steps under Lightning: the same loss and gradients as ours, and the loss falls, in the precision there is."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader

from tiny_transformer.config.shapes import Qwen3Config
from tiny_transformer.data.batches import TokenBatch
from tiny_transformer.models import build_model, load_model
from tiny_transformer.storage import verify
from tiny_transformer.tokenizers import load_tokenizer
from tiny_transformer.training.losses import language_modelling_loss

pytestmark = pytest.mark.slow

CONFIG = Qwen3Config(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
)


def batches(count: int) -> DataLoader:
    """The same four rows again and again: something that can be learnt by heart."""
    tokens = torch.randint(0, 50, (4, 17), generator=torch.Generator().manual_seed(0))
    rows = [TokenBatch(tokens[:, :-1], tokens[:, 1:], 64, torch.arange(4)) for _ in range(count)]
    return DataLoader(rows, batch_size=None)


@pytest.fixture(scope="module")
def lightning():
    return pytest.importorskip("lightning")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["32-true", "mixed"])
def test_it_fits_on_what_there_is(lightning, precision, tmp_path):
    from tiny_transformer.interop.lightning import LitLanguageModel

    if precision == "mixed":
        precision = "16-mixed" if torch.cuda.is_available() else "bf16-mixed"
    model = build_model(CONFIG, seed=0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    module = LitLanguageModel(model, learning_rate=3e-3, warmup_steps=2)
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=1,
        precision=precision,
        max_steps=30,
        limit_val_batches=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.validate(module, batches(1), verbose=False)
    first = float(trainer.callback_metrics["val_loss"])
    trainer.fit(module, batches(30), batches(1))
    last = float(trainer.callback_metrics["val_loss"])
    assert first > 3.5 and last < 0.5 * first
    assert trainer.global_step == 30
    assert all(not torch.equal(before[name], p.cpu()) for name, p in module.model.named_parameters())
    rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
    assert rates == pytest.approx([3e-3, 3e-3])
    assert [group["weight_decay"] for group in trainer.optimizers[0].param_groups] == [0.1, 0.0]


@pytest.mark.filterwarnings("ignore")
def test_the_rate_rises_with_each_update_and_then_stays(lightning, tmp_path):
    from tiny_transformer.interop.lightning import LitLanguageModel

    rates = []

    class Watch(lightning.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            rates.append([group["lr"] for group in optimizer.param_groups])

    module = LitLanguageModel(build_model(CONFIG, seed=0), learning_rate=2e-3, warmup_steps=4)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=7,
        accumulate_grad_batches=2,  # a batch is not an update
        callbacks=[Watch()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, batches(14))
    shares = [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0]
    assert rates == [pytest.approx([2e-3 * share] * 2) for share in shares]


def test_loss_and_gradients_are_ours(lightning):
    from tiny_transformer.interop.lightning import LitLanguageModel

    ours, theirs = build_model(CONFIG, seed=0), build_model(CONFIG, seed=0)
    batch = next(iter(batches(1)))
    loss_sum, _ = language_modelling_loss(ours, batch)
    (loss_sum / batch.num_targets).backward()
    module = LitLanguageModel(theirs)
    module.log = lambda *_, **__: None
    loss = module.training_step(batch, 0)
    loss.backward()
    assert torch.equal(loss, loss_sum / batch.num_targets)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad)
    assert torch.equal(module(batch.input_ids), theirs(batch.input_ids))


def test_without_the_package_the_message_names_the_extra():
    code = (
        "import sys; sys.modules['lightning'] = None\n"
        "from tiny_transformer.errors import UserError\n"
        "try:\n    import tiny_transformer.interop.lightning\n"
        "except UserError as error:\n    print(error.remedy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "pip install lightning"


@pytest.mark.filterwarnings("ignore")
def test_the_page_runs_as_it_stands_and_leaves_a_checkpoint(lightning, repository, tmp_path):
    page = (repository / "docs" / "TRAIN_WITH_LIGHTNING.md").read_text(encoding="utf-8")
    block = page.partition("```python\n")[2].partition("```")[0]
    assert "STEPS = 200" in block
    (tmp_path / "cats.txt").write_text(
        "\n<|endoftext|>\n".join(f"Cat number {i} sat on mat {i * i}." for i in range(300))
    )
    words = ["prepare", "--source", "cats.txt", "--tokenizer", "byte", "--seq_len", "64", "--out_dir", "data"]
    for command in (
        [sys.executable, "-m", "tiny_transformer", *words],
        [sys.executable, "-c", block.replace("STEPS = 200", "STEPS = 12")],
    ):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    verify(tmp_path / "models" / "with-lightning")
    model = load_model(tmp_path / "models" / "with-lightning")
    assert model.config.hidden_size == 64 and load_tokenizer(tmp_path / "models" / "with-lightning").vocab_size == 257
