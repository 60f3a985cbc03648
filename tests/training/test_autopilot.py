"""`train --minutes`: the choice is arithmetic, its laws are the published ones, and a run keeps what was chosen."""

from __future__ import annotations

import io
import json
import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
import toy_stage
from rich.console import Console
from run_helpers import TINY
from toy_stage import ToyStage

from tiny_transformer.config.load import load_run_config
from tiny_transformer.costs.accounting import count_parameters, count_step
from tiny_transformer.errors import UserError
from tiny_transformer.hardware import choose_hardware
from tiny_transformer.models.qwen3.model import Qwen3Block
from tiny_transformer.parallel.processes import ALONE
from tiny_transformer.stages.command import run_training
from tiny_transformer.stages.minutes import calibration
from tiny_transformer.stages.minutes.autopilot import (
    MOST_PASSES,
    Choice,
    Corpus,
    Length,
    SpeedModel,
    batch_rows,
    choose,
    ladder,
    predicted_excess,
    settings,
)
from tiny_transformer.stages.minutes.calibration import overlay
from tiny_transformer.stages.minutes.words import LINES, SALAD, level_of, promise, tell
from tiny_transformer.stages.stage import Request
from tiny_transformer.stages.summary import announce, overruled
from tiny_transformer.training.optimizers import Optimizers
from tiny_transformer.training.plan import make_plan

STORIES = Corpus(train_tokens=5_200_000, val_tokens=53_000, num_documents=11_000, vocab_size=2048)
LAPTOP = SpeedModel(launch=1.5e-3, operation=5e-12, element=2.2e-9)  # two cores, as timed in docs/LOG.md
GPU = SpeedModel(launch=3e-3, operation=1 / 4e13, element=1e-12)  # 1e14 operations a second at best, 4e13 in practice


def chosen(minutes: float, corpus: Corpus = STORIES, speed: SpeedModel = LAPTOP):
    return choose(60 * minutes, corpus, speed, ladder(corpus.vocab_size, corpus.seq_len), corpus.seq_len)


def evaluations_of(choice: Choice, corpus: Corpus) -> int:
    every = settings(choice, corpus, on_cpu=True)["training"]["eval_steps"]
    return 8 if every == "auto" else math.ceil(choice.best.steps / every)


def option_of(choice, width: int, layers: int):
    shapes = [(o.candidate.model["hidden_size"], o.candidate.model["num_hidden_layers"]) for o in choice.options]
    return choice.options[shapes.index((width, layers))]


def test_the_law_is_the_published_one() -> None:
    # Muennighoff et al. 2023, appendix A: L - E = 521 / N^0.353 + 1488 / D^0.353 where nothing is repeated
    assert predicted_excess(1e8, 2e9, 1e10) == pytest.approx(521 / 1e8**0.3527 + 1488 / 2e9**0.3527)
    # their best size has 20 tokens a parameter, as that of Hoffmann et al.
    sizes = [10 ** (5 + i / 200) for i in range(600)]
    best = min(sizes, key=lambda n: predicted_excess(n, 1e17 / 6 / n, math.inf))
    assert 1e17 / 6 / best**2 == pytest.approx(19.6, rel=0.03)


def test_repeated_tokens_are_worth_less_and_in_the_end_nothing() -> None:
    unique = 1e6
    values = [predicted_excess(1e5, passes * unique, unique) for passes in (1, 2, 4, 16, 40, 1000)]
    assert all(later < earlier for earlier, later in pairwise(values))
    fresh = predicted_excess(1e5, 4 * unique, 4 * unique)
    assert values[2] == pytest.approx(fresh, rel=0.06)  # four passes are nearly as good as new text
    ceiling = predicted_excess(1e5, 1e12, unique)
    assert values[-1] == pytest.approx(ceiling, rel=1e-3)


def test_the_batch_follows_step_law() -> None:
    assert [batch_rows(tokens, 512) for tokens in (0, 660_000, 2_650_000, 25_000_000)] == [1, 2, 4, 16]
    # 0.58 D^0.571 tokens are 1,217, 2,693, 9,700: rounded down to a power of two of sequences
    assert pytest.approx(2_693, rel=0.01) == 0.58 * 2_650_000**0.571


