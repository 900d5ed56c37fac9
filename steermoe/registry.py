"""Names of roles, resolved on use: a missing optional package breaks only what needs it.

To add one, write a file and add a line here, or name it in the configuration as `package.module:Class`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from typing import Any

from steermoe.errors import UserError

ROLES: dict[str, dict[str, str]] = {
    "encoder": {
        "whisper": "steermoe.encoders.whisper:WhisperEncoder",
        "conformer": "steermoe.encoders.conformer:ConformerEncoder",
        "w2v_bert": "steermoe.encoders.w2v_bert:W2vBertEncoder",
        "wav2vec2_conformer": "steermoe.encoders.wav2vec2_conformer:Wav2Vec2ConformerEncoder",
        "parakeet": "steermoe.encoders.parakeet:ParakeetEncoder",
        "wavlm": "steermoe.encoders.wavlm:WavLMEncoder",
        "hubert": "steermoe.encoders.hubert:HubertEncoder",
        "wav2vec2": "steermoe.encoders.wav2vec2:Wav2Vec2Encoder",
    },
    "steering": {"moe": "steermoe.steering:MoESteering", "none": "steermoe.steering:NoSteering"},
    "projector": {
        "linear": "steermoe.projector:LinearProjector",
        "stack": "steermoe.projector:StackProjector",
        "conv": "steermoe.conv_projector:ConvProjector",
        "moe_adapter": "steermoe.moe_adapter:MoEAdapter",
        "token": "steermoe.token_projector:TokenProjector",
    },
    "llm": {"causal": "steermoe.llms.causal:CausalLM"},
    "objective": {"next_token": "steermoe.train.objectives:NextToken", "joint": "steermoe.train.objectives:Joint"},
}


def nearest(word: str, known: list[str]) -> str:
    """A hint for an error: ' (did you mean …?)', or the known ones when none is close."""
    close = difflib.get_close_matches(word, known, 1)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(sorted(known))})"


def resolve(role: str, name: str) -> type:
    """The class behind a role's name. UserError for an unknown name or a package that is not installed."""
    target = ROLES[role].get(name, name)
    module_name, colon, attribute = target.partition(":")
    if not colon:
        raise UserError(f"{role}: {name!r} is unknown{nearest(name, list(ROLES[role]))}")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise UserError(f"{role}: {name!r} needs the Python package {error.name!r}: pip install {error.name}") from None
    except AttributeError:
        raise UserError(f"{role}: {module_name} has no {attribute!r}") from None


def keywords(role: str, name: str) -> dict[str, Any]:
    """The keywords that a configuration may give to a role's constructor, with their defaults."""
    parameters = inspect.signature(resolve(role, name).__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.kind == p.KEYWORD_ONLY}
