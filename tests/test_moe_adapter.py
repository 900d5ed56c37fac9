"""MoE-Adapter: published sizes, its equations written out frame by frame, the balance loss by hand and in the training."""

import pytest
import torch
import torch.nn.functional as nnf
from torch import nn

import tiny
from steermoe.config import config_from_dict
from steermoe.data.collator import Collator
from steermoe.data.dataset import AudioTextDataset
from steermoe.errors import UserError
from steermoe.model import SteerMoE
from steermoe.moe_adapter import MoEAdapter, load_balance
from steermoe.train.objectives import Joint, NextToken

SMALL = {"kernel": 2, "dim": 6, "num_experts": 4, "top_k": 2, "expert_width": 3, "shared_width": 12}
LENS = torch.tensor([7, 4])


def make(**conf):
    torch.manual_seed(0)
    return MoEAdapter(5, 8, **SMALL | conf)


def hidden():
    torch.manual_seed(1)
    return torch.randn(2, 7, 5)


def experts(adapter):
    """Parameters of the routed experts, and of the shared one."""
    counts = {name: parameter.numel() for name, parameter in adapter.named_parameters()}
    return [sum(count for name, count in counts.items() if name.startswith(kind)) for kind in ("routed", "shared")]


def test_parameters_of_the_published_sizes():
    with torch.device("meta"):
        sparse = MoEAdapter(1280, 2048)
        dense = MoEAdapter(1280, 2048, num_experts=0, shared_width=20480)
    routed, shared = experts(sparse)
    assert routed == shared and routed + shared == 94_371_840
    assert routed * sparse.top_k // sparse.num_experts + shared == 70_778_880
    assert experts(dense) == [0, 94_371_840] == [0, 2560 * 20480 + 20480 * 2048]
    others = [sum(p.numel() for p in one.parameters()) - sum(experts(one)) for one in (sparse, dense)]
    assert others[0] - others[1] == 2560 * 8  # the router


def test_the_equations_frame_by_frame():
    adapter, norm = make(), nn.LayerNorm(5)
    audio, lens = adapter(hidden(), LENS, norm)
    assert audio.shape == (2, 4, 8) and lens.tolist() == [4, 2]
    frames = torch.cat([norm(hidden()[0]), torch.zeros(1, 5)])  # the last stack has one frame and is filled with zeros
    for place in range(4):
        x = adapter.enter(frames[2 * place : 2 * place + 2].reshape(10))
        p = (adapter.router.weight @ x).softmax(-1)
        y = adapter.shared_down.weight @ nnf.silu(adapter.shared_up.weight @ x)
        for expert in p.argsort(descending=True)[:2]:
            y = y + p[expert] * (nnf.silu(x @ adapter.routed_up[expert]) @ adapter.routed_down[expert])
        torch.testing.assert_close(audio[0, place], adapter.leave(y))


def test_the_input_layers_are_those_of_the_paper():
    assert [type(layer) for layer in make().enter] == [nn.LayerNorm, nn.Linear, nn.SiLU, nn.LayerNorm]


def test_alone_as_in_a_batch_whatever_the_padding_holds():
    adapter, both = make(), hidden()
    both[1, 4:] = float("nan")
    together, _ = adapter(both, LENS, nn.LayerNorm(5))
    alone, lens = adapter(both[1:, :4], LENS[1:], nn.LayerNorm(5))
    torch.testing.assert_close(together[1, :2], alone[0])
    assert lens.tolist() == [2] and torch.isfinite(together).all()


def test_experts_start_at_the_scale_of_torchs_linear_layers():
    adapter = make(dim=400, expert_width=100)
    for weight, inputs in ((adapter.routed_up, 400), (adapter.routed_down, 100)):
        assert 0.9 * inputs**-0.5 < weight.abs().max() <= inputs**-0.5


def test_balance_of_a_hand_drawn_batch_and_its_gradient():
    p = torch.tensor([[[0.75, 0.25], [0.25, 0.75]], [[1.0, 0.0], [0.5, 0.5]]], requires_grad=True)
    chosen = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
    valid = torch.tensor([[[True], [True]], [[True], [False]]])  # three real frames
    value = load_balance(p, chosen, valid)
    assert value.item() == pytest.approx(2 * (2 / 3 * 2 / 3 + 1 / 3 * 1 / 3))  # Pbar 2/3, 1/3; fbar 2/3, 1/3
    value.backward()
    each = torch.tensor([2 * 2 / 9, 2 * 1 / 9])  # E fbar_e / frames
    torch.testing.assert_close(p.grad, torch.stack([torch.stack([each, each]), torch.stack([each, 0 * each])]))


