"""Speculation changes time and nothing else: token for token the text that is written without, for every drafter,
family, temperature and filter; by enumeration and by chi-square the distribution too."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch

from tiny_transformer import load
from tiny_transformer.cli import run
from tiny_transformer.config.shapes import LlamaConfig, Olmo2Config, Qwen3Config, Qwen3NextConfig
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.generation import speculative
from tiny_transformer.generation.drafters import ModelDrafter, MtpDrafter, NgramDrafter
from tiny_transformer.generation.rows import Generation
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.generation.speculative import Pace, Speculation, SpeculativeGeneration, Tally
from tiny_transformer.models import build_model, save_model
from tiny_transformer.tokenizers import make_tokenizer

SHAPE = {
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
    "initializer_range": 0.2,
}
NEXT = {
    **SHAPE,
    "head_dim": 16,
    "full_attention_interval": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
FAMILIES = {
    "llama": LlamaConfig(**SHAPE),
    "llama_window": LlamaConfig(**SHAPE, sliding_window=6),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16),
    "olmo2": Olmo2Config(**SHAPE),
    "qwen3_next": Qwen3NextConfig(**NEXT, num_nextn_predict_layers=1),
}
DRAFTERS = ("ngram", "model", "itself", "mtp")
PAIRS = [(family, drafter) for family in FAMILIES for drafter in DRAFTERS if drafter != "mtp" or "next" in family]
GREEDY = SamplingConfig(temperature=0, max_new_tokens=24)
SAMPLED = SamplingConfig(temperature=0.9, top_p=0.95, repetition_penalty=1.2, max_new_tokens=24, seed=5)


@pytest.fixture(scope="module")
def models():
    """In float64: no rounding decides between two tokens."""
    return {name: build_model(c, seed=1, dtype=torch.float64).eval() for name, c in FAMILIES.items()}


def drafted_by(drafter: str, model, models, vocab_size: int = 24, **options) -> Speculation:
    small = build_model(replace_layers(FAMILIES["llama"]), seed=1, dtype=torch.float64).eval()
    makers = {
        "ngram": lambda max_len: NgramDrafter(),
        "model": lambda max_len: ModelDrafter(small, max_len, vocab_size),
        "itself": lambda max_len: ModelDrafter(model, max_len, vocab_size),
        "mtp": lambda max_len: MtpDrafter(model, max_len, vocab_size),
    }
    return Speculation(makers[drafter], **{"adapts": False, **options})


def replace_layers(config):
    return config.model_copy(update={"num_hidden_layers": 1})


def written(generation) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in generation.finish_reasons]
    for ids in generation:
        for row, token in zip(rows, ids, strict=True):
            row += [] if token is None else [token]
    return rows


def random_prompts(number: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 16, (number,), generator=generator).tolist()
    return [torch.randint(0, 24, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(("family", "drafter"), PAIRS)
def test_the_text_is_the_one_written_without(models, family, drafter, settings):
    model, prompts, options = models[family], random_prompts(6), {"end_ids": {3, 20}, "num_tokens": 23}
    plain = Generation(model, prompts, settings, **options)
    speculation = drafted_by(drafter, model, models, 23)
    fast = SpeculativeGeneration(model, prompts, settings, speculation, **options)
    assert written(fast) == written(plain)
    assert fast.finish_reasons == plain.finish_reasons
    if drafter == "itself":
        assert speculation.tally.num_accepted > 0.9 * (speculation.tally.num_drafted - 5 * 4)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "drafter"), PAIRS)
def test_many_greedy_texts_are_the_ones_written_without(models, family, drafter):
    """Twenty prompts of each pair's own; `benchmarks/speculative.py --exact` does it with a thousand."""
    prompts, settings = random_prompts(20, seed=PAIRS.index((family, drafter)) + 1), replace(GREEDY, max_new_tokens=12)
    plain = written(Generation(models[family], prompts, settings))
    speculation = drafted_by(drafter, models[family], models)
    assert written(SpeculativeGeneration(models[family], prompts, settings, speculation)) == plain


def test_the_context_ends_a_text_as_it_does_without(models):
    prompts, settings = [[1, 2, 3] * 15, [5] * 48], replace(GREEDY, max_new_tokens=100)
    for family, drafter in PAIRS:
        plain = Generation(models[family], prompts, settings)
        fast = SpeculativeGeneration(models[family], prompts, settings, drafted_by(drafter, models[family], models))
        assert written(fast) == written(plain)
        assert fast.finish_reasons == plain.finish_reasons == ["context", "context"]


