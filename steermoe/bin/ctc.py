"""Stage 5: the encoder's own score: a Conformer with a CTC head (stage 3 makes one) transcribes a data set.

Leaves OUT/text (Kaldi), OUT/hyp.trn and OUT/ref.trn (raw, for `score`), OUT/decode.json (settings, speed). Killed and started
again, it goes on where it was.
"""

from __future__ import annotations

from pathlib import Path

from steermoe.bin.cli import Parser, run
from steermoe.decode.hypotheses import OUTPUTS, Journal, open_journal, write_hypotheses
from steermoe.encoders.ctc import FILES
from steermoe.stamp import Stamp

BATCH_FRAMES, MAX_BATCH = 24000, 32


def main(argv=None) -> None:
    parser = Parser(prog="steermoe ctc", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a Conformer with a CTC head")
    parser.add_argument("--data", type=Path, required=True, help="data.jsonl of stage 2, with fbank features")
    parser.add_argument("--out", type=Path, required=True, help="folder for the hypotheses")
    parser.add_argument("--ngpu", type=int, default=0, help="GPUs: 0 or 1")
    args = parser.parse_args(argv)
    stamp = Stamp(args.out / ".done", {"ngpu": args.ngpu}, [args.data, *(args.model / name for name in FILES)])
    if stamp.fresh(args.out / name for name in OUTPUTS):
        print(f"{args.out}/hyp.trn: up to date")
        return
    decode(args, open_journal(args.out, stamp), stamp)


def decode(args, journal: Journal, stamp: Stamp) -> None:
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from steermoe.bin.decode import device
    from steermoe.data.dataset import AudioTextDataset
    from steermoe.data.sampler import sorted_batches
    from steermoe.encoders.ctc import ConformerCTC

    where, data = device(args.ngpu), AudioTextDataset(args.data)
    model = ConformerCTC.from_pretrained(args.model).to(where)

    def transcribe(indices: list[int]) -> dict[str, list[str]]:
        examples = [data[index] for index in indices]
        feats_bfm = pad_sequence([example.feats_fm for example in examples], batch_first=True)
        lens_b = torch.tensor([len(example.feats_fm) for example in examples])
        texts = model.transcribe(feats_bfm.to(where), lens_b.to(where))
        return {example.utt: [text, "end"] for example, text in zip(examples, texts)}

    journal.run("ctc", sorted_batches(data.lengths(), BATCH_FRAMES, MAX_BATCH), transcribe)
    write_hypotheses(args.out, data.entries, journal, {"model": str(args.model), "ngpu": args.ngpu}, stamp)


if __name__ == "__main__":
    run(main)
