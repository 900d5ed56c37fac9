"""A small Conformer for where no pretrained one can be had: CTC on the recipe's transcripts, and a frozen Whisper as teacher.

CTC alone learns nothing from an hour of speech. A teacher says for every frame what it hears, so the Conformer also learns to
predict the teacher's last hidden states (mean squared error after a linear layer, each dimension scaled to unit variance).
Shape legend: B batch, F input frames, M mel bands, T encoder frames (25 Hz), D width, H teacher's width, V units, U targets.
Sources: Graves et al. 2006 (CTC); Romero et al., "FitNets" (arXiv 1412.6550), for hints from a teacher's hidden states.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from steermoe.config import OptimConf, TrainConf, check_training, load_as
from steermoe.data.augment import Augment, AugmentConf
from steermoe.data.dataset import AudioTextDataset
from steermoe.data.fbank import KaldiFbank
from steermoe.dtypes import resolve_dtype
from steermoe.encoders.conformer import Conformer
from steermoe.encoders.ctc import BLANK
from steermoe.encoders.whisper import WhisperEncoder
from steermoe.errors import UserError
from steermoe.masks import length_mask
from steermoe.projector import masked_pool
from steermoe.train.objectives import Loss

STATISTICS_UTTERANCES = 200  # enough for means and variances over frames


@dataclass
class ConformerConf:
    """Sizes of the Conformer; the feed-forward layers are four times as wide."""

    dim: int = 144
    layers: int = 4
    heads: int = 4
    kernel: int = 31
    dropout: float = 0.1


@dataclass
class PretrainConf:
    """conf/pretrain_conformer.yaml."""

    conformer_conf: ConformerConf = field(default_factory=ConformerConf)
    units: int = 128  # sentencepiece units of the CTC
    teacher: str = "whisper-tiny.en"  # "": CTC alone
    teacher_steps: int = 500  # steps with the teacher alone: CTC at once would lead into writing nothing but blanks
    teacher_weight: float = 1.0  # of the squared error per frame beside the CTC loss per unit
    augment_conf: AugmentConf = field(default_factory=AugmentConf)
    optim_conf: OptimConf = field(default_factory=lambda: OptimConf(lr={"encoder": 1e-3}))
    train_conf: TrainConf = field(default_factory=TrainConf)


def load_pretrain_config(path: str | Path, overrides: Sequence[str] = ()) -> PretrainConf:
    """UserError names the file and the nearest known key, or the value that does not fit."""
    conf = load_as(PretrainConf, path, list(overrides))
    conf.augment_conf.check(str(path))
    if unknown := conf.optim_conf.lr.keys() - {"encoder"}:
        raise UserError(f"{path}: unknown key optim_conf.lr.{min(unknown)} (known: encoder)")
    check_training(conf.optim_conf, conf.train_conf, str(path))
    sizes = conf.conformer_conf
    for key, least in (("units", 2), ("teacher_steps", 0), ("teacher_weight", 0)):
        if getattr(conf, key) < least:
            raise UserError(f"{path}: {key}: {getattr(conf, key)} is below {least}")
    checks = (
        ("dim", sizes.dim > 0 and sizes.dim % 2 == 0, "an even number over 0"),
        ("layers", sizes.layers > 0, "over 0"),
        ("heads", sizes.heads > 0 and sizes.dim % sizes.heads == 0, f"a divisor of dim, {sizes.dim}"),
        ("kernel", sizes.kernel > 0 and sizes.kernel % 2 == 1, "an odd number over 0"),
        ("dropout", 0 <= sizes.dropout < 1, "from 0 to below 1"),
    )
    for key, right, wanted in checks:
        if not right:
            raise UserError(f"{path}: conformer_conf.{key}: {getattr(sizes, key)} is not {wanted}")
    if conf.teacher and conf.teacher_steps >= conf.train_conf.max_steps:
        raise UserError(f"{path}: teacher_steps: {conf.teacher_steps} leave no step for the CTC; raise train_conf.max_steps")
    return conf


class PretrainExample(NamedTuple):
    feats_fm: Tensor  # Kaldi fbank, float32
    teacher_fm: Tensor | None  # the teacher's features of the same audio, never masked
    text: str


class PretrainBatch(NamedTuple):
    feats_bfm: Tensor
    feat_lens_b: Tensor
    teacher_bfm: Tensor | None
    teacher_lens_b: Tensor | None
    targets_u: Tensor  # int64, all utterances' units one after the other, from 1 up
    target_lens_b: Tensor

    def to(self, device: torch.device | str) -> "PretrainBatch":
        return PretrainBatch(*(None if tensor is None else tensor.to(device, non_blocking=True) for tensor in self))


class PretrainDataset(AudioTextDataset):
    """The audio of data.jsonl as two kinds of features. teacher_frontend: None without a teacher."""

    def __init__(self, path, teacher_frontend=None, augment: Augment | None = None):
        super().__init__(path, augment, teacher_frontend or KaldiFbank())
        self.teacher_frontend, self.fbank = teacher_frontend, KaldiFbank()
        for index, entry in enumerate(self.entries):  # every item reads its audio
            self._wav(index, entry)

    def __getitem__(self, index: int) -> PretrainExample:
        entry, samples_n = self.entries[index], self.samples(index)
        feats_fm = self.fbank(samples_n)
        if self.augment is not None:
            feats_fm = self.augment.feats(feats_fm, entry["utt"], self.epoch)
        return PretrainExample(feats_fm, self.teacher_frontend(samples_n) if self.teacher_frontend else None, entry["text"])


def make_units(texts: Sequence[str], units: int) -> bytes:
    """A sentencepiece unigram model over lower-case transcripts, serialised. At most `units` pieces; a short text gives fewer."""
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=units,
            model_type="unigram",
            character_coverage=1.0,
            hard_vocab_limit=False,
            normalization_rule_name="nmt_nfkc_cf",  # folds case
            num_threads=1,  # the same units on every machine
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"units: {units}: sentencepiece makes no model of {len(texts)} transcripts ({error}); try more units") from None
    return model.getvalue()


def collator(tokenizer):
    """Examples -> PretrainBatch. tokenizer: a SentencePieceProcessor."""

    def collate(examples: Sequence[PretrainExample]) -> PretrainBatch:
        feats, teachers = [e.feats_fm for e in examples], [e.teacher_fm for e in examples]
        ids = [torch.tensor(tokenizer.encode(e.text), dtype=torch.long) + 1 for e in examples]
        taught = teachers[0] is not None
        return PretrainBatch(
            pad_sequence(feats, batch_first=True),
            torch.tensor([len(f) for f in feats]),
            pad_sequence(teachers, batch_first=True) if taught else None,
            torch.tensor([len(t) for t in teachers]) if taught else None,
            torch.cat(ids),
            torch.tensor([len(i) for i in ids]),
        )

    return collate


class Pretraining(nn.Module):
    """Trained: `encoder`, `ctc` (D -> V + 1) and `hint` (D -> H). Frozen: `teacher`."""

    def __init__(self, encoder: Conformer, num_units: int, teacher: WhisperEncoder | None):
        super().__init__()
        self.encoder, self.teacher = encoder, teacher
        self.ctc = nn.Linear(encoder.dim, num_units + 1)
        self.hint = nn.Linear(encoder.dim, teacher.dim) if teacher else None
        if teacher:
            self.register_buffer("hint_mean", torch.zeros(teacher.dim))
            self.register_buffer("hint_std", torch.ones(teacher.dim))

    def train(self, mode: bool = True) -> "Pretraining":
        super().train(mode)
        if self.teacher:
            self.teacher.eval()
        return self

    def forward(self, feats_bfm: Tensor, feat_lens_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-> hidden_btd, CTC log-probabilities (B, T, V + 1) float32, lens_b."""
        device, dtype = feats_bfm.device.type, resolve_dtype("auto")
        with torch.autocast(device, torch.bfloat16, enabled=self.training and dtype == torch.bfloat16):
            hidden_btd, lens_b = self.encoder(feats_bfm, feat_lens_b)
            logits_btv = self.ctc(hidden_btd)
        return hidden_btd.float(), logits_btv.float().log_softmax(-1), lens_b

    @torch.no_grad()
    def hear(self, feats_bfm: Tensor, feat_lens_b: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's hidden states, two averaged to one: (B, T', H) float32 at 25 Hz, lens_b."""
        hidden_bth, lens_b = self.teacher(feats_bfm, feat_lens_b)
        return masked_pool(self.teacher.final_norm(hidden_bth).float(), lens_b, 2)

    def adapter_state(self) -> dict[str, Tensor]:
        state = {name: tensor.detach().cpu() for name, tensor in self.state_dict().items()}
        return {name: tensor for name, tensor in state.items() if not name.startswith("teacher.")}

    def load_adapter_state(self, tensors: dict[str, Tensor]) -> None:
        missing, unknown = self.load_state_dict(tensors, strict=False)
        if wrong := unknown + [name for name in missing if not name.startswith("teacher.")]:
            raise RuntimeError(f"{wrong[0]} is not in both")

    def bases(self) -> dict[str, str]:
        return {"teacher": self.teacher.fingerprint} if self.teacher else {}

    def parameter_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        return {"encoder": {name: p for name, p in self.named_parameters() if not name.startswith("teacher.")}}


class CtcAndHint:
    """The objective: CTC loss + weight * squared error against the teacher, per unit and per frame; the first `alone` steps
    without the CTC loss, if there is a teacher.
    """

    def __init__(self, weight: float, alone: int):
        self.weight, self.alone = weight, alone

    def __call__(self, model: Pretraining, batch: PretrainBatch, step: int | None = None) -> Loss:
        hidden_btd, log_probs_btv, lens_b = model(batch.feats_bfm, batch.feat_lens_b)
        units = int(batch.target_lens_b.sum())
        log_probs_tbv = log_probs_btv.transpose(0, 1)
        # zero_infinity: an utterance with more units than frames teaches nothing, and breaks nothing.
        ctc = nnf.ctc_loss(log_probs_tbv, batch.targets_u, lens_b, batch.target_lens_b, BLANK, "sum", zero_infinity=True)
        if model.teacher is None:
            return Loss(ctc, units, {"ctc": float(ctc.detach())})
        wanted_bth, wanted_lens_b = model.hear(batch.teacher_bfm, batch.teacher_lens_b)
        frames = min(wanted_bth.shape[1], hidden_btd.shape[1])
        valid_bt = length_mask(torch.minimum(lens_b, wanted_lens_b), frames)
        wanted_nh = ((wanted_bth[:, :frames] - model.hint_mean) / model.hint_std)[valid_bt]
        hint = nnf.mse_loss(model.hint(hidden_btd[:, :frames][valid_bt]), wanted_nh) * units  # a mean, weighing as `units` do
        joined = step is None or step > self.alone
        total = ctc * joined + self.weight * hint
        return Loss(total, units, {"ctc": float(ctc.detach()), "hint": float(hint.detach())})


@torch.no_grad()
def measure_statistics(model: Pretraining, data: PretrainDataset, seed: int) -> None:
    """Sets the encoder's CMVN and the scale of the teacher's hidden states from a random part of the data, which is to come
    without augmentation: masks would make the variances too small.
    """
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:STATISTICS_UTTERANCES].tolist()
    feats, hints = Moments(), Moments()
    for index in chosen:
        example = data[index]
        feats.add(example.feats_fm)
        if model.teacher:
            teacher_bfm = example.teacher_fm[None].to(model.hint_mean.device)
            hints.add(model.hear(teacher_bfm, torch.tensor([len(example.teacher_fm)], device=teacher_bfm.device))[0][0].cpu())
    mean_m, std_m = feats.mean_std()
    model.encoder.cmvn_mean.copy_(mean_m)
    model.encoder.cmvn_istd.copy_(1 / std_m)
    if model.teacher:
        mean_h, std_h = hints.mean_std()
        model.hint_mean.copy_(mean_h)
        model.hint_std.copy_(std_h)


class Moments:
    """Mean and standard deviation over rows that come in pieces, in float64."""

    def __init__(self):
        self.count, self.sums, self.squares = 0, 0.0, 0.0

    def add(self, rows_nx: Tensor) -> None:
        rows_nx = rows_nx.double()
        self.count += len(rows_nx)
        self.sums, self.squares = self.sums + rows_nx.sum(0), self.squares + rows_nx.square().sum(0)

    def mean_std(self) -> tuple[Tensor, Tensor]:
        mean = self.sums / self.count
        return mean.float(), (self.squares / self.count - mean.square()).clamp(min=1e-10).sqrt().float()