def test_operations_and_parameters_are_those_of_the_model() -> None:
    candidate = ladder(2048, 256)[2]
    tree = {"model": {**candidate.model, "vocab_size": 2048}, "data": {"seq_len": 256}}
    config = load_run_config({**tree, "training": {"optimizer": "muon", "micro_batch_size": 4, "device": "cpu"}})
    parts, _ = count_parameters(config.model)
    assert candidate.parameters == parts.total()
    assert candidate.block_parameters == parts.total() - 2048 * 128
    step = count_step(config, choose_hardware("cpu", "fp32"))
    causal = step.training["matrices"] + step.training["attention"] / 2
    assert candidate.token_operations * 4 * 256 == pytest.approx(causal, rel=0.01)
    assert candidate.update_operations == pytest.approx(step.update, rel=0.05)


def test_a_speed_is_found_again_from_its_timings() -> None:
    shapes = ladder(2048, 512)
    timed = [(shapes[i], n, LAPTOP.step_seconds(shapes[i], n)) for i, n in ((2, 2048), (0, 512), (4, 1024), (1, 4096))]
    found = SpeedModel.fit(timed)
    assert (found.launch, found.operation, found.element) == pytest.approx(
        (LAPTOP.launch, LAPTOP.operation, LAPTOP.element), rel=1e-6
    )
    # timed on one core: the plain least squares of these three gives a negative launch and a negative element
    odd = [(shapes[2], 2048, 0.2807), (shapes[2], 1024, 0.1417), (shapes[0], 2048, 0.1513)]
    assert min(vars(SpeedModel.fit(odd)).values()) >= 0.0
    noisy = [(c, n, s * factor) for (c, n, s), factor in zip(timed, (1.1, 0.9, 1.05, 0.95), strict=True)]
    fitted = SpeedModel.fit(noisy[:2])
    assert min(fitted.launch, fitted.operation, fitted.element) >= 0.0
    for candidate, num_tokens, seconds in noisy[:2]:
        assert fitted.step_seconds(candidate, num_tokens) == pytest.approx(seconds, rel=0.05)


@pytest.mark.parametrize("minutes", [1, 4, 10, 30, 60])
def test_no_choice_is_predicted_to_be_worse_than_the_demo(minutes: float) -> None:
    choice = chosen(minutes)
    assert choice.best.excess <= 1.001 * option_of(choice, 128, 4).excess


def test_more_time_gives_larger_models_and_batches() -> None:
    choices = [chosen(minutes).best for minutes in (0.2, 1, 4, 10, 30, 60, 600)]
    for earlier, later in pairwise(choices):
        assert later.candidate.token_operations >= earlier.candidate.token_operations
        assert later.rows >= earlier.rows
        assert later.excess < earlier.excess
    assert choices[0].candidate.parameters < 1e6 < choices[-1].candidate.parameters


@pytest.mark.parametrize("minutes", [0.2, 4, 60, 600])
def test_the_steps_fill_the_time(minutes: float) -> None:
    best = chosen(minutes, Corpus(10**10, 10**8, 10**7, 4096)).best
    assert 0.9 < best.steps * best.step_seconds / (60 * minutes) <= 1.0


def test_little_text_ends_the_run_early_and_drops_out() -> None:
    corpus = Corpus(train_tokens=25_000, val_tokens=600, num_documents=12, vocab_size=512)  # 100 kB
    choice = chosen(10, corpus)
    assert choice.best.is_cut
    taken = settings(choice, corpus, on_cpu=True)
    assert taken["training"]["max_tokens"] == MOST_PASSES * corpus.train_tokens
    assert taken["training"]["dropout"] == 0.1
    assert choice.best.candidate.parameters < chosen(10).best.candidate.parameters


def test_a_gpu_gets_a_larger_model_in_pieces_that_fit() -> None:
    corpus = Corpus(10**9, 2 * 10**7, 10**6, 16_384)
    choice = chosen(600, corpus, GPU)
    assert choice.best.candidate.parameters > 5e7
    taken = settings(choice, corpus, on_cpu=False)["training"]
    assert taken["micro_batch_size"] * taken["grad_accum_steps"] == choice.best.rows
    assert taken["micro_batch_size"] * choice.seq_len * corpus.vocab_size <= 2**30
    assert taken["eval_tokens"] is None or taken["eval_tokens"] < corpus.val_tokens


@pytest.mark.parametrize("corpus", [STORIES, Corpus(10**9, 2 * 10**7, 10**6, 4096)])
@pytest.mark.parametrize("minutes", [0.2, 1, 10])
def test_evaluating_and_saving_take_a_small_part_of_the_time(minutes: float, corpus: Corpus) -> None:
    choice = chosen(minutes, corpus)
    taken = settings(choice, corpus, on_cpu=True)["training"]
    token_seconds = choice.best.step_seconds / (choice.best.rows * choice.seq_len) / 3
    evaluations = evaluations_of(choice, corpus)
    seconds = evaluations * token_seconds * min(taken["eval_tokens"] or math.inf, corpus.val_tokens)
    assert seconds < 0.05 * 60 * minutes
    assert {0.2: 1, 1: 3, 10: 6}[minutes] <= evaluations <= 10


