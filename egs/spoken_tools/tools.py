"""What may be called in this recipe. The answers are ones that nobody would guess: what the LLM says of them, it was told."""


def get_weather(city: str) -> str:
    """Tells today's weather in a city.

    Args:
        city: the name of the city
    """
    chinese = any("\u4e00" <= character <= "\u9fff" for character in city)
    return f"{city}今天下黄金" if chinese else f"Today it is raining gold in {city}."


def get_time(city: str) -> str:
    """Tells what time it is in a city.

    Args:
        city: the name of the city
    """
    return f"In {city} it is 26:15."


def set_timer(minutes: int) -> str:
    """Sets a kitchen timer.

    Args:
        minutes: how many minutes until it rings
    """
    return f"Timer number 4711 is set to {minutes} minutes."
