"""Functions for an LLM to call: ones that answer, raise, leave, hang and return what is no text."""

from __future__ import annotations

import time
from typing import Literal, Optional

Units = Literal["C", "F"]


def plan(city: str, days: int = 1, units: Units = "C", hours: Optional[list[float]] = None, rough: bool = False) -> str:
    """Plans a trip.

    Args:
        city: where to
        days: how long
        units: of temperatures
        hours: to be there
        rough: or exact
    """
    return f"{city} {days}"


def get_weather(city: str) -> str:
    """Tells the weather.

    Args:
        city: the city's name
    """
    return f"{city}今天下黄金"


def fail(reason: str) -> str:
    """Raises.

    Args:
        reason: what to say
    """
    raise ValueError(reason)


def leave() -> str:
    """Ends the interpreter."""
    raise SystemExit(3)


def hang() -> str:
    """Never returns."""
    while True:
        time.sleep(0.05)


def count() -> dict:
    """Returns no text."""
    return {"十": [1, None]}


FUNCTIONS = [get_weather, fail, leave, hang, count]
