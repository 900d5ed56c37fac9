"""Shared pieces: a tiny random model for unit tests (never for results), and where real data and models are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes over 20 seconds or needs the real frozen models; run with --slow")
    config.addinivalue_line("markers", "network: needs the package registries; run with --network")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--network", action="store_true", help="also run the tests marked network")


def pytest_collection_modifyitems(config, items):
    for item in items:
        for name in ("slow", "network"):
            if name in item.keywords and not config.getoption(f"--{name}"):
                item.add_marker(pytest.mark.skip(reason=f"{name}: run with --{name}"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real corpora beside the checkout; the test is skipped where they are absent."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared/data beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def real_models() -> Path:
    """The cache with whisper-tiny.en and SmolLM2-135M-Instruct; the test is skipped where they have not been fetched."""
    cache = Path(os.environ.get("STEERMOE_CACHE", Path.home() / ".cache" / "steermoe")) / "models"
    for name in ("whisper-tiny.en", "SmolLM2-135M-Instruct"):
        if not (cache / name).is_dir():
            pytest.skip(f"{name} is not in the cache; python -m steermoe.bin.fetch {name}")
    return cache


@pytest.fixture(scope="session")
def tiny_bases(tmp_path_factory) -> Path:
    """A folder with `whisper` and `llm`: random weights, real formats, a chat template, a byte-level tokenizer."""
    import tiny

    return tiny.make_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture()
def tiny_config(tiny_bases):
    """float32, trim; two encoder layers and two LLM layers."""
    from steermoe.config import config_from_dict

    return config_from_dict(
        {
            "encoder_conf": {"model": str(tiny_bases / "whisper"), "dtype": "float32"},
            "steering_conf": {"num_experts": 4},
            "llm_conf": {"model": str(tiny_bases / "llm"), "dtype": "float32"},
            "train_conf": {"max_steps": 6, "valid_steps": 2, "save_steps": 1, "batch_frames": 600, "max_batch": 4},
            "optim_conf": {"warmup_steps": 2},
            "decode_conf": {"max_tokens": 20},
        }
    )


@pytest.fixture()
def tiny_model(tiny_config):
    from steermoe.model import SteerMoE

    return SteerMoE.from_config(tiny_config).eval()