def test_a_row_that_is_ended_from_outside_is_written_no_further(models):
    fast = SpeculativeGeneration(models["qwen3"], [[1, 2], [3]], GREEDY, drafted_by("itself", models["qwen3"], models))
    assert next(fast)[1] is None
    fast.finish(0)
    assert all(ids[0] is None for ids in fast)
    assert fast.finish_reasons == ["stop", "length"]


@pytest.mark.parametrize("fault", ["an accepted token too many", "nothing is taken back", "another random number"])
def test_a_planted_fault_is_seen(models, monkeypatch, fault):
    """Guards the tests above."""
    model, prompts = models["qwen3_next"], random_prompts(6)
    row = speculative.SpeculativeRow
    if fault == "nothing is taken back":
        monkeypatch.setattr("tiny_transformer.generation.decoder.Decoder.rollback", lambda *_: None)
    elif fault == "another random number":
        monkeypatch.setattr(speculative, "uniform", lambda key, position: (key % 997 + position) % 7 / 7)
    else:
        whole = row._pass
        monkeypatch.setattr(row, "_pass", lambda self, left: [*whole(self, left), 1][:left])
    plain = written(Generation(model, prompts, SAMPLED))
    fast = SpeculativeGeneration(model, prompts, SAMPLED, drafted_by("model", model, models))
    with pytest.raises((AssertionError, ValueError)):
        assert written(fast) == plain


# --- the distribution


class Table:
    """A language model over five tokens whose probabilities are quarters, by the last token alone."""

    ROWS = ((0, 2, 1, 1, 0), (1, 1, 1, 0, 1), (0, 0, 2, 0, 2), (0, 1, 0, 3, 0), (1, 0, 1, 1, 1))

    def __init__(self, rows=ROWS) -> None:
        self.logits = torch.tensor(rows, dtype=torch.float64).log()


class FixedDrafter:
    """Guesses by another table, with the random number of the checked model."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def propose(self, text, num_tokens, choose):
        drafts: list[int] = []
        while len(drafts) < num_tokens:
            drafts.append(choose(self._table.logits[[[*text, *drafts][-1]]], drafts))
        return drafts

    def observe(self, hidden):
        pass


@pytest.fixture(scope="module")
def table_model():
    """The table as a model: no layer mixes anything, the head reads the token's row."""
    config = LlamaConfig(
        vocab_size=5, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=16, tie_word_embeddings=False,
    )  # fmt: skip
    model = build_model(config, seed=0, dtype=torch.float64).eval()
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items() if "norm" not in name}
    state["model.embed_tokens.weight"] = torch.eye(5, 8, dtype=torch.float64)
    scale = 1 / math.sqrt(8)  # the final norm makes a unit vector's entry sqrt(8)
    state["lm_head.weight"][:, :5] = Table().logits.clamp(min=-200).T * scale
    model.load_state_dict({**model.state_dict(), **state})
    logits = model(torch.arange(5)[None])[0]
    torch.testing.assert_close(logits, Table().logits.clamp(min=-200), rtol=1e-5, atol=1e-5)
    return model


OTHER = Table(((1, 1, 1, 0, 1), (1, 0, 2, 1, 0), (1, 1, 1, 1, 0), (1, 1, 1, 0, 1), (4, 0, 0, 0, 0)))


@pytest.mark.parametrize("drafter", ["another table", "ngram", "the same table"])
def test_the_distribution_is_exact_by_enumeration(table_model, monkeypatch, drafter):
    """Every text of four tokens, by running the loop on all 4^4 outcomes of its random numbers: its share of them is
    the product of the table's probabilities, exactly."""
    makers = {"another table": FixedDrafter(OTHER), "the same table": FixedDrafter(Table())}
    numbers: tuple[float, ...] = ()
    monkeypatch.setattr(speculative, "uniform", lambda key, position: numbers[position])
    counts: Counter[tuple[int, ...]] = Counter()
    settings, prompt = SamplingConfig(temperature=1, max_new_tokens=4), [0, 1, 0, 1]
    tally = Tally()
    for outcome in itertools.product([0.125, 0.375, 0.625, 0.875], repeat=4):
        numbers = outcome
        make = lambda max_len: makers.get(drafter) or NgramDrafter(shortest=1)  # noqa: E731
        speculation = Speculation(make, 3, adapts=False, tally=tally)
        counts[tuple(written(SpeculativeGeneration(table_model, [prompt], settings, speculation))[0])] += 1
    assert 0 < tally.num_accepted <= tally.num_drafted
    assert (tally.num_accepted == tally.num_drafted) == (drafter == "the same table")
    for text in itertools.product(range(5), repeat=4):
        chain = zip((prompt[-1], *text), text, strict=False)
        assert counts[text] == math.prod(Table.ROWS[before][token] for before, token in chain), text


