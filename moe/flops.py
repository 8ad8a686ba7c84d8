"""Counting: parameters, FLOPs of training, and what fraction of the hardware's peak they are."""

from __future__ import annotations

from moe.config import ModelConfig
from moe.device import Device

# Dense peak in 16 bits (bf16, or fp16 where a GPU has no bf16), FLOP/s, by the exact name that torch reports; from
# NVIDIA's datasheets, half of a figure that is given with sparsity. Variants with other clocks have other names, and
# a device that is not here has no known peak: no share of it is reported, for a guess would be worse.
_PEAK_FLOPS = {
    "NVIDIA H200": 989.4e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA A10": 125e12,
    "Tesla V100-SXM2-16GB": 125e12,
    "Tesla V100-SXM2-32GB": 125e12,
    "Tesla T4": 65e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,  # with fp32 accumulation (Ada whitepaper)
    "NVIDIA GeForce RTX 3090": 71e12,  # with fp32 accumulation (GA102 whitepaper)
}


def peak_flops(device: Device) -> float | None:
    """Peak FLOP/s of the device's matrix units in 16 bits, or None where it is not known for certain (any CPU)."""
    return _PEAK_FLOPS.get(device.name)


def _attention_parameters(model: ModelConfig) -> int:
    q_and_o = 2 * model.d_model * model.n_heads * model.head_dim
    k_and_v = 2 * model.d_model * model.n_kv_heads * model.head_dim
    return q_and_o + k_and_v


def _layer_parameters(model: ModelConfig, n_experts: int) -> int:
    experts = n_experts * 3 * model.d_model * model.d_expert
    router = model.d_model * model.n_experts
    norms = 2 * model.d_model + 2 * model.head_dim
    return _attention_parameters(model) + experts + router + norms


def total_parameters(model: ModelConfig) -> int:
    """All parameters, the tied embedding once."""
    return model.vocab_size * model.d_model + model.n_layers * _layer_parameters(model, model.n_experts) + model.d_model


def active_parameters(model: ModelConfig) -> int:
    """Parameters that one token meets: ``top_k`` experts of each layer, everything else once.

    The tied embedding counts once: as the head it is multiplied with, as the embedding it is only looked up.
    """
    return model.vocab_size * model.d_model + model.n_layers * _layer_parameters(model, model.top_k) + model.d_model


def flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """FLOPs of forward and backward per trained token: 6 per active parameter, and causal attention.

    Attention adds, per layer and token, two products (scores and mixing) with the ``(seq_len + 1) / 2`` positions that
    a token sees on average, three times as much with the backward pass (PaLM, arXiv 2204.02311, appendix B, which
    counts all ``seq_len`` positions). Nothing that is computed again is counted.
    """
    visible = (seq_len + 1) / 2
    attention = 3 * 2 * 2 * model.n_layers * model.n_heads * model.head_dim * visible
    return 6.0 * active_parameters(model) + attention


def mfu_pct(model: ModelConfig, seq_len: int, tokens_per_s: float, device: Device) -> float | None:
    """Model-FLOPs utilisation in percent of the device's peak, None where the peak is not known."""
    peak = peak_flops(device)
    return None if peak is None else 100.0 * tokens_per_s * flops_per_token(model, seq_len) / peak
