"""The server: OpenAI's interfaces for speech and chat over one model, and a page. `steermoe serve` starts it."""
