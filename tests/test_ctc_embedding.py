"""CTC over a vocabulary too large to keep, and runs of frames: hand-drawn examples and torch's own CTC as the referee."""

import pytest
import torch

from steermoe.ctc import Runs, ctc_loss, find_runs, mean_over_runs


def scores(seed=0):
    torch.manual_seed(seed)
    return (3 * torch.randn(3, 12, 40)).requires_grad_()


def test_loss_and_gradient_are_those_of_ctc_over_the_whole_vocabulary():
    lens, target_lens = torch.tensor([12, 9, 5]), torch.tensor([4, 3, 1])
    targets = torch.tensor([[3, 3, 38, 7], [0, 38, 2, 99], [5, -1, 77, 0]])  # what lies behind the lengths is nobody's business
    ours, theirs = scores(), scores()
    loss = ctc_loss(ours, lens, targets, target_lens)
    flat = torch.tensor([3, 3, 38, 7, 0, 38, 2, 5]) + 1
    logprobs = theirs.log_softmax(-1).transpose(0, 1)
    referee = torch.nn.functional.ctc_loss(logprobs, flat, lens, target_lens, 0, "sum")
    assert float(loss) == pytest.approx(float(referee), rel=1e-5)
    loss.backward()
    referee.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_more_targets_than_frames_add_nothing():
    value = scores()
    loss = ctc_loss(value[:1, :2], torch.tensor([2]), torch.tensor([[1, 2, 3]]), torch.tensor([3]))
    assert float(loss) == 0
    loss.backward()
    assert torch.isfinite(value.grad).all()


def test_runs_of_a_hand_drawn_row():
    best = torch.tensor([[0, 7, 7, 0, 7, 5, 5, 5, 0], [4, 4, 9, 9, 9, 9, 9, 9, 9], [0, 0, 0, 6, 6, 6, 6, 6, 6]])
    runs = find_runs(best, torch.tensor([9, 3, 3]))
    assert runs.run_bu.tolist() == [[-1, 0, 0, -1, 1, 2, 2, 2, -1], [0, 0, 1, *[-1] * 6], [-1] * 9]
    assert runs.lens_b.tolist() == [3, 2, 0]


def test_the_mean_of_each_run():
    vectors = torch.tensor([[[1.0], [3.0], [100.0], [5.0]]], requires_grad=True)
    means = mean_over_runs(vectors, Runs(torch.tensor([[0, 0, -1, 1]]), torch.tensor([2])))
    assert means.tolist() == [[[2.0], [5.0]]]
    means.sum().backward()
    assert vectors.grad.flatten().tolist() == [0.5, 0.5, 0.0, 1.0]


def test_a_row_without_runs_has_no_vectors():
    runs = find_runs(torch.zeros(2, 3, dtype=torch.long), torch.tensor([3, 2]))
    assert runs.lens_b.tolist() == [0, 0]
    assert mean_over_runs(torch.ones(2, 3, 4), runs).abs().sum() == 0
