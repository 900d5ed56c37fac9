"""A soft prompt made of what CTC hears.

Shape legend: B batch, T encoder frames, U scored frames, D encoder width, H LLM width, C units of CTC, N tokens heard.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steermoe.ctc import best_units, find_runs, mean_over_runs
from steermoe.errors import UserError
from steermoe.registry import keywords, nearest, resolve
from steermoe.units import KINDS, make_units


class TokenProjector(nn.Module):
    """A soft prompt that looks like text: one vector a token, near the LLM's own embeddings. Needs an objective with CTC.

    frames, frames_conf: the projector that makes the frames which are scored, any but `token`, and its keywords.
    units: what CTC speaks. "tokens": the LLM's own; the prompt has a vector for each run of frames that hear one token: the mean of
    the embeddings of its best `candidates`, weighted by their probabilities, and gradients reach the frames. "bytes": letters; the
    prompt is the embeddings of the tokens that the LLM itself would write for what is heard, and no gradient passes.
    """

    def __init__(
        self, encoder_dim: int, llm_dim: int, *, frames: str = "linear", frames_conf: dict | None = None, candidates: int = 8,
        units: str = "tokens",
    ):  # fmt: skip
        super().__init__()
        if units not in KINDS:
            raise UserError(f"projector_conf.units: {units!r} is not tokens or bytes")
        if candidates < 1:
            raise UserError(f"projector_conf.candidates: {candidates}; at least 1 is needed")
        conf = frames_conf or {}
        known = list(keywords("projector", frames))
        if unknown := sorted(conf.keys() - set(known)):
            raise UserError(f"projector_conf.frames_conf: unknown key {unknown[0]}{nearest(unknown[0], known)}")
        self.candidates, self.kind = candidates, units
        self.frames = resolve("projector", frames)(encoder_dim, llm_dim, **conf)
        self.blank = nn.Parameter(torch.zeros(llm_dim))
        self.blank_bias = nn.Parameter(torch.zeros(()))

    def attach(self, llm) -> None:
        """The frozen LLM whose input embeddings are what frames are scored against. Not a submodule: its owner is the model."""
        weight_vh = llm.llm.get_input_embeddings().weight
        self.__dict__["llm"] = llm
        self.__dict__["units"] = make_units(self.kind, llm)
        self.gain = 1.0 if weight_vh.is_meta else float((weight_vh[:4096].float().std() * weight_vh.shape[1] ** 0.5).reciprocal())

    def scores(self, frames_buh: Tensor) -> Tensor:
        """(B, U, H) -> (B, U, C + 1) before the softmax: the blank, then every unit. In the LLM's dtype, bytes in float32."""
        weight_ch = self.units.weight() if self.kind == "tokens" else self.units.weight().float()
        blank_bu1 = (frames_buh @ self.blank + self.blank_bias)[..., None]
        return torch.cat([blank_bu1.to(weight_ch.dtype), (frames_buh * self.gain).to(weight_ch.dtype) @ weight_ch.T], -1)

    def hear(self, hidden_btd: Tensor, lens_b: Tensor, final_norm: nn.Module) -> tuple[Tensor, Tensor]:
        """hidden_btd (B, T, D) any float dtype, lens_b (B,) int64 -> scores (B, U, C + 1), their lengths (B,)."""
        frames_buh, lens_b = self.frames(hidden_btd, lens_b, final_norm)
        return self.scores(frames_buh), lens_b

    def read(self, scores_buc: Tensor, lens_b: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of frames -> P_audio (B, N, H) float32, tokens heard (B,)."""
        runs = find_runs(scores_buc.argmax(-1), lens_b)
        if self.kind == "bytes":
            heard = [torch.tensor(ids, dtype=torch.long) for ids in self.reading(scores_buc, lens_b)]
            ids_bn = nn.utils.rnn.pad_sequence(heard, batch_first=True).to(scores_buc.device)
            return self.llm.embed(ids_bn).float(), torch.tensor([len(ids) for ids in heard], device=lens_b.device)
        top = scores_buc[..., 1:].topk(self.candidates, -1)
        weights_buk = top.values.float().softmax(-1)
        vectors_buh = (weights_buk[..., None, :] @ self.llm.embed(top.indices).float())[..., 0, :]
        return mean_over_runs(vectors_buh, runs), runs.lens_b

    def reading(self, scores_buc: Tensor, lens_b: Tensor) -> list[list[int]]:
        """What CTC alone reads, the best unit of each frame: token ids of every utterance."""
        return [self.units.join(units) for units in best_units(scores_buc, lens_b)]

    def forward(self, hidden_btd: Tensor, lens_b: Tensor, final_norm: nn.Module) -> tuple[Tensor, Tensor]:
        """hidden_btd (B, T, D) any float dtype, lens_b (B,) int64 -> P_audio (B, N, H) float32, audio_lens_b (B,) int64."""
        return self.read(*self.hear(hidden_btd, lens_b, final_norm))

    def parameter_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        return {"projector": dict(self.named_parameters())}
