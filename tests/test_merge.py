"""Equation 4's index arithmetic against hand-drawn sequences."""

import torch

from steermoe.merge import IGNORE, merge_layout, merge_vectors

X = IGNORE
# Row 0: text 10 11 | audio a0 a1 | 12, answer 13, end 14.  Row 1: audio first (3 vectors), text 20, answer 21, end 22.
TEXT_IDS = torch.tensor([[10, 11, 12, 13, 14], [20, 21, 22, 0, 0]])
TEXT_LENS = torch.tensor([5, 3])
AUDIO_LENS = torch.tensor([2, 3])
AUDIO_AT = torch.tensor([2, 0])
ANSWER_AT = torch.tensor([3, 1])


def drawn(layout, text=TEXT_IDS, audio=torch.tensor([[100, 101, 0], [200, 201, 202]])):
    """The merged sequence as integers, -1 on padding."""
    values = merge_vectors(text[..., None].float(), audio[..., None].float(), layout)[..., 0].long()
    return values.masked_fill(~layout.mask_bq, -1).tolist()


def test_right_padded_for_training():
    layout = merge_layout(TEXT_IDS, TEXT_LENS, AUDIO_LENS, AUDIO_AT, ANSWER_AT)
    assert drawn(layout) == [[10, 11, 100, 101, 12, 13, 14], [200, 201, 202, 20, 21, 22, -1]]
    assert layout.labels_bq.tolist() == [[X, X, X, X, X, 13, 14], [X, X, X, X, 21, 22, X]]
    assert layout.positions_bq.tolist() == [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 0]]


def test_left_padded_for_decoding_has_no_labels_without_answers():
    lens = torch.tensor([3, 1])
    layout = merge_layout(TEXT_IDS[:, :3], lens, AUDIO_LENS, AUDIO_AT, lens, left_pad=True)
    assert drawn(layout, TEXT_IDS[:, :3]) == [[10, 11, 100, 101, 12], [-1, 200, 201, 202, 20]]
    assert layout.positions_bq.tolist() == [[0, 1, 2, 3, 4], [0, 0, 1, 2, 3]]
    assert (layout.labels_bq == IGNORE).all()


def test_audio_at_the_end_of_the_text():
    layout = merge_layout(TEXT_IDS[:1], TEXT_LENS[:1], AUDIO_LENS[:1], TEXT_LENS[:1], TEXT_LENS[:1])
    assert drawn(layout, TEXT_IDS[:1], torch.tensor([[100, 101, 0]])) == [[10, 11, 12, 13, 14, 100, 101]]


def test_gradients_reach_real_audio_only():
    audio = torch.ones(2, 3, 4, requires_grad=True)
    layout = merge_layout(TEXT_IDS, TEXT_LENS, AUDIO_LENS, AUDIO_AT, ANSWER_AT)
    merge_vectors(torch.zeros(2, 5, 4), audio, layout).sum().backward()
    assert audio.grad[..., 0].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_padding_is_zero_whatever_the_inputs_hold():
    layout = merge_layout(TEXT_IDS, TEXT_LENS, AUDIO_LENS, AUDIO_AT, ANSWER_AT)
    merged = merge_vectors(torch.full((2, 5, 4), 7.0), torch.full((2, 3, 4), float("nan")), layout)
    assert (merged[1, -1] == 0).all()
