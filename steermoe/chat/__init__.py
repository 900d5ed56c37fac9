"""Talking to a model: `Conversation`."""

from steermoe.chat.conversation import Conversation, Reply

__all__ = ["Conversation", "Reply"]
