from dataclasses import replace

import pytest

from moe.config import ModelConfig
from moe.device import Device
from moe.flops import active_parameters, flops_per_token, mfu_pct, peak_flops, total_parameters
from moe.model import MoELanguageModel

CONFIG = ModelConfig(vocab_size=256, d_model=64, n_layers=3, n_heads=4, n_kv_heads=2, d_expert=96, n_experts=8, top_k=2)


def n_parameters(config):
    model = MoELanguageModel(config, seed=0)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("changes", [{}, {"n_kv_heads": 4}, {"n_experts": 4, "top_k": 1}])
def test_total_parameters_are_those_of_the_model(changes):
    config = replace(CONFIG, **changes)
    assert total_parameters(config) == n_parameters(config)


def test_active_parameters_are_those_of_a_model_with_top_k_experts():
    """All but the router's rows, which every token meets in full."""
    lean = n_parameters(replace(CONFIG, n_experts=CONFIG.top_k))
    router_rows = CONFIG.n_layers * CONFIG.d_model * (CONFIG.n_experts - CONFIG.top_k)
    assert active_parameters(CONFIG) == lean + router_rows


def test_flops_are_six_per_active_parameter_and_attention_grows_with_length():
    without_attention = 6 * active_parameters(CONFIG)
    # Two products of 2 FLOPs with each of the (T + 1) / 2 positions seen, thrice with the backward pass.
    assert flops_per_token(CONFIG, 127) == without_attention + 3 * 2 * 2 * 3 * 64 * 64
    assert flops_per_token(CONFIG, 1023) - without_attention == 8 * (flops_per_token(CONFIG, 127) - without_attention)


def test_a_device_that_is_not_in_the_table_has_no_utilisation():
    laptop_gpu = Device(kind="cuda", name="NVIDIA GeForce RTX 4090 Laptop GPU", compute_capability=(8, 9))
    assert peak_flops(laptop_gpu) is None
    assert peak_flops(Device(kind="cpu")) is None
    assert mfu_pct(CONFIG, 127, 1e5, Device(kind="cpu")) is None


def test_utilisation_is_the_share_of_a_known_peak():
    gpu = Device(kind="cuda", name="Tesla T4", compute_capability=(7, 5))
    assert peak_flops(gpu) == 65e12
    assert mfu_pct(CONFIG, 127, 1e6, gpu) == pytest.approx(100 * 1e6 * flops_per_token(CONFIG, 127) / 65e12)
