"""SteerMoE: a frozen audio encoder and a frozen LLM, joined by a small trained mixture-of-experts steering module."""

__version__ = "0.1.0"
