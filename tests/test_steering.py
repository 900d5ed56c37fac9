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


def test_shared_router_reads_every_layer_with_the_same_weights():
    steering = MoESteering(32, 1280, num_experts=8, shared_router=True)
    counts = {name: parameter.numel() for name, parameter in steering.named_parameters()}
    assert counts == {"experts": 327_680, "router_weight": 1280 * 8, "router_bias": 8, "scales": 32}
    hidden = torch.randn(1, 3, 1280)
    assert torch.equal(steering.gates(0, hidden), steering.gates(31, hidden))
    assert not torch.equal(steering(0, hidden), steering(31, hidden))  # the vectors stay each layer's own


def test_top_k_of_hand_drawn_gates():
    steering = MoESteering(2, 1, num_experts=4, top_k=2)
    with torch.no_grad():
        steering.router_weight.copy_(torch.tensor([0.1, 0.4, 0.3, 0.2]).log().expand(2, 1, 4))
        steering.router_bias.zero_()
    gates = steering.gates(1, torch.ones(1, 1, 1))
    torch.testing.assert_close(gates, torch.tensor([[[0.0, 4 / 7, 3 / 7, 0.0]]]))
    steering.top_k = 1
    assert steering.gates(1, torch.ones(1, 1, 1)).tolist() == [[[0.0, 1.0, 0.0, 0.0]]]
    steering.top_k = 4
    torch.testing.assert_close(steering.gates(1, torch.ones(1, 1, 1))[0, 0], torch.tensor([0.1, 0.4, 0.3, 0.2]))


def test_experts_that_are_not_kept_get_no_gradient():
    torch.manual_seed(0)
    steering = MoESteering(1, 6, num_experts=8, top_k=3)
    steering(0, torch.randn(1, 1, 6)).square().sum().backward()
    assert (steering.experts.grad[0].abs().sum(-1) > 0).sum() == 3 == (steering.router_bias.grad[0] != 0).sum()


def test_the_default_is_the_papers_and_draws_the_same_numbers():
    torch.manual_seed(5)
    steering = MoESteering(3, 6, num_experts=4)
    torch.manual_seed(5)
    experts = torch.randn(3, 4, 6) * 0.01
    weight, bias = torch.empty(3, 6, 4).uniform_(-(6**-0.5), 6**-0.5), torch.empty(3, 4).uniform_(-(6**-0.5), 6**-0.5)
    for name, tensor in {"experts": experts, "router_weight": weight, "router_bias": bias}.items():
        assert torch.equal(getattr(steering, name), tensor)
    hidden = torch.randn(2, 5, 6)
    assert torch.equal(steering.gates(1, hidden), (hidden @ weight[1] + bias[1]).softmax(-1))


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


@pytest.mark.parametrize("conf", [{"num_experts": 0}, {"top_k": -1}, {"top_k": 9}])
def test_wrong_settings_name_the_key(conf):
    with pytest.raises(UserError, match=f"steering_conf.{next(iter(conf))}"):
        MoESteering(2, 6, **conf)