@pytest.mark.slow
@pytest.mark.parametrize("drafter", ["model", "mtp"])
def test_draws_of_a_larger_vocabulary_pass_a_chi_square_test(models, drafter):
    """The third token after one prompt, over 500 draws, beside its exact distribution (all first two tokens summed
    over). The bound is exceeded once in 10,000 times; the seed is fixed."""
    model, prompt = models["qwen3_next"], [1, 2, 1, 2]
    settings = SamplingConfig(temperature=1.5, max_new_tokens=3)
    pairs = torch.tensor(list(itertools.product(range(24), repeat=2)))
    with torch.inference_mode():
        logits = model(torch.cat((torch.tensor([prompt]).expand(len(pairs), -1), pairs), dim=1))[:, 3:]
        p = (logits / 1.5).softmax(-1)
    weights = p[torch.arange(len(pairs)), 0, pairs[:, 0]] * p[torch.arange(len(pairs)), 1, pairs[:, 1]]
    expected = (weights[:, None] * p[:, 2]).sum(0) * 500
    speculation = drafted_by(drafter, model, models)
    counts = torch.zeros(24)
    rows = written(SpeculativeGeneration(model, [prompt] * 500, settings, speculation))
    for row in rows:
        counts[row[2]] += 1
    assert speculation.tally.num_accepted > 0
    common = expected >= 5
    observed = torch.cat((counts[common], counts[~common].sum()[None]))
    wanted = torch.cat((expected[common], expected[~common].sum()[None])) if (~common).any() else expected[common]
    observed = observed[: len(wanted)]
    chi_square = ((observed - wanted) ** 2 / wanted).sum().item()
    degrees = len(wanted) - 1
    assert chi_square < degrees * (1 - 2 / (9 * degrees) + 3.72 * math.sqrt(2 / (9 * degrees))) ** 3  # Wilson-Hilferty


# --- when it does not pay


def paced(per_draft: float, right: float, most: int = 4) -> Pace:
    """After fifty passes in which a guess is right with that probability, whose predecessors were."""
    pace, generator = Pace(most), torch.Generator().manual_seed(0)
    for _ in range(50):
        n = pace.num_drafts()
        hits = (torch.rand(n, generator=generator) < right).tolist() if n else []
        num_right = next((i for i, hit in enumerate(hits) if not hit), n)
        pace.note(n, num_right, 1 + per_draft * n)
    return pace


@pytest.mark.parametrize(
    ("per_draft", "right", "drafts"), [(0.01, 0.95, 4), (0.6, 0.1, 0), (0.25, 0.5, 1), (1.5, 0.9, 0), (0.02, 0.02, 0)]
)
def test_as_many_are_drafted_as_pay(per_draft, right, drafts):
    pace = paced(per_draft, right)
    assert pace.num_drafts() == drafts
    assert pace.is_off == (drafts == 0)


def test_the_first_passes_are_plain_and_the_very_first_is_not_counted():
    pace = Pace(4)
    for seconds in (100.0, 1.0, 1.0):
        assert pace.num_drafts() == 0
        pace.note(0, 0, seconds)
    assert pace.num_drafts() == 4 and pace.plain_seconds == 1.0


def test_speculation_that_loses_is_given_up_and_says_so(models):
    model, ticks = models["qwen3"], itertools.count()
    # Each pass reads the clock twice; the drafter adds ten seconds.
    now = [0.0]

    class Slow(NgramDrafter):
        def propose(self, text, num_tokens, choose):
            now[0] += 10
            return [0] * num_tokens

    def clock():
        now[0] += next(ticks) % 2
        return now[0]

    speculation = Speculation(lambda max_len: Slow(), clock=clock)
    prompts = [[1, 2, 3]]
    text = written(SpeculativeGeneration(model, prompts, replace(SAMPLED, max_new_tokens=40), speculation))
    assert text == written(Generation(model, prompts, replace(SAMPLED, max_new_tokens=40)))
    tally = speculation.tally
    assert tally.num_given_up == 1 and tally.num_drafted == speculative.NUM_TRIED * 4
    sentence = tally.sentence()
    assert "given up in 1 text: it lost time" in sentence and f"of {tally.num_drafted} drafted" in sentence