def test_a_minute_on_four_kilobytes_is_evaluated_before_it_overfits() -> None:
    """It was evaluated once, at the end, after forty passes."""
    corpus = Corpus(train_tokens=1_448, val_tokens=232, num_documents=1, vocab_size=512)
    choice = chosen(1, corpus)
    assert choice.best.is_cut
    assert evaluations_of(choice, corpus) >= 4
    slow = chosen(0.2, corpus, SpeedModel(0.05, 0.0, 0.0))  # a part of the 232 tokens would do; they are not 1,024
    assert settings(slow, corpus, on_cpu=True)["training"]["eval_tokens"] is None


def test_evaluations_are_spread_anew_when_the_length_of_a_run_changes() -> None:
    """Their number of steps was fixed: a busy machine cut the run, and half of them never came."""
    assert settings(chosen(10), STORIES, on_cpu=True)["training"]["eval_steps"] == "auto"
    assert settings(chosen(0.2), STORIES, on_cpu=True)["training"]["eval_steps"] != "auto"  # too short for eight


def test_sequences_hold_a_document_of_average_length() -> None:
    assert STORIES.seq_len == 512
    assert Corpus(200_000, 5_000, 1_000, 512).seq_len == 256
    assert Corpus(200_000, 5_000, 1, 512).seq_len == 512  # one book
    assert Corpus(200_000, 5_000, 50_000, 512).seq_len == 64  # one-liners
    assert Corpus(60, 10, 1, 257).seq_len == 32  # hardly any text
    little = Corpus(1_448, 232, 1, 512)  # 4 KB: with 512, three tokens in ten were never read
    assert (little.train_tokens - 1) % little.seq_len < 0.1 * little.train_tokens


@pytest.mark.parametrize(
    ("minutes", "corpus", "words"),
    [
        (
            1,
            STORIES,
            "1 minute buys about this on simple text: word salad in the right words; readable lines that lose",
        ),
        (4, STORIES, "4 minutes buy about this on simple text: readable lines that lose their thread; short passages"),
        (1000, Corpus(10**10, 10**8, 10**7, 4096), "1000 minutes buy about this on simple text: short passages."),
        (10, Corpus(25_000, 600, 12, 512), "word salad in the right words; readable lines that lose their thread need"),
    ],
)
def test_the_minutes_are_told_in_what_they_buy(minutes: float, corpus: Corpus, words: str) -> None:
    said = promise(minutes, chosen(minutes, corpus), lambda m: chosen(m, corpus))
    assert words in said
    assert "1 minutes" not in said
    assert not re.search(r"excess|Hoffmann|D\^", said)


def test_one_sentence_says_what_was_chosen() -> None:
    choice, screen = chosen(4), io.StringIO()
    tell(choice, STORIES, minutes=4, at_minutes=chosen, console=Console(file=screen, width=1000))
    best, shape = choice.best, choice.best.candidate.model
    sentence = screen.getvalue().splitlines()[1]
    assert sentence.startswith(f"So the model gets {best.candidate.parameters / 1e6:.2f} M parameters")
    assert f"({shape['hidden_size']} wide, {shape['num_hidden_layers']} layers)" in sentence
    assert f"about {best.steps:,} steps of {best.rows} sequences of 512 tokens each, {best.tokens:,} tokens" in sentence


@pytest.mark.parametrize(
    ("length", "asked"),
    [
        (Length(steps=20), "20 steps"),
        (Length(steps=1), "1 step"),
        (Length(tokens=500_000), "500,000 tokens"),
        (Length(steps=10**9), None),
    ],
)
@pytest.mark.parametrize("corpus", [STORIES, Corpus(8_000, 900, 9, 300)])
def test_a_length_that_is_asked_for_is_chosen_for_and_told(length: Length, asked: str | None, corpus: Corpus) -> None:
    """The steps that the minutes would have held were told and evaluated at, and little text ended the run before."""
    candidates, screen = ladder(corpus.vocab_size, corpus.seq_len), io.StringIO()
    choice = choose(60 * 4, corpus, LAPTOP, candidates, corpus.seq_len, length=length)
    best, plain = choice.best, choose(60 * 4, corpus, LAPTOP, candidates, corpus.seq_len).best
    assert best.steps <= (length.steps or best.steps) and best.tokens <= (length.tokens or best.tokens)
    assert best.steps * best.step_seconds <= 60 * 4 and not best.is_cut
    taken = settings(choice, corpus, on_cpu=True)["training"]
    assert taken["max_tokens"] is None and (taken["eval_steps"] == "auto" or taken["eval_steps"] <= best.steps)
    tell(choice, corpus, minutes=4, at_minutes=chosen, console=Console(file=screen, width=1000))
    told = screen.getvalue()
    assert told.startswith(f"{asked}, as asked, buy about this" if asked else "4 minutes buy about this")
    is_short = asked is not None and best.steps * best.step_seconds < 120
    assert ("the rest of the time is not used" in told) == is_short
    assert f"takes about {best.steps:,} step" in told and (asked is not None or best.steps >= plain.steps)


