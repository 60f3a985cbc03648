"""`quantize`: a checkpoint that every verb opens, as large as it says, hardly worse than before."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from tiny_transformer import load
from tiny_transformer.cli import run
from tiny_transformer.config.load import load_run_config
from tiny_transformer.errors import UserError
from tiny_transformer.evaluation.command import EvaluateOptions, run_evaluate
from tiny_transformer.generation import engines
from tiny_transformer.models import load_model
from tiny_transformer.models.swaps import describe_swaps
from tiny_transformer.quantization.command import QuantizeOptions, run_quantize
from tiny_transformer.stages.launch import launch
from tiny_transformer.stages.stage import Request
from tiny_transformer.stages.summary import finish
from tiny_transformer.storage.doctor import examine

SMALL = {
    "model": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "max_position_embeddings": 64,
    },
    "data": {"source": "stories", "max_bytes": 60_000, "val_fraction": 0.1, "tokenizer": "byte", "seq_len": 64},
    "training": {
        "device": "cpu",
        "precision": "fp32",
        "steps": 60,
        "micro_batch_size": 8,
        "eval_steps": 60,
        "learning_rate": 3e-3,
        "sample_prompts": [],
    },
    "out_dir": "runs/small",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a run of a minute's model, trained enough that rounding can hurt it."""
    directory = tmp_path_factory.mktemp("home")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setattr(engines, "find_spec", lambda name: None)  # the compiled step has tests of its own
        launch(Request(load_run_config(SMALL), "small"), Console(file=io.StringIO()))
        for kind in ("int8", "int4"):
            (directory / f"{kind}.txt").write_text(quantize(kind)[1])
    torch.set_num_threads(threads)
    return directory


def quantize(kind: str, **options) -> tuple[tuple, str]:
    shown = io.StringIO()
    found = run_quantize(QuantizeOptions(kind, **options), Console(file=shown, width=100), Console(file=io.StringIO()))
    return found, shown.getvalue()


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setattr(engines, "find_spec", lambda name: None)


@pytest.mark.parametrize(("kind", "at_most"), [("int8", 0.005), ("int4", 0.04)])
def test_size_and_cost_are_as_told(kind: str, at_most: float) -> None:
    out = Path("runs/small") / kind
    shown = Path(f"{kind}.txt").read_text()
    weights = out / "model.safetensors"
    tensors = load_file(weights)
    header = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    assert weights.stat().st_size == header + sum(tensor.nbytes for tensor in tensors.values())
    assert f"{weights.stat().st_size:,}" in shown and f"wrote {out}" in shown
    stored = {name: tensor for name, tensor in tensors.items() if tensor.ndim == 2 and not name.endswith("scale")}
    assert {name.rpartition(".")[2] for name in stored} == {"quantized"}  # no matrix kept all its bits
    assert tensors["model.embed_tokens.quantized"].dtype == torch.int8
    losses = {}
    for name in ("best", kind):
        screen = io.StringIO()
        run_evaluate(
            EvaluateOptions(Path("runs/small") / name, device="cpu"), Console(file=screen), Console(quiet=True)
        )
        losses[name] = float(screen.getvalue().split("this model")[1].split()[2])
    told = {words[0]: float(words[2]) for words in map(str.split, shown.splitlines()[1:3])}
    assert (told["before"], told[kind]) == pytest.approx((losses["best"], losses[kind]), abs=6e-4)
    assert losses[kind] / losses["best"] - 1 < at_most


def test_every_verb_opens_it() -> None:
    best, int4 = load("small", device="cpu"), load("small/int4", device="cpu")
    assert int4.checkpoint.end_ids == best.checkpoint.end_ids
    assert int4.generate("Once", temperature=0, max_new_tokens=20)
    assert examine("runs/small/int4").ok and examine("runs/small").ok
    pytest.importorskip("gguf")
    assert run(["export", "runs/small/int8", "--gguf", "f32", "--out", "x.gguf"]) == 0
    assert run(["import", "x.gguf", "--out_dir", "back"]) == 0
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = load_model("runs/small/int8")(ids)
        torch.testing.assert_close(load_model("back")(ids), expected, rtol=0, atol=1e-4)


def test_what_cannot_be_done_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="already there"):
        quantize("int8")
    with pytest.raises(UserError, match="rounded to 8 or 4 bits already") as refused:
        quantize("int4", checkpoint=Path("small/int8"), out=Path("again"))
    assert "quantize the checkpoint that it was made from" in str(refused.value)
    with pytest.raises(UserError, match="rounded to 8 or 4 bits already"):  # and not that small/int8 is there already
        quantize("int8", checkpoint=Path("small/int8"))
    with pytest.raises(UserError, match="there is no kind 'int3'"):
        quantize("int3")
    request = Request(load_run_config({**SMALL, "out_dir": "runs/on", "init_from": "runs/small/int4"}), "on")
    with pytest.raises(UserError, match="rounded to int4 and int8, and integers do not learn"):
        launch(request, Console(quiet=True))
    assert run(["quantize", "small"]) == run(["quantize", "small", "--int8", "--int4"]) == 2


def test_a_checkpoint_without_text_is_rounded_to_nearest_and_says_so(tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    Path("runs/small/best").resolve().rename(alone)
    try:
        (out, before, after), shown = quantize("int4", checkpoint=alone)
        assert out == tmp_path / "alone-int4" and before.loss is after.loss is None and "no data" in shown
        assert describe_swaps(load_model(out))
    finally:
        alone.rename(Path("runs/small/best").resolve())


@pytest.mark.slow
def test_a_run_writes_it_at_its_end_and_again_when_it_goes_on() -> None:
    tree = {**SMALL, "out_dir": "runs/end", "advanced": {"quantize": "int8"}}
    tree["training"] = {**tree["training"], "steps": 2, "eval_steps": 2}
    for steps, resume in ((2, False), (4, True)):
        tree["training"] = {**tree["training"], "steps": steps}
        shown = io.StringIO()
        request = Request(load_run_config(tree), "end", resume=resume)
        finish(launch(request, Console(quiet=True)), Console(file=shown, width=100))
        assert "wrote runs/end/int8" in shown.getvalue()
    fresh = load_model("runs/end/int8").model.embed_tokens.weight_in(torch.float32)
    best = load_model("runs/end/best").model.embed_tokens.weight
    assert (fresh - best).abs().max() <= best.abs().max() / 127 and examine("runs/end/int8").ok