def test_even_routing_gives_lambda_and_one_expert_for_all_gives_more():
    adapter = make(balance=0.25)
    with torch.no_grad():
        adapter.router.weight.zero_()
    adapter(hidden(), LENS, nn.Identity())
    assert adapter.auxiliary.item() == pytest.approx(0.25)
    frames = torch.eye(4)[torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])]
    real = torch.ones(2, 4, 1, dtype=torch.bool)
    assert load_balance(frames, frames, real).item() == pytest.approx(1.0)
    crowded = torch.eye(4)[torch.zeros(2, 4, dtype=torch.long)]
    assert load_balance(crowded, crowded, real).item() == pytest.approx(4.0)


def test_balance_counts_real_frames_only():
    adapter = make(balance=1.0)
    adapter(hidden(), LENS, nn.Identity())
    padded = torch.cat([hidden(), torch.randn(2, 6, 5)], 1)
    expected = adapter.auxiliary.item()
    adapter(padded, LENS, nn.Identity())
    assert adapter.auxiliary.item() == pytest.approx(expected)


def test_training_with_balance_evens_the_load():
    adapter = make(top_k=1, balance=1.0)
    frames, lens, losses = torch.randn(1, 64, 5) + 2, torch.tensor([64]), []
    for _ in range(40):
        adapter(frames, lens, nn.Identity())
        losses.append(adapter.auxiliary.item())
        (gradient,) = torch.autograd.grad(adapter.auxiliary, adapter.router.weight)
        with torch.no_grad():
            adapter.router.weight -= 0.2 * gradient
    assert losses[-1] < losses[0] and losses[-1] < 1.2


def test_no_auxiliary_in_eval_mode_and_without_experts():
    for adapter in (make().eval(), make(num_experts=0)):
        adapter(hidden(), LENS, nn.Identity())
        assert adapter.auxiliary is None
    adapter = make()
    adapter(hidden(), LENS, nn.Identity())
    adapter.eval()(hidden(), LENS, nn.Identity())
    assert adapter.auxiliary is None


def test_bfloat16_frames_are_projected_in_float32():
    assert make()(hidden().bfloat16(), LENS, nn.Identity())[0].dtype == torch.float32


WRONG = [(key, 0) for key in ("kernel", "dim", "expert_width", "shared_width", "top_k")]
WRONG += [("top_k", 5), ("num_experts", -1), ("balance", -1)]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_wrong_settings_name_the_key(key, value):
    with pytest.raises(UserError, match=f"projector_conf.{key}"):
        make(**{key: value})


@pytest.mark.parametrize(
    ("projector", "objective", "step"),
    [("moe_adapter", NextToken(), 1), ("token", Joint(), 1), ("token", Joint(ctc_steps=5), 1)],
)
def test_the_balance_loss_reaches_the_training_and_not_the_dev_loss(tiny_config, tmp_path, projector, objective, step):
    conf = SMALL | {"kernel": 1, "balance": 3.0}
    conf = {"frames": "moe_adapter", "frames_conf": conf} if projector == "token" else conf
    tree = tiny_config.to_dict() | {"projector": projector, "projector_conf": conf}
    model = SteerMoE.from_config(config_from_dict(tree)).train()
    adapter = model.projector if projector == "moe_adapter" else model.projector.frames
    data = AudioTextDataset(tiny.make_dataset(tmp_path, [80, 123, 200]))
    batch = Collator(model.llm, "hear: ")([data[index] for index in range(3)])
    loss = objective(model, batch, step)
    balance = adapter.auxiliary.item()
    assert balance > 0 and loss.stats["auxiliary"] == pytest.approx(loss.units * balance, rel=1e-5)
    adapter.balance = 0.0
    without = objective(model, batch, step)
    assert float(loss.total.detach()) == pytest.approx(float(without.total.detach()) + loss.units * balance, rel=1e-5)
    loss.total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters())
    adapter.balance = 3.0
    assert "auxiliary" not in objective(model.eval(), batch).stats