def test_ngrams_are_found_where_they_stood_last():
    drafter = NgramDrafter(longest=3, shortest=2)
    assert drafter.propose([1, 2, 3, 9, 1, 2, 4, 8, 1, 2], 3, lambda *_: 0) == [4, 8, 1]
    assert drafter.propose([1, 2, 3, 9, 1, 2, 4, 8, 1, 2, 3], 3, lambda *_: 0) == [9, 1, 2]
    assert drafter.propose([1, 2, 3, 9, 1, 2, 4, 8, 1, 2, 3, 5], 3, lambda *_: 0) == []
    assert NgramDrafter().propose([1], 3, lambda *_: 0) == []


# --- from Python and the command line


@pytest.fixture(scope="module")
def pair(tmp_path_factory, checkpoint):
    """A hybrid with an MTP head, and the small Qwen3 of the other tests; both know bytes."""
    directory, tokenizer = tmp_path_factory.mktemp("mtp") / "model", make_tokenizer("byte")
    directory.mkdir()
    config = Qwen3NextConfig(
        **{**NEXT, "vocab_size": tokenizer.vocab_size, "max_position_embeddings": 64}, num_nextn_predict_layers=1
    )
    save_model(build_model(config, seed=0), directory, eos_token_id=tokenizer.end_id)
    tokenizer.save(directory)
    return directory, checkpoint


def test_the_command_line_names_drafters_and_tells_what_they_brought(pair, capsys):
    directory, small = pair
    words = ["generate", "--ckpt", str(directory), "--prompt", "ab", "--max_new_tokens", "30", "--seed", "3", "--json"]
    words += ["--device", "cpu", "--num_samples", "2"]
    assert run(words) == 0
    plain = capsys.readouterr()
    assert "speculation" not in plain.err
    for drafter in ("ngram", "mtp", "auto", str(small)):
        assert run([*words, "--speculative", drafter, "--num_draft_tokens", "2"]) == 0
        done = capsys.readouterr()
        assert done.out == plain.out
        assert "speculation: " in done.err
    options = {"max_new_tokens": 30, "seed": 3}
    lm = load(directory, device="cpu")
    text = json.loads(plain.out.splitlines()[0])["text"]
    assert lm.generate("ab", **options, speculative="mtp", num_draft_tokens=3) == lm.generate("ab", **options) == text
    assert "".join(lm.stream("ab", **options, speculative="ngram")) == text


def test_the_config_of_a_run_names_its_drafter(pair, tmp_path, capsys):
    run_dir = tmp_path / "run"
    shutil.copytree(pair[0], run_dir / "model")
    (run_dir / "config.yaml").write_text("training: {sample_drafter: auto}\n")
    words = ["generate", "--ckpt", str(run_dir / "model"), "--prompt", "a", "--max_new_tokens", "9", "--device", "cpu"]
    assert run(words) == 0
    assert "speculation: " in capsys.readouterr().err
    assert run([*words, "--engine", "fast"]) == ExitCode.USAGE  # who asks for an engine is not given a drafter instead
    assert "no compiled step" in capsys.readouterr().err


def test_a_drafter_that_cannot_be_is_refused(pair, tmp_path, capsys):
    small = pair[1]
    other = tmp_path / "other"
    shutil.copytree(small, other)
    make_tokenizer("char", texts=["abc"]).save(other)
    words = ["generate", "--prompt", "ab", "--device", "cpu"]
    for more, what in (
        (["--ckpt", str(small), "--speculative", "mtp"], "has no MTP head"),
        (["--ckpt", str(small), "--speculative", "nobody"], "nobody does not exist"),
        (["--ckpt", str(small), "--speculative", str(other)], "has another tokenizer"),
        (["--ckpt", str(small), "--speculative", "ngram", "--num_draft_tokens", "0"], "--num_draft_tokens 0"),
        (["--ckpt", str(small), "--speculative", "ngram", "--interactive"], "are both given"),
    ):
        assert run([*words, *more]) != 0
        assert what in capsys.readouterr().err
    with pytest.raises(UserError, match="speculative = 3"):
        load(small, device="cpu").generate("a", speculative=3)
    with pytest.raises(UserError, match="speculative needs a prompt that is text"):
        load(small, device="cpu").generate([1], speculative="ngram")
