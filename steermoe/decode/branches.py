"""An LLM that goes on with many texts at once, of different lengths and with common beginnings: each token is computed and held once.

Shape legend: B rows of the prompt, Q its places, R branches of a step, L places of the longest, G heads of keys and values, E width
of a head, N places held, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from steermoe.decode.cache import written
from steermoe.decode.search import Decoding
from steermoe.errors import UserError
from steermoe.merge import Merged


class Branches:
    """A branch is the int64 places, in order, of its prompt and tokens. roots: of the prompts; logprobs_bv: what comes after them.

    UserError for an LLM with a layer that does not keep all places (a sliding window shorter than the prompt, a recurrent layer).
    """

    def __init__(self, llm, vectors_bqh: Tensor, layout: Merged):
        prompt = Decoding(llm, vectors_bqh, layout)
        self.llm, self.logprobs_bv = llm, prompt.logprobs_bv
        self.width = layout.mask_bq.shape[1]
        places_bq = torch.arange(layout.mask_bq.numel(), device=layout.mask_bq.device).view(layout.mask_bq.shape)
        self.held, self.reading_rl = places_bq.numel(), None
        self.roots = [places_q[mask_q] for places_q, mask_q in zip(places_bq, layout.mask_bq)]
        self.cache = DynamicCache()
        self.cache.layers = [BranchLayer(self, layer) for layer in prompt.cache.layers]

    def step(self, branches: list[Tensor], tokens: list[int]) -> tuple[list[Tensor], Tensor]:
        """Each branch with a token more -> the longer branches, (R, V) log probabilities of what comes then."""
        device = branches[0].device
        count, lens_r = len(branches), torch.tensor([len(branch) + 1 for branch in branches], device=device)
        new_r = torch.arange(self.held, self.held + count, device=device)
        longer = [torch.cat([branch, new_r[row : row + 1]]) for row, branch in enumerate(branches)]
        self.reading_rl = torch.nn.utils.rnn.pad_sequence(longer, batch_first=True, padding_side="left")
        mask_rl = torch.arange(self.reading_rl.shape[1], 0, -1, device=device) <= lens_r[:, None]
        vectors_r1h = self.llm.embed(torch.tensor(tokens, device=device)[:, None])
        hidden_r1h = self.llm.hidden(vectors_r1h, mask_rl, lens_r[:, None] - 1, self.cache)
        self.held += count
        return longer, self.llm.logits(hidden_r1h[:, -1]).float().log_softmax(-1)


class BranchLayer(DynamicLayer):
    """One layer's keys and values (N, G, E) of all places, of which those are read that the branches of a step are made of."""

    def __init__(self, branches: Branches, prompt: DynamicLayer):
        super().__init__()
        if getattr(prompt, "keys", None) is None or prompt.keys.shape[-2] != branches.width:
            kind = type(prompt).__name__.removeprefix("Dynamic").removesuffix("Layer")
            raise UserError(f"joint decoding needs all that was said before, and a layer of this LLM ({kind}) forgets: use ctc_weight 0 or 1")
        self.branches = branches
        self.keys, self.values = (held.transpose(1, 2).flatten(0, 1) for held in (prompt.keys, prompt.values))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        begin, reading_rl = self.branches.held, self.branches.reading_rl
        self.keys, self.values = (written(held, new[:, :, 0], begin) for held, new in ((self.keys, key_states), (self.values, value_states)))
        return self.keys[reading_rl].transpose(1, 2), self.values[reading_rl].transpose(1, 2)

    def get_seq_length(self) -> int:
        reading_rl = self.branches.reading_rl
        return 0 if reading_rl is None else reading_rl.shape[1] - 1
