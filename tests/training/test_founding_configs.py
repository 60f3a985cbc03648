"""The configs that stand for the founding documents: exact shapes, and each starts training."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from tiny_transformer.config.load import load_run_config
from tiny_transformer.config.presets import PRESETS
from tiny_transformer.costs.accounting import count_parameters
from tiny_transformer.costs.command import run_profile
from tiny_transformer.data.token_file import open_dataset
from tiny_transformer.hardware import choose_hardware
from tiny_transformer.stages.pretrain import Pretraining
from tiny_transformer.stages.run import Run
from tiny_transformer.stages.stage import Request
from tiny_transformer.stages.training_data import fit_vocabulary
from tiny_transformer.storage import RunDirectory
from tiny_transformer.training.loop import train
from tiny_transformer.training.plan import Pace, make_plan
from tiny_transformer.training.progress import TrainingProgress

CONFIGS = Path(__file__).parents[2] / "configs"
CHARACTERS = 65  # different ones in a typical English text


def classic(width: int, layers: int, feed_forward: int, vocab_size: int) -> int:
    """Parameters of document 004's decoder, counted by hand: tied embeddings, LayerNorm with biases, no others."""
    block = 4 * width**2 + 3 * width * feed_forward + 2 * 2 * width
    return vocab_size * width + layers * block + 2 * width


def qwen3(width: int, layers: int, heads: int, groups: int, feed_forward: int, vocab_size: int) -> int:
    """Parameters of Qwen3 with its own output head, counted by hand; heads are `width / heads` wide."""
    size = width // heads
    attention = 2 * width * heads * size + 2 * width * groups * size + 2 * size
    block = attention + 3 * width * feed_forward + 2 * width
    return 2 * vocab_size * width + layers * block + width


@pytest.mark.parametrize(
    ("source", "vocab_size", "parameters", "millions"),
    [
        ("tiny", CHARACTERS, classic(128, 4, 344, CHARACTERS), 0.8),
        ("small", CHARACTERS, classic(256, 6, 688, CHARACTERS), 4.8),
        ("medium", CHARACTERS, classic(512, 12, 1368, CHARACTERS), 37.9),
        ("large", CHARACTERS, classic(768, 24, 2048, CHARACTERS), 170.0),
        ("gpt2", None, classic(768, 12, 2048, 50_257), 123.6),
        ("founding/004_config.yaml", CHARACTERS, classic(256, 6, 688, CHARACTERS), 4.8),
        ("founding/004_gpt2.yaml", None, classic(768, 12, 2048, 50_257), 123.6),
        ("founding/002_qwen3_tinystories.yaml", None, qwen3(640, 18, 4, 1, 2048, 151_646), 283.3),
    ],
)
def test_shapes_have_exactly_the_parameters_of_their_document(
    source: str, vocab_size: int | None, parameters: int, millions: float
) -> None:
    model = load_run_config(source if source in PRESETS else CONFIGS / source).model
    parts, _ = count_parameters(model.model_copy(update={"vocab_size": vocab_size or model.vocab_size}))
    assert parts.total() == parameters
    assert round(parameters / 1e6, 1) == millions


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_document_004s_decoder(name: str) -> None:
    config = load_run_config(name)
    model = config.model
    assert (model.model_type, model.norm_type) == ("llama", "layernorm")  # ty: ignore[unresolved-attribute]
    assert model.num_key_value_heads == model.num_attention_heads  # multi-head attention
    assert model.tie_word_embeddings and config.training.dropout == 0.1
    expected = {
        "tiny": (128, 4, 4, 128),
        "small": (256, 8, 6, 256),
        "medium": (512, 8, 12, 512),
        "large": (768, 12, 24, 1024),
        "gpt2": (768, 12, 12, 1024),
    }
    shape = (model.hidden_size, model.num_attention_heads, model.num_hidden_layers, model.max_position_embeddings)
    assert shape == expected[name] and config.data.seq_len == shape[-1]


