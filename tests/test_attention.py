"""Attention by products equals torch's, and training without a mask equals training with one."""

import pytest
import torch
import torch.nn.functional as nnf

import tiny
from steermoe.attention import BLOCK, NAME, Rows, added, one_place, products
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
    found = products(q, k, v, 8**-0.5, None if mask is None else added(mask, q.dtype))
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
    assert products(q, k, v, 1.0, added(torch.zeros(2, 1, 3, 3, dtype=torch.bool), q.dtype)).isfinite().all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("groups", [2, 6])
def test_rows_end_to_end_attend_each_to_itself(groups, causal):
    torch.manual_seed(0)
    lens = [5, 0, 1, BLOCK + 40]
    q, k, v = (torch.randn(1, count, sum(lens), 8, requires_grad=True) for count in (6, groups, groups))
    rows = [row for row in zip(*(tensor.split(lens, 2) for tensor in (q, k, v))) if row[0].numel()]
    expected = torch.cat([nnf.scaled_dot_product_attention(*row, is_causal=causal, enable_gqa=True, scale=0.3) for row in rows], 2)
    counted = Rows(lens)
    found = counted.attend(q, k, v, causal, 0.3)
    assert counted.layers == 1 and torch.allclose(found, expected, atol=1e-6)
    weights = torch.randn_like(found)
    for one, other in zip(*(torch.autograd.grad((out * weights).sum(), (q, k, v)) for out in (found, expected))):
        assert torch.allclose(one, other, atol=1e-5)


def test_the_llm_learns_the_same_end_to_end_masked_and_without_a_mask(tiny_model, tmp_path):
    data = AudioTextDataset(tiny.make_dataset(tmp_path, [160, 60, 233]))
    batch = Collator(tiny_model.llm, "x <audio> y: ")([data[i] for i in range(3)])
    vectors, layout = tiny_model.soft_prompt(batch)
    vectors, llm, masked = vectors.detach().requires_grad_(), tiny_model.llm, (layout.mask_bq, layout.positions_bq)
    assert llm.llm.config._attn_implementation == NAME and llm.packs
    packed = llm.hidden(vectors, *masked)
    assert not packed[~layout.mask_bq].any()
    ours = packed[layout.mask_bq]
    llm._keeps_rows_apart = False
    others = [llm.hidden(vectors)[layout.mask_bq], llm.hidden(vectors, *masked)[layout.mask_bq]]
    llm.llm.set_attn_implementation("sdpa")
    for other in (*others, llm.hidden(vectors, *masked)[layout.mask_bq]):
        assert torch.allclose(ours, other, atol=1e-5)
        one, two = (torch.autograd.grad(out.square().sum(), vectors, retain_graph=True)[0][layout.mask_bq] for out in (ours, other))
        assert torch.allclose(one, two, atol=1e-4)