def test_the_next_better_thing_takes_as_long_as_is_said() -> None:
    said = promise(1, chosen(1), chosen)
    match = re.search(r"take about (\d+) minutes", said)
    assert match
    enough = float(match[1])
    assert level_of(chosen(enough)) == LINES
    assert level_of(chosen(enough / 2)) == SALAD


def test_the_arithmetic_is_shown_on_request_only(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calibration, "_step_seconds", lambda stage, hardware, budget: 0.02)
    told = auto(tiny_data, "steps=2")
    assert "--explain shows why." in told
    assert not re.search(r"excess|Hoffmann|D\^|->", told)


def test_what_a_person_set_stays() -> None:
    config = load_run_config({"model": {"num_hidden_layers": 3}, "training": {"learning_rate": 2e-3, "batch_size": 5}})
    taken = overlay(config, settings(chosen(4), STORIES, on_cpu=True))
    assert (taken.model.num_hidden_layers, taken.model.hidden_size) == (3, 256)  # one key of the shape keeps the shape
    assert (taken.training.learning_rate, taken.training.micro_batch_size, taken.training.grad_accum_steps) == (
        2e-3,
        5,
        1,
    )
    assert (taken.training.optimizer, taken.data.seq_len) == ("muon", 512)  # the rest is chosen


def test_nothing_is_chosen_that_what_a_person_set_would_overrule() -> None:
    config = load_run_config({"training": {"warmup_steps": 7, "schedule": "constant", "eval_steps": None}})
    taken = overlay(config, settings(chosen(4), STORIES, on_cpu=True)).training
    assert overruled(taken) == {}
    assert (taken.warmup_steps, taken.schedule, taken.eval_steps, taken.optimizer) == (7, "constant", None, "muon")


@pytest.mark.parametrize(("head_dim", "looks_back"), [(8, False), (16, True)])
def test_minutes_let_heads_look_back_where_they_can(
    head_dim: int, looks_back: bool, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calibration, "_step_seconds", lambda stage, hardware, budget: 0.02)
    auto(tiny_data, "steps=2", f"model.head_dim={head_dim}", "model.hidden_size=32", "model.num_hidden_layers=1")
    saved = load_run_config(next(Path("runs").glob("*/config.yaml")))
    assert saved.training.previous_token_init == looks_back


def auto(data: Path, *overrides: str, **options: object) -> str:
    """`train --minutes` on tiny data, in the working directory."""
    console = Console(file=io.StringIO(), width=100)
    quick = ["sample_prompts=[]", "device=cpu", f"data.data_dir={data}"]
    options = {"resume": False, "overwrite": False, "minutes": 0.05, **options}
    run_training(None, [*quick, *overrides], console=console, **options)  # ty: ignore[invalid-argument-type]
    return console.file.getvalue()  # ty: ignore[unresolved-attribute]