def test_document_002_keeps_its_settings() -> None:
    config = load_run_config(CONFIGS / "founding/002_qwen3_tinystories.yaml")
    model, training = config.model, config.training
    assert (model.head_dim, model.num_key_value_heads, model.max_position_embeddings) == (160, 1, 32_768)
    assert (config.data.source, config.data.tokenizer, config.data.seq_len) == ("tinystories", "qwen3", 128)
    assert training.micro_batch_size * training.grad_accum_steps == 1024
    assert 150_000 * training.micro_batch_size / 1024 == pytest.approx(training.steps, abs=1)
    assert (training.learning_rate, training.weight_decay, training.grad_clip) == (1e-4, 0.1, 0.5)
    assert (training.warmup_steps, training.schedule, training.precision) == (1000, "cosine", "bf16")


def test_document_003_speaks_lightning() -> None:
    config = load_run_config(CONFIGS / "founding/003_config.yaml")
    assert (config.training.precision, config.training.device) == ("fp16", "auto")
    assert (config.data.source, config.data.seq_len) == ("wiki-bookscorpus", 512)
    assert config.model.sliding_window is None  # ty: ignore[unresolved-attribute]
    windowed = load_run_config(CONFIGS / "founding/003_config.yaml", ["model.swa_window=128"])
    assert windowed.model.sliding_window == 128  # ty: ignore[unresolved-attribute]


SHIPPED = [
    *sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.*") if path.parent.name != "launch"),
    *PRESETS,
]
FOUNDING = [name for name in SHIPPED if name.startswith("founding/")]
HEAVY = ("medium", "large", "gpt2", "founding/002_qwen3_tinystories.yaml", "founding/004_gpt2.yaml")  # 38 M and more


@pytest.mark.slow
@pytest.mark.parametrize("source", [*FOUNDING, "medium", "large"])
def test_profile_tells_what_each_costs(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    """For the heavy ones this is the start of training, on tensors that have shapes and no contents."""
    run_profile(source if source in PRESETS else str(CONFIGS / source), [], as_json=True, console=Console())
    told = json.loads(capsys.readouterr().out)
    memory = told["training_memory"]
    assert memory["weights"] == 4 * sum(told["parameters"].values())
    assert memory["optimizer"] > 0 and told["step_seconds"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("source", [name for name in SHIPPED if name not in HEAVY])
def test_each_starts_training(source: str, tiny_data: Path, tmp_path: Path) -> None:
    """The whole shape, one update of one short sequence; nothing is written."""
    short = ["data.seq_len=32", "training.micro_batch_size=1", "training.grad_accum_steps=1", "training.log_steps=1"]
    quick = ["training.eval_steps=null", "training.device=cpu", f"data.data_dir={tiny_data}"]
    quiet = Console(file=io.StringIO())
    config = load_run_config(source if source in PRESETS else CONFIGS / source, [*short, *quick])
    dataset = open_dataset(tiny_data)
    request = Request(config, "test", command=["test"])
    opened = Pretraining(fit_vocabulary(config, dataset, quiet), dataset)
    hardware = choose_hardware("cpu", config.training.precision)
    start = Run(request, opened, RunDirectory(tmp_path), hardware, quiet)
    before = {name: float(weight.detach().double().sum()) for name, weight in start.model.named_parameters()}
    pace = Pace(make_plan(config.training, 10, ""), config.training, None, lambda plan: None)
    records = []
    progress = TrainingProgress(quiet, 10, 0)
    job = start.job(pace, save=lambda state, status, is_best: None, log=records.append, progress=progress)
    assert train(job, start.state, lambda: True) == "stopped"
    assert 0 < records[0]["loss"] < 20
    moved = [n for n, w in start.model.named_parameters() if float(w.detach().double().sum()) != before[n]]
    assert "model.embed_tokens.weight" in moved
    assert len(moved) > 0.2 * len(before)  # with zero_residual the others start later
