"""What a model's shape may be, what is refused with which words, and how config.json is read and written."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tiny_transformer.config.hf import config_from_hf
from tiny_transformer.config.shapes import LlamaConfig, ModelConfig, Olmo2Config, Qwen3Config, Qwen3NextConfig
from tiny_transformer.errors import ExitCode, UserError

YARN = {"rope_type": "yarn", "factor": 4.0}
LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4}


@pytest.mark.parametrize(
    ("config_class", "arguments", "words"),
    [
        (LlamaConfig, {"hidden_size": 250}, ["hidden_size 250", "num_attention_heads 8", "248 or 256"]),
        (LlamaConfig, {"hidden_size": 5}, ["hidden_size 5", "nearest: 8"]),
        (LlamaConfig, {"hidden_size": 24}, ["hidden_size 24", "head_dim 3", "odd", "16 or 32"]),
        (LlamaConfig, {"hidden_size": 250, "head_dim": 32}, ["hidden_size 250", "248 or 256", "model_type qwen3"]),
        (Qwen3Config, {"head_dim": 33}, ["head_dim 33", "odd", "32 or 34"]),
        (
            Qwen3Config,
            {"num_attention_heads": 6, "num_key_value_heads": 4, "head_dim": 8},
            ["num_key_value_heads 4", "heads 6", "1, 2, 3, 6"],
        ),
        (LlamaConfig, {"norm_type": "layernorm", "sliding_window": 7}, ["layernorm", "sliding_window 7", "mistral"]),
        (LlamaConfig, {"norm_type": "layernorm", "attention_bias": True}, ["layernorm", "attention_bias", "stablelm"]),
        (LlamaConfig, {"norm_type": "layernorm", "head_dim": 16}, ["head_dim 16", "layernorm", "here 32"]),
        (LlamaConfig, {"sliding_window": 7, "attention_bias": True}, ["attention_bias", "sliding_window 7", "mistral"]),
        (Qwen3Config, {"sliding_window": 7}, ["sliding_window 7", "use_sliding_window true"]),
        (Qwen3Config, {"use_sliding_window": True}, ["use_sliding_window true needs sliding_window"]),
        (Qwen3Config, {"layer_types": ["full_attention"]}, ["layer_types has 1 entries", "num_hidden_layers 6"]),
        (Qwen3Config, {"layer_types": ["sliding_attention"] * 6}, ["sliding_attention", "use_sliding_window true"]),
        (Qwen3Config, {"layer_types": ["linear_attention"]}, ["layer_types.0", "full_attention"]),
        (Qwen3NextConfig, {"layer_types": ["full_attention"]}, ["layer_types has 1 entries", "num_hidden_layers 6"]),
        (Qwen3NextConfig, {"linear_num_key_heads": 3}, ["linear_num_value_heads 4", "linear_num_key_heads 3"]),
        (Qwen3NextConfig, {"partial_rotary_factor": 0.1}, ["partial_rotary_factor 0.1", "head_dim 32", "3 turning"]),
        (Qwen3NextConfig, {"mlp_only_layers": [6]}, ["mlp_only_layers [6]", "0 to 5"]),
        (Qwen3NextConfig, {"num_experts": 1}, ["num_experts_per_tok 2", "num_experts 1"]),
        (Qwen3NextConfig, {"num_experts": 0, "moe_intermediate_size": 8}, ["moe_intermediate_size 8", "num_experts 0"]),
        (Qwen3NextConfig, {"num_nextn_predict_layers": 2}, ["num_nextn_predict_layers"]),
        (Olmo2Config, {"head_dim": 64}, ["head_dim 64", "hidden_size 256", "model_type qwen3"]),
        (LlamaConfig, {"qkv_bias": True, "attention_bias": True}, ["qkv_bias", "attention_bias", "qwen2"]),
        (LlamaConfig, {"qkv_bias": True, "sliding_window": 7}, ["qkv_bias", "sliding_window 7", "qwen2"]),
        (LlamaConfig, {"qkv_bias": True, "head_dim": 16}, ["head_dim 16", "qkv_bias", "here 32"]),
        (LlamaConfig, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, ["rope_scaling", "dynamic", "linear"]),
        (LlamaConfig, {"rope_scaling": {**YARN, "original_max_position_embeddings": 8}, "rope_theta": 1}, ["yarn"]),
        (LlamaConfig, {"hidden_sise": 64}, ["hidden_sise", "Extra inputs"]),
        (LlamaConfig, {"num_hidden_layers": 10**9}, ["num_hidden_layers", "1024"]),
        (LlamaConfig, {"rope_theta": float("nan")}, ["rope_theta"]),
        (LlamaConfig, {"rms_norm_eps": 0}, ["rms_norm_eps", "greater than 0"]),
        (LlamaConfig, {"norm_type": "batchnorm"}, ["norm_type", "rmsnorm", "layernorm"]),
    ],
)
def test_an_impossible_shape_is_refused_by_name_and_value(config_class, arguments, words):
    with pytest.raises(ValidationError) as caught:
        config_class(**arguments)
    assert caught.value.error_count() == 1
    for word in words:
        assert word in str(caught.value)


def test_one_mistake_gives_one_message():
    with pytest.raises(ValidationError) as caught:
        LlamaConfig(hidden_size=-3)
    assert [error["loc"] for error in caught.value.errors()] == [("hidden_size",)]


def test_head_dim_is_resolved_and_stored():
    assert LlamaConfig(hidden_size=96, num_attention_heads=8).head_dim == 12
    assert Qwen3Config(hidden_size=96, num_attention_heads=8, head_dim=None).model_dump()["head_dim"] == 12
    assert Qwen3Config(hidden_size=100, num_attention_heads=8, head_dim=16).head_dim == 16


def test_layer_types_are_resolved_and_stored():
    full, sliding = "full_attention", "sliding_attention"
    assert Qwen3Config(num_hidden_layers=2).layer_types == (full, full)
    late = Qwen3Config(num_hidden_layers=3, use_sliding_window=True, sliding_window=8, max_window_layers=2)
    assert late.layer_types == (full, full, sliding)
    own = {"layer_types": [sliding, full, sliding], "use_sliding_window": True, "sliding_window": 8}
    assert Qwen3Config(num_hidden_layers=3, **own).layer_types == (sliding, full, sliding)


def test_model_type_chooses_the_architecture_and_its_keys():
    adapter = TypeAdapter(ModelConfig)
    assert isinstance(adapter.validate_python({"model_type": "qwen3", "max_window_layers": 1}), Qwen3Config)
    with pytest.raises(ValidationError, match="max_window_layers"):
        adapter.validate_python({"model_type": "llama", "max_window_layers": 1})


def test_every_key_is_documented():
    for config_class in (LlamaConfig, Olmo2Config, Qwen3Config, Qwen3NextConfig):
        for name, field in config_class.model_fields.items():
            assert field.description and field.description.endswith("."), name


def test_a_config_survives_config_json(config):
    assert config_from_hf(config.to_hf(), "x") == config
    assert config_from_hf(config.to_hf(dtype="bfloat16", eos_token_id=[1, 2], pad_token_id=0), "x") == config


def test_both_generations_of_readers_find_their_keys(config):
    hf = config.to_hf(dtype="bfloat16", eos_token_id=5)
    assert hf["rope_theta"] == hf["rope_parameters"]["rope_theta"] == 5000.0
    if isinstance(config, Qwen3NextConfig):
        factors = hf["partial_rotary_factor"], hf["rope_parameters"]["partial_rotary_factor"]
        assert factors == (config.partial_rotary_factor,) * 2
        assert hf["layer_types"] and hf["full_attention_interval"] == config.full_attention_interval
    scaling = config.rope_numbers()
    assert hf.get("rope_scaling") == scaling  # where 4.57 looks for it
    assert hf["rope_parameters"].items() >= (scaling or {"rope_type": "default"}).items()
    assert hf["dtype"] == hf["torch_dtype"] == "bfloat16"
    assert (hf["bos_token_id"], hf["eos_token_id"], hf["pad_token_id"]) == (None, 5, None)
    assert hf["vocab_size"] == 61 and len(hf["architectures"]) == 1
    architecture, model_type = hf["architectures"][0].lower(), hf["model_type"].removesuffix("_text")
    assert architecture.startswith((model_type, model_type.replace("_", "")))


def test_token_ids_are_named_exactly():
    with pytest.raises(TypeError, match="end_token_id"):
        LlamaConfig().to_hf(end_token_id=3)


def test_the_classic_decoder_is_written_as_the_type_that_computes_the_same():
    assert LlamaConfig().to_hf()["model_type"] == "llama"
    assert LlamaConfig(sliding_window=9).to_hf()["model_type"] == "mistral"
    assert LlamaConfig(norm_type="layernorm").to_hf()["model_type"] == "stablelm"


def test_absent_keys_take_hugging_face_defaults_not_ours():
    assert config_from_hf({"model_type": "llama"}, "x") == LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    assert config_from_hf({"model_type": "mistral"}, "x").sliding_window == 4096
    qwen = config_from_hf({"model_type": "qwen3"}, "x")
    assert config_from_hf({"model_type": "qwen3", "hidden_size": 64}, "x").head_dim == 128  # not 64 / 32
    assert (qwen.head_dim, qwen.num_key_value_heads, qwen.sliding_window, qwen.rope_theta) == (128, 32, None, 10_000.0)
    stablelm = config_from_hf({"model_type": "stablelm", "partial_rotary_factor": 1.0}, "x")
    assert (stablelm.norm_type, stablelm.rms_norm_eps, stablelm.head_dim) == ("layernorm", 1e-5, 80)


def test_defaults_are_those_of_the_installed_transformers():
    transformers = pytest.importorskip("transformers")
    for name in ("Llama", "Mistral", "Olmo2", "Qwen2", "Qwen3", "Qwen3Next", "Qwen3_5Text"):
        theirs = getattr(transformers, f"{name}Config")()
        assert config_from_hf({"model_type": theirs.model_type}, "x") == config_from_hf(theirs.to_dict(), "x")
    theirs = transformers.StableLmConfig(partial_rotary_factor=1.0)
    assert config_from_hf({"model_type": "stablelm", "partial_rotary_factor": 1.0}, "x") == config_from_hf(
        theirs.to_dict(), "x"
    )


def test_a_released_qwen3_config_is_read():
    released = {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "model_type": "qwen3",
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    }
    config = config_from_hf(released, "x")
    assert isinstance(config, Qwen3Config)
    assert (config.rope_theta, config.head_dim, config.sliding_window) == (1e6, 128, None)
    assert set(config.layer_types) == {"full_attention"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt2"}, ["'gpt2'", "llama, mistral, stablelm, qwen2, qwen3"]),
        ({"model_type": None}, ["None", "llama"]),
        ({"model_type": ["llama"]}, ["['llama']"]),
        ({"hidden_act": "gelu"}, ["hidden_act 'gelu'", "silu"]),
        ({"mlp_bias": True}, ["mlp_bias True"]),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ["rope_type 'dynamic'", "linear, llama3, yarn"]),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 4.0}}, ["rope_type 'longrope'"]),
        (
            {"rope_scaling": {"type": "linear", "factor": 0.5}},
            ["rope_type linear: factor", "greater than or equal to 1"],
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 1.0}}, ["rope_type yarn: mscale is not supported"]),
        ({"rope_scaling": {"type": "llama3", "factor": 4.0}}, ["rope_type llama3: low_freq_factor field required"]),
        ({"rope_scaling": {**YARN, "beta_fast": 1, "beta_slow": 1}}, ["rope_type yarn", "beta_fast 1.0 must exceed"]),
        ({"rope_scaling": YARN, "rope_parameters": {**YARN, "factor": 8.0}}, ["factor 8.0", "4.0", "disagree"]),
        ({"rope_parameters": {"rope_theta": 5.0, "factor": 4.0}}, ["RoPE with factor"]),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, ["RoPE with full_attention"]),
        ({"rope_parameters": [1]}, ["rope_parameters [1]"]),
        ({"rope_theta": 10000.0, "rope_parameters": {"rope_theta": 1e6}}, ["10000.0", "1000000.0", "disagree"]),
        ({"rope_theta": "many"}, ["rope_theta 'many'"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor 0.5"]),
        ({"model_type": "stablelm"}, ["partial_rotary_factor 0.25"]),
        ({"model_type": "stablelm", "partial_rotary_factor": 1.0, "qk_layernorm": True}, ["qk_layernorm True"]),
        ({"model_type": "qwen2", "use_sliding_window": True}, ["sliding windows of qwen2"]),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 32}, ["sliding windows of qwen2"]),
        ({"auto_map": {"AutoModel": "x.py"}, "quantization_config": {}}, ["auto_map, quantization_config"]),
        ({"sliding_window": 4}, ["llama with sliding_window"]),
        ({"num_hidden_layers": -1}, ["num_hidden_layers -1"]),
        ({"hidden_size": 10**30}, ["hidden_size 1000"]),
        ({"hidden_size": "big"}, ["hidden_size 'big'"]),
        ({"hidden_act": "x" * 10_000}, ["hidden_act 'xxx"]),
        ({"model_type": ["llama"] * 10_000}, ["['llama'"]),
        ({f"key{i}": 0 for i in range(10_000)}, ["key0, key1, key10 and 9997 more"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads 3", "1, 2, 4, 8"]),
    ],
)
def test_a_config_json_we_do_not_compute_is_refused(change, words):
    with pytest.raises(UserError) as caught:
        config_from_hf({**LLAMA, **change}, "dir/config.json")
    assert caught.value.exit_code == ExitCode.BAD_DATA and caught.value.where == "dir/config.json"
    for word in words:
        assert word in str(caught.value)
    assert len(caught.value.lines()) == 3 and all(len(line) < 250 for line in caught.value.lines())


@pytest.mark.parametrize("model_type", ["qwen3_next", "qwen3_5_text"])
def test_a_hybrid_may_say_that_it_has_no_window(model_type):
    config = {"model_type": model_type, "vocab_size": 99}
    assert config_from_hf({**config, "use_sliding_window": False}, "x") == config_from_hf(config, "x")
    for value in (True, 0, None):
        with pytest.raises(UserError, match=f"use_sliding_window {value} is not supported"):
            config_from_hf({**config, "use_sliding_window": value}, "x")


KEYS = [
    *Qwen3Config.model_fields,
    *(name for name in Qwen3NextConfig.model_fields if name not in Qwen3Config.model_fields),
    "norm_type",
    "rope_parameters",
    "rope_scaling",
    "partial_rotary_factor",
    "hidden_act",
]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 300),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.sampled_from(["full_attention", "sliding_attention", "linear_attention", 1]), max_size=3),
    st.dictionaries(
        st.sampled_from(
            ["rope_type", "type", "rope_theta", "factor", "beta_fast", "low_freq_factor", "high_freq_factor"]
        ),
        st.none() | st.floats() | st.text(max_size=3) | st.sampled_from(["linear", "yarn", "llama3"]),
    ),
)


@settings(max_examples=300, deadline=None)
@given(
    model_type=st.sampled_from(
        ["llama", "mistral", "stablelm", "qwen2", "qwen3", "qwen3_next", "qwen3_5_text", "olmo2"]
    ),
    changes=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4),
)
def test_any_config_json_is_read_or_refused_and_never_breaks(model_type, changes):
    changes.pop("model_type", None)
    try:
        config = config_from_hf({"model_type": model_type, "partial_rotary_factor": 1.0, **changes}, "x")
    except UserError:
        return
    assert config_from_hf(config.to_hf(), "x") == config
