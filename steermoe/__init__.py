"""SteerMoE: a frozen audio encoder and a frozen LLM, joined by a small trained mixture-of-experts steering module.

    from steermoe import SteerMoE

    model = SteerMoE.from_pretrained("pretrained")
    print(model.transcribe("a.wav"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steermoe.api import SteerMoE

__version__ = "0.1.0"
__all__ = ["SteerMoE"]


def __getattr__(name: str) -> Any:
    """The library's classes are imported when they are asked for: `import steermoe` alone costs nothing."""
    if name in __all__:
        from steermoe import api

        return getattr(api, name)
    raise AttributeError(f"module 'steermoe' has no attribute {name!r}")
