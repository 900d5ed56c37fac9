"""What ours is compared with, written from the published descriptions: the same model, the way it is usually run.

Both pad every utterance to 30 s, run Whisper's own encoder layers as transformers has them, steer by equations 1 to 3 with one
router matrix D x (L*N) of which a layer takes its slice, and let the LLM make logits at every position. (For shapes that
transformers has no encoder of, the layers are ours.) Weights are those of a model of ours.

Shape legend: B batch, F = 3000 input frames, T encoder frames, D width, L layers, N experts, U audio vectors, S text tokens,
H LLM width.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from steermoe.data.collator import Batch
from steermoe.data.features import WINDOW_FRAMES
from steermoe.encoders.whisper import WhisperEncoder, pad_to_window
from steermoe.masks import length_mask
from steermoe.model import SteerMoE

TEXT = 448  # the authors pad the text to this


class Straightforward(nn.Module):
    """Text padded to the longest of the batch, under a mask. ours: whose frozen weights are shared and trained ones copied."""

    def __init__(self, ours: SteerMoE):
        super().__init__()
        self.llm = twin(ours.llm.llm)
        self.llm.set_attn_implementation("sdpa")
        self.encode = whisper_layers(ours.encoder) if isinstance(ours.encoder, WhisperEncoder) else OurLayers(ours.encoder)
        layers, experts, dim = ours.steering.experts.shape
        self.router = nn.Linear(dim, layers * experts, device=ours.steering.experts.device)
        self.experts = nn.Parameter(ours.steering.experts.detach().clone())
        self.scales = nn.Parameter(ours.steering.scales.detach().clone())
        self.projector = copy.deepcopy(ours.projector.linear)
        self.kernel = ours.projector.kernel
        with torch.no_grad():
            self.router.weight.copy_(ours.steering.router_weight.transpose(1, 2).reshape(layers * experts, dim))
            self.router.bias.copy_(ours.steering.router_bias.reshape(-1))

    def steer(self, layer: int, hidden_btd: Tensor) -> Tensor:
        experts = self.experts.shape[1]
        logits = self.router(hidden_btd.to(self.router.weight.dtype))
        gates_btn = logits[..., layer * experts : (layer + 1) * experts].softmax(-1)
        return hidden_btd + (self.scales[layer] * (gates_btn @ self.experts[layer])).to(hidden_btd.dtype)

    def prompt(self, feats_bfm: Tensor, ids_bs: Tensor) -> Tensor:
        """feats_bfm (B, 3000, M), ids_bs (B, S) -> [audio; text] (B, U + S, H)."""
        hidden_btd = self.encode(feats_bfm, self.steer)
        pooled_bud = nnf.avg_pool1d(hidden_btd.transpose(1, 2), self.kernel, ceil_mode=True).transpose(1, 2)
        audio_buh = self.projector(pooled_bud.to(self.projector.weight.dtype))
        text_bsh = self.llm.get_input_embeddings()(ids_bs)
        return torch.cat([audio_buh.to(text_bsh.dtype), text_bsh], 1)

    def loss(self, feats_bfm: Tensor, batch: Batch) -> Tensor:
        """Mean over answer tokens and end token, by the LLM's own code. feats_bfm: what `pad_feats` makes of the batch's."""
        text_mask_bs = length_mask(batch.text_lens_b, batch.text_ids_bs.shape[1])
        answer_bs = text_mask_bs & ~length_mask(batch.answer_at_b, batch.text_ids_bs.shape[1])
        vectors = self.prompt(feats_bfm, batch.text_ids_bs)
        places = vectors.shape[1] - text_mask_bs.shape[1]
        labels = nnf.pad(batch.text_ids_bs.masked_fill(~answer_bs, -100), (places, 0), value=-100)
        return self.llm(inputs_embeds=vectors, attention_mask=self.mask(text_mask_bs, places), labels=labels).loss

    def mask(self, text_mask_bs: Tensor, places: int) -> Tensor:
        return nnf.pad(text_mask_bs, (places, 0), value=True).long()

    @torch.inference_mode()
    def generate(self, feats_bfm: Tensor, ids_bs: Tensor, tokens: int) -> Tensor:
        """Greedy, exactly `tokens` of them for every row: (B, tokens)."""
        vectors = self.prompt(feats_bfm, ids_bs)
        mask = torch.ones(vectors.shape[:2], dtype=torch.long, device=vectors.device)
        settings = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
        return self.llm.generate(inputs_embeds=vectors, attention_mask=mask, **settings)


class Authors(Straightforward):
    """The authors' way: text padded to 448 tokens, and padding attended."""

    def loss(self, feats_bfm: Tensor, batch: Batch) -> Tensor:
        ids_bs = nnf.pad(batch.text_ids_bs, (0, TEXT - batch.text_ids_bs.shape[1]))
        return super().loss(feats_bfm, batch._replace(text_ids_bs=ids_bs))

    def mask(self, text_mask_bs: Tensor, places: int) -> Tensor:
        return torch.ones(len(text_mask_bs), places + text_mask_bs.shape[1], dtype=torch.long, device=text_mask_bs.device)


class WhisperLayers(nn.Module):
    """transformers' encoder, opened where the steering goes in."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, feats_bfm: Tensor, steer) -> Tensor:
        encoder = self.encoder
        hidden = nnf.gelu(encoder.conv1(feats_bfm.to(encoder.conv1.weight.dtype).transpose(1, 2)))
        hidden_btd = nnf.gelu(encoder.conv2(hidden)).transpose(1, 2) + encoder.embed_positions.weight
        for index, layer in enumerate(encoder.layers):
            hidden_btd = steer(index, layer(hidden_btd, None))
        return encoder.layer_norm(hidden_btd)


class OurLayers(nn.Module):
    """Our encoder over 30 s, for shapes that transformers has none of."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, feats_bfm: Tensor, steer) -> Tensor:
        lens_b = torch.full((len(feats_bfm),), feats_bfm.shape[1], device=feats_bfm.device)
        return self.encoder.final_norm(self.encoder(feats_bfm, lens_b, steer)[0])


def whisper_layers(ours: WhisperEncoder) -> WhisperLayers:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as TheirEncoder

    heads, ffn = ours.layers[0].self_attn.heads, ours.layers[0].fc1.out_features
    config = WhisperConfig(
        d_model=ours.dim, encoder_layers=ours.num_layers, encoder_attention_heads=heads, encoder_ffn_dim=ffn,
        num_mel_bins=ours.conv1.in_channels, max_source_positions=ours.embed_positions.num_embeddings,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        encoder = TheirEncoder(config)
    encoder.load_state_dict(ours.state_dict(), assign=True)
    return WhisperLayers(encoder.requires_grad_(False).eval())


def twin(module: nn.Module) -> nn.Module:
    """A module with settings of its own and the same tensors."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})


def pad_feats(ours: SteerMoE, batch: Batch) -> Tensor:
    """(B, 3000, M), as the encoder's own extractor pads: not part of what is timed."""
    if isinstance(ours.encoder, WhisperEncoder):
        return pad_to_window(batch.feats_bfm, batch.feat_lens_b)
    return nnf.pad(batch.feats_bfm, (0, 0, 0, WINDOW_FRAMES - batch.feats_bfm.shape[1]))
