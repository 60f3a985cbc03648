"""The shape of Qwen3-Next: most layers a delta rule, the others gated attention, a few of many experts for each token.

Without experts it is the shape of the dense Qwen3.5 models, and saved as such: `qwen3_5_text`.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tiny_transformer.config.decoder import ABSENT, DecoderConfig

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


class Qwen3NextConfig(DecoderConfig):
    """Qwen3-Next: gated delta rule and gated attention in turn, sparse experts, zero-centred norms, an MTP head."""

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
        """Features of each attention head that RoPE turns."""
        return int(self.head_dim * self.partial_rotary_factor)

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return (
            bool(self.num_experts) and layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0
        )

    def to_hf(self, *, dtype: str = "float32", **token_ids: int | list[int] | None) -> dict[str, Any]:
        """The contents of `config.json`: a `qwen3_next`, or a `qwen3_5_text` where there are no experts.

        Args:
            dtype: of the weights on disk, as torch spells it without `torch.`.
            token_ids: `bos_token_id`, `eos_token_id`, `pad_token_id`; written as null when absent.
        """
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
