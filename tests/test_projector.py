"""Pooling under a mask, and the projection."""

import pytest
import torch
from torch import nn

from steermoe.errors import UserError
from steermoe.projector import LinearProjector, StackProjector, masked_pool, stack_frames

HIDDEN = torch.tensor([[1.0, 2, 3, 4, 5, 6], [10.0, 20, 30, 99, 99, 99]])[..., None]
LENS = torch.tensor([6, 3])


def test_average_of_hand_drawn_rows():
    pooled, lens = masked_pool(HIDDEN, LENS, 4, "avg")
    assert pooled[..., 0].tolist() == [[2.5, 5.5], [20.0, 0.0]] and lens.tolist() == [2, 1]


def test_maximum_of_hand_drawn_rows():
    pooled, lens = masked_pool(-HIDDEN, LENS, 4, "max")
    assert pooled[..., 0].tolist() == [[-1.0, -5.0], [-10.0, 0.0]] and lens.tolist() == [2, 1]


def test_kernel_one_changes_nothing():
    pooled, lens = masked_pool(HIDDEN, LENS, 1)
    assert torch.equal(pooled[0], HIDDEN[0]) and lens.tolist() == [6, 3]


@pytest.mark.parametrize("kind", ["avg", "max"])
def test_padding_enters_no_pool(kind):
    poisoned = HIDDEN.clone()
    poisoned[1, 3:] = float("nan")
    pooled, _ = masked_pool(poisoned, LENS, 4, kind)
    alone, _ = masked_pool(HIDDEN[1:, :3], LENS[1:], 4, kind)
    assert torch.equal(pooled[1, :1], alone[0])


def test_norm_before_or_after_pooling():
    torch.manual_seed(0)
    hidden, lens, norm = torch.randn(2, 8, 6) * torch.rand(2, 8, 1) * 9, torch.tensor([8, 5]), nn.LayerNorm(6)
    after = LinearProjector(6, 3, place="after_norm")
    before = LinearProjector(6, 3, place="before_norm")
    before.load_state_dict(after.state_dict())
    assert torch.allclose(after(hidden, lens, norm)[0], after.linear(masked_pool(norm(hidden), lens, 4)[0]))
    assert torch.allclose(before(hidden, lens, norm)[0], after.linear(norm(masked_pool(hidden, lens, 4)[0])))


def test_bfloat16_frames_are_projected_in_float32():
    audio, _ = LinearProjector(6, 3)(torch.randn(1, 8, 6).bfloat16(), torch.tensor([8]), nn.Identity())
    assert audio.dtype == torch.float32


@pytest.mark.parametrize("conf", [{"pool": "mean"}, {"kernel": 0}, {"place": "middle"}])
def test_wrong_settings_name_the_key(conf):
    with pytest.raises(UserError, match=f"projector_conf.{next(iter(conf))}"):
        LinearProjector(6, 3, **conf)


def test_stacks_of_hand_drawn_rows():
    stacked, lens = stack_frames(HIDDEN, LENS, 4)
    assert stacked.tolist() == [[[1, 2, 3, 4], [5, 6, 0, 0]], [[10, 20, 30, 0], [0, 0, 0, 0]]] and lens.tolist() == [2, 1]
    wide, _ = stack_frames(torch.arange(8.0).reshape(1, 4, 2), torch.tensor([3]), 2)
    assert wide.tolist() == [[[0, 1, 2, 3], [4, 5, 0, 0]]]  # a frame's features stay together


def test_stack_projector_is_two_layers_with_relu_between():
    torch.manual_seed(0)
    projector, norm = StackProjector(6, 3, kernel=4, hidden=10), nn.LayerNorm(6)
    hidden, lens = torch.randn(2, 8, 6), torch.tensor([8, 5])
    audio, audio_lens = projector(hidden, lens, norm)
    frames = torch.cat([norm(hidden[1, 4:5]).flatten(), torch.zeros(18)])
    inside = (projector.first.weight @ frames + projector.first.bias).clamp(min=0)
    torch.testing.assert_close(audio[1, 1], projector.second.weight @ inside + projector.second.bias)
    assert audio.shape == (2, 2, 3) and audio_lens.tolist() == [2, 2]


def test_stack_projector_alone_as_in_a_batch():
    projector, hidden = StackProjector(6, 3), torch.randn(2, 9, 6)
    hidden[1, 5:] = float("nan")
    together, _ = projector(hidden, torch.tensor([9, 5]), nn.LayerNorm(6))
    alone, lens = projector(hidden[1:, :5], torch.tensor([5]), nn.LayerNorm(6))
    torch.testing.assert_close(together[1, :2], alone[0])
    assert lens.tolist() == [2] and torch.isfinite(together).all()


def test_stack_projector_parameters_of_slam_asr():
    """WavLM-Large's 1024 x 5 frames -> 2048 -> Vicuna-7B's 4096."""
    with torch.device("meta"):
        projector = StackProjector(1024, 4096, kernel=5)
    assert sum(p.numel() for p in projector.parameters()) == 5120 * 2048 + 2048 + 2048 * 4096 + 4096
    assert set(projector.parameter_groups()["projector"]) == {"first.weight", "first.bias", "second.weight", "second.bias"}


@pytest.mark.parametrize("conf", [{"kernel": 0}, {"hidden": 0}])
def test_wrong_settings_of_the_stack_name_the_key(conf):
    with pytest.raises(UserError, match=f"projector_conf.{next(iter(conf))}"):
        StackProjector(6, 3, **conf)
