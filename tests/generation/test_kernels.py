"""The compiled step beside the models it repeats: logits, greedy text, caches taken back, and who is refused."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from tiny_transformer.config.shapes import LlamaConfig, Olmo2Config, Qwen3Config, Qwen3NextConfig
from tiny_transformer.errors import UserError
from tiny_transformer.generation import engines
from tiny_transformer.generation.decoder import Decoder
from tiny_transformer.generation.engines import choose_engine, why_not_fast
from tiny_transformer.generation.rows import continue_ids
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.layers.attention import attend
from tiny_transformer.layers.blocked_attention import attend_in_blocks, read_in_blocks
from tiny_transformer.models import build_model
from tiny_transformer.models.swaps import add_lora, quantize_layers, quantize_words

from .conftest import SHAPE

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "llama window": LlamaConfig(**SHAPE, sliding_window=6),
    "llama qkv bias": LlamaConfig(**SHAPE, qkv_bias=True),
    "llama bias": LlamaConfig(**SHAPE, attention_bias=True),
    "llama one head": LlamaConfig(**{**SHAPE, "num_key_value_heads": 1}),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=False),
    "qwen3 window": Qwen3Config(**SHAPE, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen3 yarn": Qwen3Config(**SHAPE, rope_scaling=YARN),
    "olmo2": Olmo2Config(**SHAPE),
}
KINDS = ("fp32", "bf16", "int8", "int8 in 16s", "int8 in 32s", "int4", "int4 in 8s")
IDS = torch.randint(0, 40, (1, 40), generator=torch.Generator().manual_seed(0))


def made(name: str, kind: str = "fp32"):
    """A random model whose norms and biases count."""
    model, generator = build_model(CONFIGS[name], seed=1), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    if kind == "bf16":
        model = model.to(torch.bfloat16)
    if kind in ("int8", "int4"):
        quantize_layers(model, kind)
        quantize_words(model)
    if " in " in kind:
        bits, size = kind.split()[0], int(kind.split()[2].removesuffix("s"))
        quantize_layers(model, bits, group_size=size)
        quantize_words(model, bits, group_size=size)
    return model.eval()


def read(model, ids: torch.Tensor = IDS, prompt: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and hidden states (T, ...) of the tokens after a prompt, read one by one."""
    decoder = Decoder(model, 1, ids.shape[1])
    decoder.feed(ids[:, :prompt])
    logits, hidden = [], []
    for token in ids[:, prompt:].T:
        logits.append(decoder.feed_last(token[None])[0].float())
        hidden.append(decoder.hidden[0, 0].float())
    return torch.stack(logits), torch.stack(hidden)


def test_one_function_chooses_and_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("qwen3")
    assert choose_engine(model, "plain") == "plain engine"
    with pytest.raises(UserError, match="there is no engine 'quick'"):
        choose_engine(model, "quick")
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    assert choose_engine(model) == "plain engine: numba is not installed (pip install numba)"
    with pytest.raises(UserError, match="no compiled step: numba is not installed"):
        choose_engine(model, "fast")
    assert Decoder(model, 1, 4).feed_last(IDS[:, :1]).shape == (1, 40)


def test_prompts_are_read_in_blocks_beside_the_compiled_step_where_bf16_is_fast(monkeypatch) -> None:
    pytest.importorskip("numba")
    model = made("qwen3", "bf16")
    first, second = (layer.self_attn for layer in model.model.layers)
    second.attend = attend_in_blocks  # training put it there, and it stays
    for switch, form in (("grant", read_in_blocks), ("hide", attend)):
        monkeypatch.setenv("TINY_TRANSFORMER_BF16", switch)
        choose_engine(model, "fast")
        assert (first.attend, second.attend) == (form, attend_in_blocks)
    monkeypatch.setenv("TINY_TRANSFORMER_BF16", "grant")
    choose_engine(model, "fast")
    choose_engine(model, "plain")
    assert (first.attend, second.attend) == (attend, attend_in_blocks)


