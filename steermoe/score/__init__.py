"""Scoring as NIST's sclite does it, with normalisers and confidence intervals; imports no torch."""

from steermoe.score.scoring import Summary, score
from steermoe.score.trn import read_trn, write_trn

__all__ = ["Summary", "read_trn", "score", "write_trn"]
