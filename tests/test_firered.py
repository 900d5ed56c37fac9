"""FireRedASR-AED folders: what is read, and one message for each kind of trouble."""

from __future__ import annotations

import argparse
import math
import os

import kaldiio
import numpy as np
import pytest
import torch

from firered_writer import cmvn_stats, firered_content, write_firered
from steermoe.encoders.firered import read_cmvn, read_firered
from steermoe.errors import UserError

SIZES = {"dim": 24, "layers": 3, "heads": 3, "feat_dim": 80, "kernel": 5}


def refused(folder, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_firered(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture()
def folder(tmp_path):
    write_firered(tmp_path)
    return tmp_path


def rewrite(folder, change) -> None:
    """Writes the checkpoint again after `change(args, state)`."""
    content = firered_content()
    change(content["args"], content["model_state_dict"])
    torch.save(content, folder / "model.pth.tar")


@pytest.mark.parametrize("sizes", [{}, {"dim": 16, "layers": 1, "heads": 4, "feat_dim": 40, "kernel": 3}])
def test_encoder_alone_is_read_with_its_sizes(tmp_path, sizes):
    written = write_firered(tmp_path, **sizes)
    firered = read_firered(tmp_path)
    assert firered.sizes == SIZES | sizes
    assert firered.tensors.keys() == written.keys()
    assert all(torch.equal(tensor, written[name]) and tensor.dtype == torch.float32 for name, tensor in firered.tensors.items())


def test_older_files_and_half_precision(tmp_path):
    folder, expected = tmp_path, write_firered(tmp_path)
    torch.save(firered_content(), folder / "model.pth.tar", _use_new_zipfile_serialization=False)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read_firered(folder).tensors.items())

    def halve(args, state):
        state.update({name: tensor.half() for name, tensor in state.items()})

    rewrite(folder, halve)
    for name, tensor in read_firered(folder).tensors.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, expected[name].half().float())


def test_cmvn_is_the_mean_and_deviation_of_the_frames(tmp_path):
    frames = np.random.default_rng(0).normal(12, 4, (5000, 6))
    stats = np.stack([np.append(frames.sum(0), len(frames)), np.append((frames**2).sum(0), 0)])
    kaldiio.save_mat(str(tmp_path / "binary.ark"), stats)
    rows = "\n".join(" ".join(f"{value:.17g}" for value in row) for row in stats)
    (tmp_path / "text.ark").write_text(f" [\n{rows} ]\n")
    for name in ("binary.ark", "text.ark"):
        mean, istd = read_cmvn(tmp_path / name)
        assert mean.dtype == istd.dtype == torch.float32
        assert np.allclose(mean, frames.mean(0), rtol=1e-6) and np.allclose(istd, 1 / frames.std(0), rtol=1e-6)


def test_cmvn_by_hand_in_double_precision_and_with_a_floor(tmp_path):
    # band 0: mean 20.3 and variance 0.01, which statistics in float32 lose; band 1 is constant at 3
    count = 987654321.0
    stats = np.array([[20.3 * count, 3 * count, count], [(20.3**2 + 0.01) * count, 9 * count, 0]])
    kaldiio.save_mat(str(tmp_path / "cmvn.ark"), stats)
    mean, istd = read_cmvn(tmp_path / "cmvn.ark")
    assert np.allclose(mean, [20.3, 3.0], rtol=1e-6)
    assert math.isclose(istd[0], 10.0, rel_tol=1e-5) and math.isclose(istd[1], 1e10, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stats: stats[:1], "a 1 x 81 matrix"),
        (lambda stats: stats[:, :1], "a 2 x 1 matrix"),
        (lambda stats: stats[:, 1:], "of 79 mel bands, but model.pth.tar reads 80"),
        (lambda stats: stats * (np.arange(81) != 80), "no frames"),
        (lambda stats: np.where(np.arange(81) == 7, np.nan, stats), "NaN"),
        (lambda stats: np.where(np.arange(81) == 80, np.inf, stats), "infinity"),
    ],
)
def test_cmvn_that_is_none(folder, change, message):
    kaldiio.save_mat(str(folder / "cmvn.ark"), change(cmvn_stats()))
    refused(folder, rf"cmvn\.ark: .*{message}.*again")


