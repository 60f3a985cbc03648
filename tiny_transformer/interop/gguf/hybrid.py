"""What Qwen3-Next and the dense Qwen3.5 hybrids need in a GGUF file: llama.cpp's `qwen3next` and `qwen35`.

Shapes: Nk key heads, Nv value heads, Dk and Dv their widths (llama.cpp: the same), C hidden_size, E experts.

llama.cpp wants what the tensors stand for and not what was trained: a zero-centred norm's factor 1 + w, the decay rate
-exp(A_log). It wants the projections of the delta rule as Qwen3.5 has them, experts in one tensor, and nothing of the
MTP head. Its `qwen35` lets value head j use key head j mod Nk, Hugging Face's j div (Nv / Nk), so value heads change
places there; `qwen3next` keeps them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from tiny_transformer.config.shapes import Qwen3NextConfig

if TYPE_CHECKING:
    from gguf import GGUFWriter

Tensors = Iterator[tuple[str, torch.Tensor]]


def add_next_keys(writer: GGUFWriter, config: Qwen3NextConfig) -> None:
    """The keys that only these two architectures have."""
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_ssm_state_size(config.linear_key_head_dim)
    writer.add_ssm_group_count(config.linear_num_key_heads)
    writer.add_ssm_time_step_rank(config.linear_num_value_heads)
    writer.add_ssm_inner_size(config.linear_num_value_heads * config.linear_value_head_dim)
    writer.add_full_attention_interval(config.full_attention_interval)
    # Exact where layer_types does not follow the interval; readers older than this key know the interval alone.
    recurrent = [kind == "linear_attention" for kind in config.layer_types]
    writer.add_array(f"{writer.arch}.attention.recurrent_layers", recurrent)
    if config.num_experts:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    else:
        writer.add_rope_dimension_sections([*config.to_hf()["rope_parameters"]["mrope_section"], 0])


def next_tensors(config: Qwen3NextConfig, tensors: Tensors) -> Tensors:
    """Hugging Face's names and tensors to the names the gguf package knows and the tensors llama.cpp computes with."""
    experts: dict[str, list[torch.Tensor]] = {}
    for name, tensor in tensors:
        if name.startswith("mtp."):
            continue
        place, found, rest = name.partition(".linear_attn.")
        if found:
            for part, value in _delta_tensors(config, rest, tensor):
                yield f"{place}.linear_attn.{part}", value
        elif ".mlp.experts." in name:
            place, _, rest = name.partition(".experts.")
            stacked = f"{place}.experts.{rest.partition('.')[2]}"
            experts.setdefault(stacked, []).append(tensor)  # they come in the order of their numbers
            if len(experts[stacked]) == config.num_experts:
                yield stacked, torch.stack(experts.pop(stacked))  # (E, out, in)
        elif name.endswith("norm.weight"):
            yield name, tensor.float() + 1
        elif name.endswith(".shared_expert_gate.weight"):
            yield name, tensor[0]  # (C,)
        else:
            yield name, tensor


def _delta_tensors(config: Qwen3NextConfig, part: str, tensor: torch.Tensor) -> Tensors:
    """One tensor of a delta-rule layer, by its name there."""
    keys, values = config.linear_num_key_heads * config.linear_key_head_dim, config.linear_value_head_dim
    match part:
        case "A_log":
            yield part, _placed(config, -tensor.float().exp())
        case "dt_bias":
            yield "dt_proj.bias", _placed(config, tensor)
        case "conv1d.weight":
            yield part, _placed(config, tensor[:, 0], first=2 * keys)  # (channels, taps)
        case "in_proj_qkvz.weight":
            values *= config.linear_num_value_heads // config.linear_num_key_heads
            sizes = (config.linear_key_head_dim, config.linear_key_head_dim, values, values)
            by_key_head = tensor.unflatten(0, (config.linear_num_key_heads, -1)).split(sizes, dim=1)
            *query_key_value, z = (rows.flatten(0, 1) for rows in by_key_head)
            yield "in_proj_qkv.weight", torch.cat(query_key_value)
            yield "in_proj_z.weight", z
        case "in_proj_qkv.weight":
            yield part, _placed(config, tensor, first=2 * keys)
        case "in_proj_z.weight" | "in_proj_b.weight" | "in_proj_a.weight":
            yield part, _placed(config, tensor)
        case "out_proj.weight":
            yield part, _placed(config, tensor.T).T
        case _:
            yield part, tensor


def _placed(config: Qwen3NextConfig, rows: torch.Tensor, *, first: int = 0) -> torch.Tensor:
    """Rows from `first` on, an equal number to each value head, in the order of llama.cpp's value heads."""
    if config.num_experts:
        return rows
    groups = config.linear_num_key_heads
    heads = rows[first:].unflatten(0, (groups, config.linear_num_value_heads // groups, -1)).transpose(0, 1)
    return torch.cat((rows[:first], heads.flatten(0, 2)))
