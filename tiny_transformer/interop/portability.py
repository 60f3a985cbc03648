"""Which other programs open a model of a given shape, and why not otherwise: told before it is trained.

No torch: a config is enough. The rules are what these programs' sources demand, not their documentation. `BASIS` says
of which versions, and which of them the tests run: those open each kind of shape where they are installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tiny_transformer.config.decoder import nearest
from tiny_transformer.config.model import ModelConfig, Qwen3Config, Qwen3NextConfig

BASIS = (
    "Run with transformers 5.23.0 and 4.57.6, llama-cpp-python 0.3.36 and mlx-lm 0.32.2; vLLM by its sources "
    "(0.33.0 for qwen3_next), not run."
)


@dataclass(frozen=True)
class Verdict:
    """What one program makes of a shape.

    Attributes:
        reader: the program.
        reason: why it does not open the shape or computes something else; None when it does what we do.
        route: what is handed to it.
    """

    reader: str
    reason: str | None
    route: str

    @property
    def opens(self) -> bool:
        return self.reason is None

    def __str__(self) -> str:
        return f"{self.reader}: {'yes, ' + self.route if self.opens else 'no: ' + str(self.reason)}"


def portability(config: ModelConfig, tokenizer: str | None = None) -> list[Verdict]:
    """Which of transformers, vLLM, llama.cpp and mlx-lm open this shape and compute the same; see `Verdict`.

    Args:
        config: the shape.
        tokenizer: why the tokenizer cannot be put into a GGUF file, or None; see `gguf_tokenizer.name_refusal`.
    """
    directory = "the checkpoint directory as it is"
    # A shape that no Hugging Face architecture computes is refused when its config is read, so this one always opens.
    verdicts = [Verdict("transformers 5", None, directory)]
    readers: list[tuple[str, Callable[[ModelConfig], str | None], str]] = [
        ("transformers 4.57", transformers_4_refusal, directory),
        ("vLLM", vllm_refusal, directory),
        ("llama.cpp", lambda shape: llama_cpp_refusal(shape) or tokenizer, "a file from `tiny-transformer export`"),
        ("mlx-lm", mlx_refusal, directory),
    ]
    return verdicts + [Verdict(reader, refusal(config), route) for reader, refusal, route in readers]


def transformers_4_refusal(config: ModelConfig) -> str | None:
    """Why transformers 4.57 does not open this shape, or None."""
    if isinstance(config, Qwen3NextConfig) and not config.num_experts:
        return "it has no qwen3_5_text, which a hybrid without experts is saved as; set num_experts, or use 5.x"
    return None


def vllm_refusal(config: ModelConfig) -> str | None:
    """Why vLLM does not compute this shape, or None."""
    if config.head_dim % 8:
        return (
            f"its attention kernels need a head_dim that is a multiple of 8, not {config.head_dim}; "
            f"set head_dim {nearest(config.head_dim, 8)}"
        )
    if isinstance(config, Qwen3NextConfig) and config.attention_bias:
        return "its qwen3_next has no bias on the attention projections; set attention_bias false"
    if isinstance(config, Qwen3Config):
        return _qwen3_refusal(config, "vLLM's")
    return None


def llama_cpp_refusal(config: ModelConfig) -> str | None:
    """Why llama.cpp does not compute this shape, or None. Its tokenizers are another matter: see `portability`."""
    if config.num_hidden_layers > 512:
        return f"it has room for 512 layers, not {config.num_hidden_layers}; set num_hidden_layers 512 at most"
    if isinstance(config, Qwen3NextConfig):
        return _llama_cpp_next_refusal(config)
    if isinstance(config, Qwen3Config):
        return _qwen3_refusal(config, "llama.cpp's")
    return _window_refusal(config, config.sliding_window, "llama.cpp's llama")


def _llama_cpp_next_refusal(config: Qwen3NextConfig) -> str | None:
    keys, values = config.linear_key_head_dim, config.linear_value_head_dim
    if keys != values:
        return (
            "it has one width for keys and values of the delta rule; "
            f"linear_key_head_dim is {keys} and linear_value_head_dim {values}; set them equal"
        )
    if len(set(config.layer_types)) == 1:
        return (
            f"its memory needs layers of both kinds, and here all are {config.layer_types[0]}; "
            f"set full_attention_interval 2 to {max(config.num_hidden_layers, 2)}"
        )
    if config.rms_norm_eps != 1e-6:
        return (
            f"it adds rms_norm_eps to the length of keys too, where 1e-6 belongs, and here it is "
            f"{config.rms_norm_eps}; set rms_norm_eps 1e-6"
        )
    if config.attention_bias:
        return "its qwen3next and qwen35 have no bias on o_proj; set attention_bias false"
    return _llama_cpp_experts_refusal(config) if config.num_experts else None


def _llama_cpp_experts_refusal(config: Qwen3NextConfig) -> str | None:
    if config.num_experts > 1024:
        return f"it has room for 1024 experts, not {config.num_experts}; set num_experts 1024 at most"
    if dense := [i for i in range(config.num_hidden_layers) if not config.is_sparse(i)]:
        return (
            f"its qwen3next has experts in every layer; layers {dense} have none; "
            "set mlp_only_layers [] and decoder_sparse_step 1"
        )
    if not config.norm_topk_prob:
        return "it lets the weights of a token's experts sum to one; set norm_topk_prob true"
    return None


def mlx_refusal(config: ModelConfig) -> str | None:
    """Why mlx-lm does not compute this shape, or None."""
    if isinstance(config, Qwen3NextConfig):
        return _mlx_next_refusal(config)
    if isinstance(config, Qwen3Config):
        return _qwen3_refusal(config, "mlx-lm's")
    if config.norm_type == "layernorm" and config.tie_word_embeddings:
        return "its stablelm (what LayerNorm is saved as) always has a head of its own; set tie_word_embeddings false"
    return _window_refusal(config, config.sliding_window, "mlx-lm's llama")


def _mlx_next_refusal(config: Qwen3NextConfig) -> str | None:
    if not config.num_experts:
        return "it has no model type qwen3_5_text, which a hybrid without experts is saved as; set num_experts"
    step = config.full_attention_interval
    if any((kind == "full_attention") != ((i + 1) % step == 0) for i, kind in enumerate(config.layer_types)):
        return (
            f"it reads full_attention_interval {step} and not layer_types, and here they differ; set layer_types null"
        )
    return None


def _qwen3_refusal(config: Qwen3Config, whose: str) -> str | None:
    if config.attention_bias:
        return f"{whose} qwen3 has no bias on o_proj; set attention_bias false"
    if "sliding_attention" in config.layer_types:
        reason = _window_refusal(config, config.sliding_window, f"{whose} qwen3")
        return reason and f"{reason} and use_sliding_window false"
    return None


def _window_refusal(config: ModelConfig, window: int | None, whose: str) -> str | None:
    """A window as long as the context never cuts anything; a shorter one would be passed over without a word."""
    if window is None or window >= config.max_position_embeddings:
        return None
    return (
        f"{whose} lets every token see all before it; sliding_window {window} is shorter than "
        f"max_position_embeddings {config.max_position_embeddings}; set sliding_window null"
    )