def test_what_the_compiled_step_does_not_cover_is_named() -> None:
    pytest.importorskip("numba")
    layer_norm = build_model(LlamaConfig(**SHAPE, norm_type="layernorm"), seed=0)
    assert why_not_fast(layer_norm) == "it computes no LayerNorm"
    assert "float64" in (why_not_fast(made("llama").double()) or "")
    low_rank = made("llama")
    add_lora(low_rank, ["q_proj"], rank=2, alpha=2.0)
    assert "it computes no adapters" in (why_not_fast(low_rank) or "")
    mixed = made("llama")
    mixed.model.layers[1] = made("llama", "int8").model.layers[1]
    assert "not all of one kind" in (why_not_fast(mixed) or "")
    hybrid = build_model(Qwen3NextConfig(**SHAPE, head_dim=16, full_attention_interval=2, num_experts=0), seed=0)
    assert "qwen3_next has layers" in (why_not_fast(hybrid) or "")
    for config in ({"intermediate_size": 47}, {"intermediate_size": 48}):
        odd = build_model(LlamaConfig(**{**SHAPE, **config}), seed=0)
        quantize_layers(odd, "int4")
        assert (why_not_fast(odd) is None) == (config["intermediate_size"] == 48)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bf16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_hidden_states_are_the_models(name: str, kind: str) -> None:
    pytest.importorskip("numba")
    model = made(name, kind)
    whole = model(IDS).detach()
    expected, threads = read(model), torch.get_num_threads()
    assert choose_engine(model, "fast").startswith(f"compiled step, {kind.partition(' ')[0]}, {threads} thread")
    found = read(model)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=5e-5)
    assert torch.get_num_threads() == threads
    assert torch.equal(model(IDS), whole)  # its matrices lie elsewhere now, and are the same
    choose_engine(model, "plain")
    assert torch.equal(read(model)[0], expected[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama bias", "qwen3", "olmo2"])
def test_bfloat16_is_nearer_to_the_exact_result_than_the_plain_engine(name: str) -> None:
    pytest.importorskip("numba")
    model = made(name, "bf16")
    exact = read(made(name, "bf16").float(), prompt=1)[0]  # a long prompt would be the plain engine's for both
    plain = (read(model, prompt=1)[0] - exact).square().mean()
    assert "bf16" in choose_engine(model, "fast")
    assert (read(model, prompt=1)[0] - exact).square().mean() < 0.5 * plain


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama window", "qwen3", "olmo2"])
def test_greedy_text_of_two_hundred_prompts_is_token_for_token_the_same(name: str) -> None:
    pytest.importorskip("numba")
    model, texts = made(name), []
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(0, 40, (1, 1 + n % 17), generator=generator) for n in range(200)]
    for engine in ("plain", "fast"):
        choose_engine(model, engine)
        for prompt in prompts:
            decoder = Decoder(model, 1, 40)
            text = [decoder.feed_last(prompt).argmax(-1)]
            while len(text) < 20:
                text.append(decoder.feed_last(text[-1][None]).argmax(-1))
            texts.append(torch.cat(text).tolist())
    assert texts[:200] == texts[200:] and len({tuple(text) for text in texts}) > 100


@pytest.mark.slow
def test_the_cache_is_the_plain_engines_and_can_be_taken_back_copied_and_emptied() -> None:
    pytest.importorskip("numba")
    model, found = made("qwen3"), []
    for engine in ("plain", "fast"):
        choose_engine(model, engine)
        decoder, logits = Decoder(model, 1, 40), []
        decoder.feed(IDS[:, :5])
        decoder.snapshot()
        for token in range(5, 9):
            logits.append(decoder.feed_last(IDS[:, token : token + 1]))
        decoder.rollback(2)
        logits.append(decoder.feed_last(IDS[:, 20:21]))
        logits.append(decoder.feed(IDS[:, 21:25])[:, -1])  # several tokens: the plain engine, on the same cache
        logits.append(decoder.feed_last(IDS[:, 25:26]))
        decoder.select([0, 0])
        logits.append(decoder.feed_last(IDS[:, 26:28].T))
        decoder.select([1])
        logits.append(decoder.feed_last(IDS[:, 28:29]))
        decoder.reset([0])
        logits.append(decoder.feed_last(IDS[:, 3:4]))
        assert decoder.cache.lengths == [1]
        with pytest.raises(ValueError, match="do not fit"):
            for _ in range(40):
                decoder.feed_last(IDS[:, :1])
        found.append(torch.cat(logits))
    torch.testing.assert_close(found[1], found[0], rtol=2e-5, atol=5e-5)


def test_ctrl_c_waits_until_the_step_is_compiled_and_is_then_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba calls Python while it compiles; an exception there is printed and lost."""
    pytest.importorskip("numba")
    model = made("qwen3")
    choose_engine(model, "fast")
    done: list[object] = []

    def compiling(*given: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        done.append(given)

    monkeypatch.setattr("tiny_transformer.generation.kernels.step", compiling)
    decoder = Decoder(model, 1, 8)
    decoder.feed(IDS[:, :2])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            decoder.feed_last(IDS[:, 2:3])
        assert len(done) == 1 and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def read_rows(model, count: int = 6, prompts: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and hidden states (steps, 3, ...) of three texts of unequal lengths, a token of each at a time."""
    decoder, lengths = Decoder(model, 3, 40), (10, 2, 17) if prompts else (0, 0, 0)
    if prompts:
        decoder.feed_last([IDS[0, :10].tolist(), IDS[0, 3:5].tolist(), IDS[0, 20:37].tolist()])
    logits, hidden = [], []
    for place in range(count):
        logits.append(decoder.feed_last(IDS[:, place : place + 15 : 5].T).float())
        hidden.append(decoder.hidden[:, 0].float())
    assert decoder.cache.lengths == [length + count for length in lengths]
    return torch.stack(logits), torch.stack(hidden)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "fp32") for name in CONFIGS), *(("llama bias", kind) for kind in KINDS if kind not in ("fp32", "bf16"))],
)
def test_rows_side_by_side_are_the_models(name: str, kind: str) -> None:
    pytest.importorskip("numba")
    model = made(name, kind)
    expected = read_rows(model)
    choose_engine(model, "fast")
    for ours, theirs in zip(read_rows(model), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama bias", "qwen3", "olmo2"])
def test_rows_in_bfloat16_are_nearer_to_the_exact_result_than_the_plain_engine(name: str) -> None:
    pytest.importorskip("numba")
    model, found = made(name, "bf16"), []
    exact = read_rows(made(name, "bf16").float(), 20, prompts=False)[0]
    for engine in ("plain", "fast"):
        choose_engine(model, engine)
        found.append((read_rows(model, 20, prompts=False)[0] - exact).square().mean())
    assert found[1] < found[0]


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "outputs"), [(1, 4), (4, 5), (5, 1), (16, 11)])
def test_a_product_of_rows_at_odd_sizes(rows: int, outputs: int) -> None:
    pytest.importorskip("numba")
    from tiny_transformer.generation.kernels import Matrix
    from tiny_transformer.generation.row_step import Products

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((2, outputs, 37), generator=generator)
    bias = torch.randn((2, outputs), generator=generator)
    products = Products(Matrix(weight.numpy(), torch.empty(2, 0, 0).numpy(), 0, bias.numpy()), 37, rows)
    x = torch.randn((rows, 37), generator=generator)
    products.inputs[:rows] = x.numpy()
    torch.testing.assert_close(products.of(1), torch.nn.functional.linear(x, weight[1], bias[1]), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_greedy_texts_side_by_side_are_token_for_token_the_plain_engines() -> None:
    pytest.importorskip("numba")
    model, texts, generator = made("qwen3"), [], torch.Generator().manual_seed(5)
    prompts = [torch.randint(0, 40, (1 + n % 17,), generator=generator).tolist() for n in range(40)]
    for engine in ("plain", "fast"):
        choose_engine(model, engine)
        texts.append(continue_ids(model, prompts, SamplingConfig(temperature=0.0, max_new_tokens=20)))
    assert texts[0] == texts[1] and len({tuple(text) for text in texts[0]}) > 20
