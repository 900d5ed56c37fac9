"""SteerMoE (arXiv 2510.13558): a frozen encoder, layer-wise steering, a projection, a frozen LLM.

Shape legend: B batch, F input frames, M input feature size, U soft-prompt vectors, S text tokens, Q merged places, H LLM width,
R target tokens of the batch, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from steermoe.config import Config
from steermoe.data.collator import Batch
from steermoe.merge import IGNORE, Merged, merge_layout, merge_vectors
from steermoe.registry import resolve


class Predictions(NamedTuple):
    logits_rv: Tensor  # for every answer token and EOS of the batch, in order, (R, V) in the LLM's dtype
    targets_r: Tensor  # int64


class SteerMoE(nn.Module):
    """Trainable: `steering` and `projector`. Frozen and always in eval mode: `encoder` and `llm`."""

    def __init__(self, encoder: nn.Module, steering: nn.Module, projector: nn.Module, llm: nn.Module):
        super().__init__()
        self.encoder, self.steering, self.projector, self.llm = encoder, steering, projector, llm
        if hasattr(projector, "attach"):
            projector.attach(llm)

    @classmethod
    def from_config(cls, config: Config, device: str | torch.device = "cpu") -> "SteerMoE":
        """Loads the frozen models and builds a fresh adapter between their dimensions, seeded by train_conf.seed."""
        encoder = resolve("encoder", config.encoder).from_pretrained(**config.encoder_conf)
        llm = resolve("llm", config.llm).from_pretrained(**config.llm_conf)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.train_conf.seed)
            steering = resolve("steering", config.steering)(encoder.num_layers, encoder.dim, **config.steering_conf)
            projector = resolve("projector", config.projector)(encoder.dim, llm.dim, **config.projector_conf)
        return cls(encoder, steering, projector, llm).to(device)

    def train(self, mode: bool = True) -> "SteerMoE":
        super().train(mode)
        self.encoder.eval()
        self.llm.eval()
        return self

    def hear(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Equations 1 to 3 in every layer. -> hidden_btd, frame_lens_b of the steered encoder."""
        if batch.heard:
            return batch.feats_bfm, batch.feat_lens_b
        return self.encoder(batch.feats_bfm, batch.feat_lens_b, self.steering)

    def listen(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """P_audio: the steered encoder, pooling, projection. -> (B, U, H), audio_lens_b (B,)."""
        return self.projector(*self.hear(batch), self.encoder.final_norm)

    def soft_prompt(
        self, batch: Batch, left_pad: bool = False, audio: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Merged]:
        """Equation 4: E_input = [P_audio ; E_text], in the order of the prompt template. -> vectors (B, Q, H), their layout.

        audio: what `listen` returns, or any other vectors (B, U, H) and lengths (B,) in their place.
        """
        audio_buh, audio_lens_b = self.listen(batch) if audio is None else audio
        layout = merge_layout(
            batch.text_ids_bs, batch.text_lens_b, audio_lens_b, batch.audio_at_b, batch.answer_at_b, left_pad
        )
        return merge_vectors(self.llm.embed(batch.text_ids_bs), audio_buh.to(self.llm.llm.dtype), layout), layout

    def forward(self, batch: Batch, audio: tuple[Tensor, Tensor] | None = None) -> Predictions:
        """Everything that equation 5 needs: the LLM's logits where the next token is part of the answer, and that token."""
        vectors_bqh, layout = self.soft_prompt(batch, audio=audio)
        # Padded on the right, where no place looks: a mask is for those who then compute no padding.
        masked = (layout.mask_bq, layout.positions_bq) if self.llm.packs else ()
        hidden_bqh = self.llm.hidden(vectors_bqh, *masked)
        next_bq = layout.labels_bq[:, 1:]
        is_target_bq = next_bq != IGNORE
        return Predictions(self.llm.logits(hidden_bqh[:, :-1][is_target_bq]), next_bq[is_target_bq])

    def adapter_state(self) -> dict[str, Tensor]:
        """The trained tensors, float32 on the CPU: all that a checkpoint holds."""
        return {
            f"{part}.{name}": tensor.detach().float().cpu().contiguous()
            for part in ("steering", "projector")
            for name, tensor in getattr(self, part).state_dict().items()
        }

    def load_adapter_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `adapter_state`; strict in both directions."""
        for part in ("steering", "projector"):
            prefix = f"{part}."
            getattr(self, part).load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})

    def bases(self) -> dict[str, str]:
        """SHA-256 of the frozen models."""
        return {"encoder": self.encoder.fingerprint, "llm": self.llm.fingerprint}

    def parameter_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Trainable parameters by learning-rate group (steering, router, projector) and name."""
        return self.steering.parameter_groups() | self.projector.parameter_groups()
