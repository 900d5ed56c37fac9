"""Attention by products equals torch's, and training without a mask equals training with one."""

import pytest
import torch
import torch.nn.functional as nnf

import tiny
from steermoe.attention import NAME, attention, one_place, products
from steermoe.data.collator import Collator
from steermoe.data.dataset import AudioTextDataset


def heads(count, places, grad=True):
    return torch.randn(2, count, places, 8, requires_grad=grad)


@pytest.mark.parametrize("kind", ["none", "keys", "causal"])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_products_equal_torchs_attention_and_so_do_the_gradients(kind, groups):
    torch.manual_seed(0)
    q, k, v = heads(6, 5), heads(groups, 5), heads(groups, 5)
    lengths = (torch.arange(5) < torch.tensor([[5], [3]]))[:, None, None]
    mask = {"none": None, "keys": lengths, "causal": torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()}[kind]
    expected = nnf.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    found = products(q, k, v, mask, 8**-0.5)
    assert torch.allclose(found, expected, atol=1e-6)
    weights = torch.randn_like(found)
    for one, other in zip(*(torch.autograd.grad((out * weights).sum(), (q, k, v)) for out in (found, expected))):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_a_step_of_decoding_equals_torchs_attention(groups, masked):
    torch.manual_seed(0)
    q, k, v = heads(6, 1), heads(groups, 5), heads(groups, 5)
    mask = (torch.arange(5) >= torch.tensor([[0], [3]]))[:, None, None] if masked else None
    expected = nnf.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True, scale=0.3)
    assert torch.allclose(one_place(q, k, v, mask, 0.3), expected.transpose(1, 2), atol=1e-6)


def test_a_place_that_attends_to_nothing_is_finite():
    q, k, v = (heads(2, 3, grad=False) for _ in range(3))
    assert products(q, k, v, torch.zeros(2, 1, 3, 3, dtype=torch.bool), 1.0).isfinite().all()


def test_without_gradients_torchs_kernel_is_used(monkeypatch):
    monkeypatch.setattr("steermoe.attention.products", None)
    q, k, v = (heads(2, 3) for _ in range(3))
    with torch.no_grad():
        assert attention(q, k, v, None).shape == q.shape
    with pytest.raises(TypeError):
        attention(q, k, v, None)


def test_the_llm_learns_by_products_and_needs_no_mask_for_padding_behind(tiny_model, tmp_path, monkeypatch):
    data = AudioTextDataset(tiny.make_dataset(tmp_path, [160, 60, 233]))
    batch = Collator(tiny_model.llm, "x <audio> y: ")([data[i] for i in range(3)])
    vectors, layout = tiny_model.soft_prompt(batch)
    vectors = vectors.detach().requires_grad_()
    assert tiny_model.llm.llm.config._attn_implementation == NAME
    calls = []
    monkeypatch.setattr("steermoe.attention.products", lambda *args: calls.append(args) or products(*args))
    ours = tiny_model.llm.hidden(vectors)[layout.mask_bq]
    assert len(calls) == 2  # layers
    masked = tiny_model.llm.hidden(vectors, layout.mask_bq, layout.positions_bq)[layout.mask_bq]
    tiny_model.llm.llm.set_attn_implementation("sdpa")
    theirs = tiny_model.llm.hidden(vectors, layout.mask_bq, layout.positions_bq)[layout.mask_bq]
    for other in (masked, theirs):
        assert torch.allclose(ours, other, atol=1e-5)
        one, two = (torch.autograd.grad(out.square().sum(), vectors, retain_graph=True)[0][layout.mask_bq] for out in (ours, other))
        assert torch.allclose(one, two, atol=1e-4)
