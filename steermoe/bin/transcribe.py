"""Transcribes audio files: one line `FILE<TAB>text` each."""

from __future__ import annotations

from steermoe.bin.cli import Parser, run, split_overrides
from steermoe.bin.decode import add_model_options, decode_conf, device
from steermoe.errors import UserError
from steermoe.pretrained import NAME, adapter_path


def main(argv=None) -> None:
    parser = Parser(prog="steermoe transcribe", description=__doc__)
    parser.add_argument("--model", type=adapter_path, default=NAME, help="experiment folder, package or adapter file")
    parser.add_argument("files", nargs="+", metavar="FILE", help="any format, sampling rate and channels that soundfile reads; at most 30 s")
    parser.add_argument("--prompt", help="what the LLM is asked; default: what the adapter was trained with")
    add_model_options(parser)
    parser.epilog = "Keys of decode_conf can be overridden: --decode-conf.beam 4"
    words, overrides = split_overrides(argv)
    args = parser.parse_args(words)
    import torch

    from steermoe.checkpoint import find_adapter, load_model, read_metadata
    from steermoe.data.audio import load_audio
    from steermoe.data.collator import Collator
    from steermoe.data.dataset import Example
    from steermoe.data.features import SAMPLE_RATE
    from steermoe.data.sampler import sorted_batches
    from steermoe.decode.decoder import decode_batch
    from steermoe.registry import resolve

    # Bad files are named before the models are loaded.
    waves = [torch.from_numpy(load_audio(name)) for name in args.files]
    trained = read_metadata(find_adapter(args.model))[0]
    conf, longest = decode_conf(trained, args.model, overrides), trained.data_conf.max_seconds
    for name, wave in zip(args.files, waves):
        if len(wave) > longest * SAMPLE_RATE:
            seconds = len(wave) / SAMPLE_RATE
            raise UserError(f"{name}: {seconds:.1f} s long; this adapter reads at most {longest:g} s at a time: cut the file at pauses")
    model, config = load_model(args.model, device(args.ngpu), args.encoder_model, args.llm_model, args.dtype)
    frontend = resolve("encoder", config.encoder).frontend(config.encoder_conf["model"])
    examples = [Example(name, frontend(wave), "", None) for name, wave in zip(args.files, waves)]
    collator = Collator(model.llm, args.prompt or config.data_conf.prompt, answers=False)
    costs = [max(len(example.feats_fm), model.encoder.min_frames) for example in examples]
    texts: dict[int, str] = {}
    printed = 0
    for indices in sorted_batches(costs, conf.batch_frames, conf.max_batch):
        batch = collator([examples[i] for i in indices]).to(device(args.ngpu))
        seconds = [len(waves[i]) / SAMPLE_RATE for i in indices]
        for index, hypothesis in zip(indices, decode_batch(model, batch, seconds, conf)):
            texts[index] = " ".join(model.llm.decode(hypothesis.tokens).split())
        while printed in texts:  # in the order of the command line, as soon as they are there
            print(f"{args.files[printed]}\t{texts[printed]}", flush=True)
            printed += 1


if __name__ == "__main__":
    run(main)
