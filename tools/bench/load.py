"""A model from the local cache until it can decode: whole processes that load the tiny pair with an adapter and end.

ours          steermoe.checkpoint.load_model, with the check that the frozen models are those of the adapter
imports       what of it is Python's start and the import of torch and transformers
transformers  its from_pretrained for the LLM and the tokenizer alone
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Callable

from steermoe.config import Config
from steermoe.fetch import find_model
from turns import print_report, rows, spread, take_turns

ROUNDS = 7
OURS = "ours"
ROOT = Path(__file__).resolve().parents[2]
LOAD = (
    "import sys, time; from steermoe.checkpoint import load_model; begin = time.perf_counter(); load_model(sys.argv[1]); "
    "print(time.perf_counter() - begin)"
)
IMPORTS = "import torch, transformers; from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM"
THEIRS = IMPORTS + "; import sys; AutoTokenizer.from_pretrained(sys.argv[1]); AutoModelForCausalLM.from_pretrained(sys.argv[1])"


def add_options(parser) -> None:
    parser.add_argument("--adapter", type=Path, help="an adapter file, experiment or package; default: a fresh one")


def run(args) -> None:
    with tempfile.TemporaryDirectory() as folder:
        adapter = args.adapter or fresh_adapter(Path(folder) / "fresh.safetensors")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": f"{folder}/compiled"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # modules compiled once, as they are in an installed package

        def process(code: str, path) -> Callable[[], str]:
            words = [sys.executable, "-c", code, str(path)]
            return lambda: subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stdout

        calls: list[float] = []
        ours = process(LOAD, adapter)
        llm = find_model(Config().llm_conf["model"], kind="llm")
        variants = {OURS: lambda: calls.append(float(ours())), "imports": process(IMPORTS, ""), "transformers": process(THEIRS, llm)}
        times = take_turns(variants, args.rounds)
    notes = [f"Of ours, the call of load_model: {spread(calls[-args.rounds :], '{:.2f}')} s of the wall clock."]
    print_report("Loading for decoding", rows(times, OURS, args.clock), notes, args)


def fresh_adapter(path: Path) -> Path:
    from steermoe.checkpoint import save_adapter
    from steermoe.model import SteerMoE

    config = Config()
    save_adapter(path, SteerMoE.from_config(config), config, 0, {})
    return path
