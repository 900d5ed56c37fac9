"""Equations 1 to 3 against the paper's own form: one router D -> L*N, sliced by layer."""

import pytest
import torch

from steermoe.errors import UserError
from steermoe.steering import MoESteering, NoSteering


def test_equals_the_papers_single_router_matrix():
    torch.manual_seed(0)
    steering = MoESteering(3, 6, num_experts=4, scale=0.3, init_std=1.0)
    hidden = torch.randn(2, 5, 6)
    matrix = steering.router_weight.permute(1, 0, 2).reshape(6, 12)  # D x (L*N)
    for layer in range(3):
        logits = hidden @ matrix + steering.router_bias.reshape(12)
        gates = logits[..., 4 * layer : 4 * layer + 4].softmax(-1)
        expected = hidden + steering.scales[layer] * (gates @ steering.experts[layer])
        assert torch.allclose(steering(layer, hidden), expected, atol=1e-6)


def test_gates_of_a_frame_sum_to_one():
    gates = MoESteering(1, 6, num_experts=5).gates(0, torch.randn(2, 3, 6))
    assert gates.shape == (2, 3, 5) and torch.allclose(gates.sum(-1), torch.ones(2, 3))


def test_parameter_counts_of_the_paper():
    steering = MoESteering(32, 1280, num_experts=8)
    counts = {name: parameter.numel() for name, parameter in steering.named_parameters()}
    assert counts["experts"] == 327_680 and counts["scales"] == 32
    assert counts["router_weight"] + counts["router_bias"] == 327_936


def test_initial_values():
    torch.manual_seed(0)
    steering = MoESteering(4, 64, num_experts=8)
    assert (steering.scales == 0.1).all() and abs(steering.experts.std().item() - 0.01) < 1e-3
    assert steering.router_weight.abs().max().item() <= 1 / 8


def test_groups_split_vectors_and_scales_from_the_router():
    groups = MoESteering(2, 6).parameter_groups()
    assert {name: sorted(group) for name, group in groups.items()} == {
        "steering": ["experts", "scales"],
        "router": ["router_bias", "router_weight"],
    }


def test_keeps_the_type_of_the_hidden_states():
    assert MoESteering(1, 6)(0, torch.randn(1, 2, 6).bfloat16()).dtype == torch.bfloat16


def test_no_steering_is_the_identity_without_parameters():
    hidden = torch.randn(1, 2, 6)
    assert NoSteering(2, 6)(1, hidden) is hidden and not NoSteering(2, 6).parameter_groups()


def test_no_experts_is_an_error():
    with pytest.raises(UserError, match="num_experts"):
        MoESteering(2, 6, num_experts=0)