def test_sequences_are_chosen_within_the_context_that_a_person_set(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """512 tokens were chosen, and the run was refused for a seq_len that nobody had set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calibration, "_step_seconds", lambda stage, hardware, budget: 0.02)
    auto(tiny_data, "steps=1", "model.max_position_embeddings=256")
    saved = load_run_config(tmp_path / "runs/stories/config.yaml")
    assert (saved.data.seq_len, saved.model.max_position_embeddings) == (256, 256)


def test_a_run_keeps_its_choice_when_it_is_resumed(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at once, gone on with: nothing is timed or chosen again, and shape and batch are those of the start."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calibration, "_step_seconds", lambda stage, hardware, budget: 0.02)
    told = auto(tiny_data, "steps=3", explain=True)
    assert "3 steps, as asked, buy about this on simple text: word salad in the right words" in told
    assert "what 0.05 minutes buy" in told and "->" in told
    assert all(word in told for word in ("Hoffmann", "Muennighoff", "Step Law"))
    config = (tmp_path / "runs/stories/config.yaml").read_text().split("\n", 2)[2]
    plan = json.loads((tmp_path / "runs/stories/plan.json").read_text())

    def never(*arguments: object) -> None:
        raise AssertionError("chosen again")

    monkeypatch.setattr(calibration, "_measure_and_choose", never)
    auto(tiny_data, "steps=3", resume=True)
    assert (tmp_path / "runs/stories/config.yaml").read_text().split("\n", 2)[2].replace(
        "out_dir: runs/stories", "out_dir: null"
    ) == config
    assert json.loads((tmp_path / "runs/stories/plan.json").read_text()) == plan


@pytest.mark.parametrize("model_type", ["qwen3", "llama", "olmo2", "qwen3_next"])
def test_a_shape_that_a_person_set_is_timed_and_kept(
    model_type: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calibration, "_step_seconds", lambda stage, hardware, budget: 0.02)
    shape = ["hidden_size=32", "num_hidden_layers=2", "num_attention_heads=2", "num_key_value_heads=1"]
    told = auto(
        tiny_data,
        f"model.model_type={model_type}",
        *shape,
        "model.head_dim=16",
        "steps=2",
        "micro_batch_size=3",
        explain=True,
    )
    assert "yours x 2" in told and told.count("as you set it") == 2  # the shape and the batch
    config = load_run_config(tmp_path / "runs/stories/config.yaml")
    assert (config.model.model_type, config.model.hidden_size, config.training.optimizer) == (model_type, 32, "muon")
    assert config.training.previous_token_init == (model_type in ("qwen3", "llama"))


@pytest.mark.parametrize(("steps", "is_said"), [(99, True), (100, False)])
def test_a_run_of_few_steps_says_what_that_means(steps: int, is_said: bool, tiny_data: Path) -> None:
    config = load_run_config({"training": {"max_train_minutes": 0.2}})
    console = Console(file=io.StringIO(), width=100)
    plan = make_plan(config.training, steps, "measured", is_fixed=False)
    announce(Path("runs/x"), plan, config, "some text", 1_000_000, "cpu", console)
    told = " ".join(console.file.getvalue().split())  # ty: ignore[unresolved-attribute]
    assert ("time for 99 steps only" in told) == is_said
    assert ("more minutes, a smaller model or batch" in told) == is_said


def test_minutes_do_not_choose_a_hybrid(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="what size suits a qwen3_next is not known"):
        auto(tiny_data, "model.model_type=qwen3_next")
    assert not (tmp_path / "runs/stories").exists()


def test_a_vocabulary_that_is_too_small_is_raised_before_models_are_timed(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = auto(tiny_data, "model.vocab_size=10", "hidden_size=32", "num_hidden_layers=1", "steps=2")
    assert told.count("model.vocab_size 10 is too small") == 1
    assert load_run_config(tmp_path / "runs/stories/config.yaml").model.vocab_size == 257


def test_what_is_timed_is_a_step_of_the_stage(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its model, all rows of its batches, its loss; and blocks are computed twice where gradients are checkpointed."""
    toy_stage.register(monkeypatch)
    training = {"micro_batch_size": 2, "grad_accum_steps": 3, "gradient_checkpointing": True, "device": "cpu"}
    tree = {**TINY, "stage": "toy", "data": {"data_dir": str(tiny_data), "seq_len": 32}, "training": training}
    hardware, console = choose_hardware("cpu", "fp32"), Console(quiet=True)
    stage = ToyStage.open(Request(load_run_config(tree), "toy"), Path("r"), hardware, ALONE, console)
    losses, updated, blocks = [], [], []
    loss, block_forward = stage.loss, Qwen3Block.forward
    monkeypatch.setattr(stage, "loss", lambda model, batch: losses.append(batch.num_targets) or loss(model, batch))
    monkeypatch.setattr(Qwen3Block, "forward", lambda *given, **more: blocks.append(1) or block_forward(*given, **more))
    monkeypatch.setattr(Optimizers, "step", lambda optimizers, factor: updated.append(set(optimizers.shapes())))
    calibration._step_seconds(stage, hardware, 0.0)
    times = len(updated)
    assert times == 4 and losses == [2 * 11] * 3 * times  # one in three of 32 targets
    assert len(blocks) == 2 * 2 * 3 * times
    assert not any("embed_tokens" in name for name in updated[0])  # frozen
