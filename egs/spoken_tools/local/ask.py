#!/usr/bin/env python3
"""Asks every query as text, as the encoder's own transcript, and by voice; one line a conversation in OUT/answers.jsonl.

Killed and started again, it goes on where it was. Conditions: text (the ceiling); alone (the same text to the LLM without any
adapter, through transformers: are the answers the same?); transcript (what Whisper's own decoder hears, as text); voice. With a
talker, another LLM than the adapter's, what is asked by voice reaches it as the text that the adapter reads, kept as `heard`.
A transcript that is the text word for word is not asked again: its answers are those of the text.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Sequence

sys.path.insert(0, str(Path(__file__).parent))
from queries import read_queries, utterances  # noqa: E402

from steermoe.bin.chat import load_talker  # noqa: E402
from steermoe.bin.cli import Parser, run  # noqa: E402
from steermoe.bin.decode import add_model_options, device  # noqa: E402
from steermoe.checkpoint import decode_conf_of, read_metadata  # noqa: E402
from steermoe.data.kaldi_files import read_map  # noqa: E402
from steermoe.errors import UserError  # noqa: E402
from steermoe.files import append_jsonl, read_json, resume_jsonl, write_json  # noqa: E402
from steermoe.pretrained import NAME, adapter_path, find_adapter  # noqa: E402
from steermoe.progress import Progress  # noqa: E402
from steermoe.stamp import Stamp  # noqa: E402

CONDITIONS = ("text", "alone", "transcript", "voice")


def main(argv=None) -> None:
    args = make_parser().parse_args(argv)
    conditions = args.conditions.split()
    if unknown := [name for name in conditions if name not in CONDITIONS]:
        raise UserError(f"--conditions {unknown[0]}: known are {', '.join(CONDITIONS)}")
    if args.tools and "alone" in conditions:
        raise UserError("--conditions alone: the LLM alone has no tool loop; leave --tools or this condition away")
    queries, speech = read_queries(args.queries), read_speech(args.data, read_queries(args.queries))
    names = ("constrained", "max_tokens", "language", "dtype", "llm_model", "encoder_model", "talker", "whisper", "system")
    settings = {name: getattr(args, name) for name in names}
    adapter = find_adapter(args.model)
    settings["decode_conf"] = vars(decode_conf_of(adapter, read_metadata(adapter)[0]))
    inputs = [args.queries, adapter, args.data / "wav.scp", *([args.tools] if args.tools else [])]
    stamp = Stamp(args.out / ".asked", settings, inputs)
    if not stamp.fresh():
        (args.out / "answers.jsonl").unlink(missing_ok=True)
        (args.out / "transcripts.json").unlink(missing_ok=True)
        stamp.write()
    answered = list(resume_jsonl(args.out / "answers.jsonl"))
    done = {(a["condition"], a["voice"], a["id"]) for a in answered}
    tasks = [
        (condition, voice, query)
        for query in queries  # in all conditions before the next: what is there when it is stopped can be compared
        for condition in conditions
        for voice in (speech if condition in ("transcript", "voice") else [""])
        if (condition, voice, query["id"]) not in done
    ]
    if tasks:
        ask_all(args, tasks, speech, answered)


def make_parser() -> Parser:
    parser = Parser(prog="local/ask.py", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=adapter_path, default=NAME, help="experiment folder, package or adapter file")
    parser.add_argument("--queries", type=Path, required=True, help="list of conversations")
    parser.add_argument("--data", type=Path, required=True, help="data directory with utterances VOICE-QUERY-TURN")
    parser.add_argument("--out", type=Path, required=True, help="folder for the answers")
    parser.add_argument("--conditions", default="text transcript voice", help=f"as one word, of {' '.join(CONDITIONS)}")
    parser.add_argument("--tools", type=Path, help="Python file of the functions that may be called; none: plain questions")
    constrained = "true: keep calls inside the functions' schemas; required: and begin every turn with one (need llguidance)"
    parser.add_argument("--constrained", choices=("false", "true", "required"), default="false", help=constrained)
    parser.add_argument("--talker", help="another LLM to ask (folder, hub id, catalog name): it gets what the adapter reads")
    parser.add_argument("--system", help="the system message; default: what the adapter was trained with")
    parser.add_argument("--whisper", help="Whisper that makes the transcripts; default: the adapter's encoder")
    parser.add_argument("--max-tokens", type=int, default=128, help="of one answer")
    parser.add_argument("--language", default="en", help="of the speech, for the encoder's own decoder")
    add_model_options(parser)
    return parser


def read_speech(data: Path, queries: list[dict]) -> dict[str, dict[str, str]]:
    """{voice: {"q01-1": audio file}}, of these queries. UserError names the turn that a voice has not recorded."""
    wanted = utterances(queries)
    speech: dict[str, dict[str, str]] = {}
    for utt, wav in read_map(data / "wav.scp").items():
        voice, _, key = utt.rpartition("-")[0].rpartition("-")
        key = f"{key}-{utt.rpartition('-')[2]}"
        if key in wanted:
            speech.setdefault(voice, {})[key] = wav
    for voice, recordings in (speech or {"VOICE": {}}).items():
        if missing := [key for key in wanted if key not in recordings]:
            raise UserError(f"{data}/wav.scp: no utterance {voice}-{missing[0]}; record it, or take the voice out")
    return speech


def ask_all(args, tasks: list[tuple], speech: dict, answered: list[dict]) -> None:
    from steermoe.chat import Conversation
    from steermoe.checkpoint import load_model

    transcripts = {}
    if any(condition == "transcript" for condition, _, _ in tasks):
        transcripts = own_transcripts(args, speech)
    model, config = load_model(args.model, device(args.ngpu), args.encoder_model, args.llm_model, args.dtype)
    talker = load_talker(args.talker, device(args.ngpu), args.dtype)
    options = {"max_tokens": args.max_tokens, "constrained": args.constrained, "decode_conf": config.decode_conf}
    conversation = Conversation(model, args.tools or (), system=args.system, talker=talker, **options)
    known = {tuple(turn["said"] for turn in a["turns"]): a["turns"] for a in answered if a["condition"] == "text"}
    total, path = len(tasks) + len(answered), args.out / "answers.jsonl"
    with Progress("ask", total, "conversations", len(answered)) as progress, open(path, "a", encoding="utf-8") as stream:
        for condition, voice, query in tasks:
            keys = [f"{query['id']}-{number}" for number in range(1, len(query["turns"]) + 1)]
            texts = transcripts[voice] if condition == "transcript" else utterances([query])
            says = tuple(texts[key] for key in keys)
            if condition == "alone":
                turns = alone(conversation, says)
            elif condition == "transcript" and says in known:
                turns = known[says]
            else:
                turns = ask(conversation, says, [Path(speech[voice][key]) for key in keys] if condition == "voice" else says)
            if condition == "text":
                known[says] = turns
            asked = {"condition": condition, "voice": voice, "id": query["id"], "kind": query["kind"]}
            append_jsonl(stream, asked | {"turns": turns})
            progress.update()


def ask(conversation, says: Sequence[str], parts: Sequence[str | Path]) -> list[dict]:
    """One conversation. says: what is said in each turn, parts: how it is put, as text or audio."""
    conversation.clear()
    turns = []
    for said, part in zip(says, parts):
        asked_at = len(conversation.messages)
        reply = conversation.say(part)
        heard = {"heard": conversation.messages[asked_at]["content"]} if conversation.reads and isinstance(part, Path) else {}
        calls = [vars(call) for call in reply.calls]
        turns.append({"said": said, **heard, "answer": reply.text, "calls": calls, "ended": reply.ended})
    return turns


def alone(conversation, says: Sequence[str]) -> list[dict]:
    """What transformers' own generation answers with the conversation's LLM; nothing of ours but the guard against loops."""
    import torch

    from steermoe.chat.conversation import MAX_REPEATS
    from steermoe.decode.repeats import loop_start

    llm = conversation.llm
    system = conversation.template.system
    messages = [{"role": "system", "content": system}] if system is not None else []
    settings = dict(max_new_tokens=conversation.max_tokens, do_sample=False, repetition_penalty=1.0)
    settings |= dict(eos_token_id=sorted(conversation.stop), pad_token_id=min(conversation.stop))
    turns = []
    for said in says:
        messages.append({"role": "user", "content": said})
        ids = llm.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        ids = ids.to(llm.llm.device)
        with torch.inference_mode():
            output = llm.llm.generate(**ids, **settings)
        tokens = output[0, ids["input_ids"].shape[1] :].tolist()
        cuts = (loop_start(tokens[:size], MAX_REPEATS) for size in range(len(tokens) + 1))
        answer = llm.decode(tokens[: next((cut for cut in cuts if cut is not None), None)]).strip()
        messages.append({"role": "assistant", "content": answer})
        turns.append({"said": said, "answer": answer, "calls": [], "ended": ""})
    return turns


def own_transcripts(args, speech: dict) -> dict[str, dict[str, str]]:
    """What the frozen encoder's own decoder hears in every recording; kept in OUT/transcripts.json."""
    from steermoe.data.audio import load_audio
    from steermoe.encoders.whisper_decoder import WhisperDecoder
    from steermoe.fetch import find_model

    path = args.out / "transcripts.json"
    if path.is_file():
        return read_json(path)
    config = read_metadata(find_adapter(args.model))[0]
    if config.encoder != "whisper" and not args.whisper:
        own = f"the encoder {config.encoder} has no decoder of its own"
        raise UserError(f"--conditions transcript: {own}; give --whisper, or leave this condition away")
    whisper = args.whisper or args.encoder_model or config.encoder_conf["model"]
    decoder = WhisperDecoder(find_model(whisper, kind="encoder"), args.language)
    texts: dict[str, dict[str, str]] = {}
    with Progress("transcripts", sum(map(len, speech.values())), "utt") as progress:
        for voice, recordings in speech.items():
            for key, wav in recordings.items():
                texts.setdefault(voice, {})[key] = decoder.transcribe([load_audio(wav)])[0].text
                progress.update()
    write_json(path, texts)
    return texts


if __name__ == "__main__":
    run(main)
