"""TRL's trainer goes on from our directories, and what it saves opens here with its logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import run_tiny
from tuning_helpers import tune, tuning_tree, write_talks

from tiny_transformer.models import load_model
from tiny_transformer.models.adapter_files import load_adapter
from tiny_transformer.models.open import OpenCheckpoint
from tiny_transformer.tokenizers.chat import Message
from tiny_transformer.tokenizers.templates import CHATML, template_written

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tuned(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was taught to answer here."""
    root = tmp_path_factory.mktemp("trl")
    run_tiny(tiny_data, root / "base", steps=2, eval_steps=None)
    talks = write_talks(root / "talks.jsonl")
    tune(tuning_tree(root / "base", talks, root / "tuned", training={"steps": 2, "eval_steps": None}))
    return root / "tuned/last"


@torch.enable_grad()
def go_on(model: Path, out_dir: Path, **options: Any) -> Any:
    """Two steps of TRL's trainer on conversations, saved; its model."""
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    talks = [
        {"messages": [{"role": "user", "content": f"he {n}?"}, {"role": "assistant", "content": "hehe"}]}
        for n in range(8)
    ]
    settings = trl.SFTConfig(
        output_dir=str(out_dir),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        max_length=48,
        disable_tqdm=True,
    )
    data = datasets.Dataset.from_list(talks)
    trainer = trl.SFTTrainer(str(model), args=settings, train_dataset=data, **options)
    trainer.train()
    trainer.save_model(str(out_dir))
    return trainer.model.eval()


@torch.no_grad()
def test_a_whole_model_goes_on_and_comes_back(tuned: Path, tmp_path: Path) -> None:
    theirs, ids = go_on(tuned, tmp_path / "theirs"), torch.arange(30)[None]
    back = OpenCheckpoint(tmp_path / "theirs")
    assert torch.allclose(back.model(ids), theirs(ids).logits, rtol=0, atol=1e-5)
    assert not torch.allclose(back.model(ids), load_model(tuned)(ids), rtol=0, atol=1e-3)
    question = [Message("user", "<|im_end|> he 1?")]
    assert back.template is not None and template_written(back.tokenizer, back.template) is CHATML
    assert CHATML.prompt_ids(back.tokenizer, question) == CHATML.prompt_ids(OpenCheckpoint(tuned).tokenizer, question)


@torch.no_grad()
def test_adapters_that_trl_trains_come_back(tuned: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    theirs, ids = go_on(tuned, tmp_path / "theirs", peft_config=lora), torch.arange(30)[None]
    model = load_model(tuned)
    load_adapter(model, tmp_path / "theirs")
    assert torch.allclose(model(ids), theirs(ids).logits, rtol=0, atol=1e-5)
    assert not torch.allclose(model(ids), load_model(tuned)(ids), rtol=0, atol=1e-4)
