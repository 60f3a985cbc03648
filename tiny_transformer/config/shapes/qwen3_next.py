"""The shape of Qwen3-Next: most layers a delta rule, the others gated attention, a few of many experts for each token.

Without experts it is the shape of the dense Qwen3.5 models, and saved as such: `qwen3_5_text`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tiny_transformer.config.shapes.decoder import (
    ABSENT,
    HF_DEFAULTS,
    HF_RMS,
    DecoderConfig,
    GgufForm,
    HfForm,
    cpu_head_dim_refusal,
    head_dim_refusal,
    layers_refusal,
    rope_refusal,
)

NextLayerType = Literal["linear_attention", "full_attention"]
# Keys that say nothing in a model without experts, and that Qwen3.5's config.json does not have.
EXPERT_KEYS = (
    "num_experts_per_tok",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "norm_topk_prob",
    "decoder_sparse_step",
    "mlp_only_layers",
    "router_aux_loss_coef",
)

_HYBRID = {
    **HF_DEFAULTS,
    **HF_RMS,
    "num_attention_heads": 16,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "full_attention_interval": None,
    "layer_types": None,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "mtp_loss_coef": 0.1,  # ours alone
    "attention_bias": False,
}
_QWEN3_NEXT = {
    **_HYBRID,
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": None,
    "router_aux_loss_coef": 0.001,
    "num_nextn_predict_layers": 0,
}
_QWEN3_5 = {
    **_HYBRID,
    "vocab_size": 248320,
    "intermediate_size": 12288,
    "num_key_value_heads": 4,
    "mtp_num_hidden_layers": 0,
}
_NEXT_ONLY = {"hidden_act": "silu", "attn_output_gate": True, "use_sliding_window": False}
_QWEN3_5_ONLY = {**_NEXT_ONLY, "mlp_only_layers": [], "mtp_use_dedicated_embeddings": False}
_MROPE = frozenset({"mrope_section", "mrope_interleaved"})  # how time, height and width share the angles


class Qwen3NextConfig(DecoderConfig):
    """Qwen3-Next: gated delta rule and gated attention in turn, sparse experts, zero-centred norms, an MTP head."""

    hf_forms: ClassVar = {
        "qwen3_next": HfForm(_QWEN3_NEXT, _NEXT_ONLY, rotary_share=0.25),
        "qwen3_5_text": HfForm(_QWEN3_5, _QWEN3_5_ONLY, 0.25, _MROPE),
    }
    residual_outputs = ("o_proj.weight", "down_proj.weight", "out_proj.weight")

    model_type: Literal["qwen3_next"] = "qwen3_next"
    """Which architecture; decides which other keys exist."""

    partial_rotary_factor: float = Field(0.25, gt=0, le=1, allow_inf_nan=False)
    """Share of each attention head that RoPE turns."""

    full_attention_interval: int = Field(4, ge=1, le=1024)
    """Every layer with this number is `full_attention`, the others `linear_attention`. Some readers know only this."""

    layer_types: tuple[NextLayerType, ...] = Field(ABSENT)
    """`linear_attention` or `full_attention` for each layer. `null`: by `full_attention_interval`, and then stored."""

    linear_conv_kernel_dim: int = Field(4, ge=1, le=64)
    """Tokens that the convolution before the delta rule sees, the token itself included."""

    linear_key_head_dim: int = Field(64, ge=1, le=2**12)
    """Width of a key in the delta rule: the memory of a head is a matrix of this many rows."""

    linear_value_head_dim: int = Field(64, ge=1, le=2**12)
    """Width of a value in the delta rule. llama.cpp needs it equal to `linear_key_head_dim`."""

    linear_num_key_heads: int = Field(2, ge=1, le=1024)
    """Query and key heads of the delta rule."""

    linear_num_value_heads: int = Field(4, ge=1, le=1024)
    """Value heads, and so memories, of the delta rule: a multiple of `linear_num_key_heads`."""

    num_experts: int = Field(16, ge=0, le=4096)
    """Feed-forward blocks a router chooses among. 0: none, every block is dense, and the model is saved as Qwen3.5."""

    num_experts_per_tok: int = Field(2, ge=1, le=4096)
    """Experts that work on each token."""

    moe_intermediate_size: int = Field(192, ge=1, le=2**20)
    """Width inside each expert."""

    shared_expert_intermediate_size: int = Field(192, ge=1, le=2**20)
    """Width inside the expert that works on every token."""

    norm_topk_prob: bool = Field(True)
    """Let the weights of a token's experts sum to one."""

    decoder_sparse_step: int = Field(1, ge=1, le=1024)
    """Every layer with this number has experts."""

    mlp_only_layers: tuple[int, ...] = Field(())
    """Layers, counted from 0, that have a dense block of `intermediate_size` instead of experts."""

    router_aux_loss_coef: float = Field(0.001, ge=0, le=1, allow_inf_nan=False)
    """Weight of the loss that keeps the experts equally busy."""

    num_nextn_predict_layers: int = Field(0, ge=0, le=1)
    """1: an MTP head of one layer predicts the token after the next (multi-token prediction)."""

    mtp_loss_coef: float = Field(0.1, ge=0, le=10, allow_inf_nan=False)
    """Weight of that head's loss in training."""

    @property
    def num_mtp_layers(self) -> int:
        """See `DecoderConfig`."""
        return self.num_nextn_predict_layers

    @field_validator("layer_types", mode="before", json_schema_input_type=tuple[NextLayerType, ...] | None)
    @classmethod
    def _resolve_layer_types(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None:
            return value
        interval, layers = info.data.get("full_attention_interval", 4), info.data.get("num_hidden_layers", 1)
        return tuple("linear_attention" if (i + 1) % interval else "full_attention" for i in range(layers))

    @model_validator(mode="after")
    def _check_next(self) -> Self:
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types has {len(self.layer_types)} entries for num_hidden_layers {self.num_hidden_layers}"
            )
        keys, values = self.linear_num_key_heads, self.linear_num_value_heads
        if values % keys:
            raise ValueError(f"linear_num_value_heads {values} is not a multiple of linear_num_key_heads {keys}")
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise ValueError(
                f"partial_rotary_factor {self.partial_rotary_factor} of head_dim {self.head_dim} makes "
                f"{self.rotary_dim} turning features, and RoPE turns pairs; it must be an even number from 2 on"
            )
        if any(not 0 <= i < self.num_hidden_layers for i in self.mlp_only_layers):
            raise ValueError(
                f"mlp_only_layers {list(self.mlp_only_layers)} names a layer that is not there: "
                f"0 to {self.num_hidden_layers - 1}"
            )
        if self.num_experts and self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok {self.num_experts_per_tok} is more than num_experts {self.num_experts}"
            )
        if not self.num_experts:
            for name in EXPERT_KEYS:
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} {getattr(self, name)} has no effect with num_experts 0; leave it out")
        return self

    @property
    def rotary_dim(self) -> int:
        """How many features of a head RoPE turns."""
        return int(self.head_dim * self.partial_rotary_factor)

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return (
            bool(self.num_experts) and layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0
        )

    @classmethod
    def from_hf_values(cls, model_type: str, values: dict[str, Any]) -> dict[str, Any]:
        # The pattern of the layers is all that transformers 5 writes of the interval.
        layers = values["layer_types"]
        if values["full_attention_interval"] is None:
            has_full = isinstance(layers, list) and "full_attention" in layers
            values["full_attention_interval"] = layers.index("full_attention") + 1 if has_full else 4
        if model_type == "qwen3_5_text":
            return values | {"num_experts": 0, "num_nextn_predict_layers": values.pop("mtp_num_hidden_layers")}
        return values | {"mlp_only_layers": values["mlp_only_layers"] or ()}

    def to_hf(self, *, dtype: str = "float32", **token_ids: int | list[int] | None) -> dict[str, Any]:
        """A `qwen3_next`, or a `qwen3_5_text` where there are no experts; see `DecoderConfig.to_hf`."""
        config = self.shared_hf(dtype, token_ids)
        config["rope_parameters"]["partial_rotary_factor"] = self.partial_rotary_factor
        own = self.model_dump(mode="json", include=set(Qwen3NextConfig.model_fields) - set(DecoderConfig.model_fields))
        if self.num_experts:
            extra = {"architectures": ["Qwen3NextForCausalLM"], "output_router_logits": False}
            return {**own, **extra, **config}
        own = {name: value for name, value in own.items() if name not in (*EXPERT_KEYS, "num_experts")}
        own["mtp_num_hidden_layers"] = own.pop("num_nextn_predict_layers")
        # Text has one position per token, so these three parts of the angles turn alike; vision readers expect them.
        pairs = self.rotary_dim // 2
        config["rope_parameters"] |= {
            "mrope_interleaved": True,
            "mrope_section": [(pairs + 2) // 3, (pairs + 1) // 3, pairs // 3],
        }
        extra = {"model_type": "qwen3_5_text", "architectures": ["Qwen3_5ForCausalLM"], "attn_output_gate": True}
        return {**own, **extra, **config}

    def gguf_form(self) -> GgufForm:
        return GgufForm("qwen3next" if self.num_experts else "qwen35")

    def refusals(self) -> dict[str, str | None]:
        reason = "no qwen3_5_text, which a hybrid without experts is saved as; set num_experts"
        vllm_bias = "its qwen3_next has no bias on the attention projections; set attention_bias false"
        return {
            "transformers 5": None,
            "transformers 4.57": None if self.num_experts else f"it has {reason}, or use 5.x",
            "vLLM": head_dim_refusal(self) or (vllm_bias if self.attention_bias else None),
            "vLLM on a CPU": cpu_head_dim_refusal(self) or (vllm_bias if self.attention_bias else self._cpu_refusal()),
            "llama.cpp": layers_refusal(self) or rope_refusal(self, "llama.cpp") or self._llama_cpp_refusal(),
            "mlx-lm": self._mlx_refusal() if self.num_experts else f"it has {reason}",
        }

    def _cpu_refusal(self) -> str:
        if min(self.linear_key_head_dim, self.linear_value_head_dim) < 64:
            return "its delta rule there has no heads this narrow; set linear_key_head_dim and linear_value_head_dim 64"
        return "its delta rule there computes in bfloat16 alone; set dtype bfloat16 when it is opened"

    def _llama_cpp_refusal(self) -> str | None:
        keys, values = self.linear_key_head_dim, self.linear_value_head_dim
        if keys != values:
            return (
                "it has one width for keys and values of the delta rule; "
                f"linear_key_head_dim is {keys} and linear_value_head_dim {values}; set them equal"
            )
        if len(set(self.layer_types)) == 1:
            return (
                f"its memory needs layers of both kinds, and here all are {self.layer_types[0]}; "
                f"set full_attention_interval 2 to {max(self.num_hidden_layers, 2)}"
            )
        if self.rms_norm_eps != 1e-6:
            return (
                f"it adds rms_norm_eps to the length of keys too, where 1e-6 belongs, and here it is "
                f"{self.rms_norm_eps}; set rms_norm_eps 1e-6"
            )
        if self.attention_bias:
            return "its qwen3next and qwen35 have no bias on o_proj; set attention_bias false"
        return self._llama_cpp_experts_refusal() if self.num_experts else None

    def _llama_cpp_experts_refusal(self) -> str | None:
        if self.num_experts > 1024:
            return f"it has room for 1024 experts, not {self.num_experts}; set num_experts 1024 at most"
        if dense := [i for i in range(self.num_hidden_layers) if not self.is_sparse(i)]:
            return (
                f"its qwen3next has experts in every layer; layers {dense} have none; "
                "set mlp_only_layers [] and decoder_sparse_step 1"
            )
        if not self.norm_topk_prob:
            return "it lets the weights of a token's experts sum to one; set norm_topk_prob true"
        return None

    def _mlx_refusal(self) -> str | None:
        if reason := rope_refusal(self, "mlx-lm"):
            return reason
        step = self.full_attention_interval
        if any((kind == "full_attention") != ((i + 1) % step == 0) for i, kind in enumerate(self.layer_types)):
            return (
                f"it reads full_attention_interval {step} and not layer_types, and here they differ; "
                "set layer_types null"
            )
        return None

    def attention_lengths(self, seq_len: int) -> list[tuple[int, int | None]]:
        mtp_head = [(seq_len - 1, None)] * self.num_nextn_predict_layers
        return [(seq_len, None) for kind in self.layer_types if kind == "full_attention"] + mtp_head

    def idle_parameters(self, experts: int) -> int:
        return experts - experts * self.num_experts_per_tok // self.num_experts if self.num_experts else 0
