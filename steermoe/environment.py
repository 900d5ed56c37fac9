"""What a result was made with: git hash, package versions, machine, data."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from steermoe.files import read_jsonl

PACKAGES = ("torch", "torchaudio", "transformers", "safetensors", "kaldiio", "numpy", "soundfile")


def git_hash() -> str:
    """The checkout's commit, with `+changes` where tracked files differ; "unknown" outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    try:
        commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def processor() -> str:
    """Model name of the CPU and the number of cores this process may use."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def describe_data(data: str | Path) -> str:
    """A data.jsonl in words: "697 utterances of 12 speakers, 2.38 h"."""
    entries = list(read_jsonl(data))
    speakers, hours = len({entry["spk"] for entry in entries}), sum(entry["duration"] for entry in entries) / 3600
    return f"{len(entries)} utterances of {speakers} speaker{'s' * (speakers != 1)}, {hours:.2f} h"


def describe() -> dict[str, str]:
    """For the experiment folder and the adapter's metadata; only strings."""
    import torch

    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"git": git_hash(), "python": platform.python_version(), "processor": processor(), "gpu": device, **versions}
