"""Pooling under a mask, and the projection."""

import pytest
import torch
from torch import nn

from steermoe.errors import UserError
from steermoe.projector import LinearProjector, masked_pool

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