def test_cmvn_damaged_names_the_right_way_on(folder):
    whole = (folder / "cmvn.ark").read_bytes()
    for content in (b"", whole[:5], whole[:-1], b"\0BXX " + whole[5:], b"PKL" + whole):
        (folder / "cmvn.ark").write_bytes(content)
        refused(folder, r"cmvn\.ark.*copy it from the published FireRedASR-AED again$")


@pytest.mark.parametrize("name", ["cmvn.ark", "model.pth.tar"])
def test_missing_file(folder, name):
    (folder / name).unlink()
    refused(folder, f"{name}: no such file; a FireRedASR-AED folder holds")


def test_missing_folder(tmp_path):
    refused(tmp_path / "none", "no such file")


class Runs:
    """A pickle of it runs a command where it is read without care."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_the_file_is_run(folder, tmp_path, zipped):
    content = firered_content()
    content["args"].hidden = Runs(tmp_path / "ran")
    torch.save(content, folder / "model.pth.tar", _use_new_zipfile_serialization=zipped)
    refused(folder, rf"model\.pth\.tar: .*{os.system.__module__}\.system.*refused")
    assert not (tmp_path / "ran").exists()


def test_the_allowance_ends_with_the_reading(folder):
    read_firered(folder)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_damaged_weights(folder):
    whole = (folder / "model.pth.tar").read_bytes()
    for content in (b"", b"\x80\x02", whole[:2000], whole[: len(whole) // 2], b"x" * 500):
        (folder / "model.pth.tar").write_bytes(content)
        refused(folder, r"model\.pth\.tar: not a readable PyTorch checkpoint.*again")


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"state_dict": {}},
        {"args": {"idim": 80}, "model_state_dict": {}},
        {"args": argparse.Namespace(idim=80), "model_state_dict": [1]},
    ],
)
def test_another_kind_of_checkpoint(folder, content):
    torch.save(content, folder / "model.pth.tar")
    refused(folder, "not a FireRedASR checkpoint")


def test_llm_checkpoint_without_an_encoder(folder):
    rewrite(folder, lambda args, state: [state.pop(name) for name in list(state) if name.startswith("encoder.")])
    refused(folder, "not a FireRedASR-AED encoder: tensor encoder.input_preprocessor.out.weight is missing")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("d_model", 48, "args.d_model is 48, but the tensors say 24"),
        ("n_layers_enc", 4, "args.n_layers_enc is 4, but the tensors say 3"),
        ("n_head", 4, "args.n_head is 4, but the tensors say 3"),
        ("kernel_size", 33, "args.kernel_size is 33, but the tensors say 5"),
        ("idim", 40, r"input_preprocessor\.out\.weight is torch\.float32 \(24, 608\), floats \(24, 288\)"),
        ("idim", None, "its args lack idim"),
        ("n_head", "3", "its args lack n_head"),
    ],
)
def test_args_that_contradict_the_tensors(folder, name, value, message):
    rewrite(folder, lambda args, state: setattr(args, name, value))
    refused(folder, message)


def test_tensors_that_do_not_belong(folder):
    name = "encoder.layer_stack.1.conv.pointwise_conv2.weight"
    rewrite(folder, lambda args, state: state.pop(name))
    refused(folder, rf"tensor {name} missing")
    rewrite(folder, lambda args, state: [state.pop(name) for name in list(state) if ".ffn2." in name])
    refused(folder, r"tensor encoder\.layer_stack\.0\.ffn2\.net\.0\.bias and 17 more missing")
    rewrite(folder, lambda args, state: state.update({"encoder.layer_stack.0.adapter.weight": torch.zeros(2)}))
    refused(folder, r"tensor encoder\.layer_stack\.0\.adapter\.weight not known")
    for tensor in (torch.zeros(24, 48), torch.zeros(24, 48, 1, dtype=torch.int8)):
        rewrite(folder, lambda args, state, tensor=tensor: state.update({name: tensor}))
        refused(folder, rf"tensor {name} is .*floats \(24, 48, 1\) were expected")
    rewrite(folder, lambda args, state: state.update({name: [1.0]}))
    refused(folder, rf"tensor {name} missing")


def test_impossible_head_count(folder):
    def no_heads(args, state):
        args.n_head = 0
        state.update({name: tensor[:0] for name, tensor in state.items() if "pos_bias" in name})

    rewrite(folder, no_heads)
    refused(folder, "impossible sizes")
