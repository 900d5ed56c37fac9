"""Talks with a trained model: turns of text and audio, and functions that it may call.

Every TURN is what one would say: text, with @FILE wherever a recording goes ("what is said in @a.wav and @b.wav?"), or just an
audio file. Without any, turns are read from the keyboard, one a line; /new begins a new conversation, /quit or Ctrl-D ends.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from steermoe.bin.cli import Parser, run
from steermoe.bin.decode import add_model_options, device
from steermoe.errors import UserError
from steermoe.pretrained import NAME, adapter_path

AUDIO = re.compile(r'(?<!\S)@(?:"([^"]+)"|(\S+))')
SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".g722", ".aiff", ".au", ".sph")


def main(argv=None) -> None:
    args = make_parser().parse_args(argv)
    turns = [parse_turn(turn) for turn in args.turns]
    for part in (part for turn in turns for part in turn):
        if isinstance(part, Path) and not part.is_file():  # before the models are loaded
            raise UserError(f"{part}: no such audio file")
    conversation = make_conversation(args)
    for turn in turns:
        show(conversation.say(*turn))
    if not turns:
        talk(conversation, sys.stdin)


def make_parser() -> Parser:
    parser = Parser(prog="steermoe chat", description=__doc__)
    parser.add_argument("--model", type=adapter_path, default=NAME, help="experiment folder, package or adapter file")
    parser.add_argument("turns", nargs="*", metavar="TURN", help="text with @FILE for recordings in it, or an audio file")
    parser.add_argument("--tools", type=Path, help="Python file; the LLM may call its functions (it is run: read it first)")
    parser.add_argument("--system", help="the system message; default: what the adapter was trained with")
    constrained = "true: keep calls inside the functions' schemas; required: and begin every turn with one (need llguidance)"
    parser.add_argument("--constrained", choices=("false", "true", "required"), default="false", help=constrained)
    talker = "another LLM to talk with (folder, hub id or catalog name): it gets what the adapter reads, as text"
    parser.add_argument("--talker", help=talker)
    parser.add_argument("--max-tokens", type=int, default=512, help="of one answer")
    parser.add_argument("--max-rounds", type=int, default=5, help="how often it may call before it has to answer")
    parser.add_argument("--tool-seconds", type=float, default=10.0, help="time limit of one call")
    add_model_options(parser)
    return parser


def parse_turn(text: str) -> list[str | Path]:
    """"what is in @a.wav ?" -> ["what is in", Path("a.wav"), "?"]; a text that is an audio file's name is that file."""
    if Path(text).suffix.lower() in SUFFIXES and not AUDIO.search(text) and (len(text.split()) == 1 or Path(text).is_file()):
        return [Path(text)]
    parts: list[str | Path] = []
    end = 0
    for found in AUDIO.finditer(text):
        parts += [text[end : found.start()].strip(), Path(found[1] or found[2])]
        end = found.end()
    return [part for part in [*parts, text[end:].strip()] if part]


def make_conversation(args):
    from steermoe.chat import Conversation
    from steermoe.checkpoint import load_model

    if args.max_tokens < 1 or args.max_rounds < 0:
        raise UserError(f"--max-tokens {args.max_tokens} --max-rounds {args.max_rounds}: at least 1, and at least 0")
    model, config = load_model(args.model, device(args.ngpu), args.encoder_model, args.llm_model, args.dtype)
    return Conversation(
        model,
        args.tools or (),
        system=args.system,
        max_tokens=args.max_tokens,
        max_rounds=args.max_rounds,
        tool_seconds=args.tool_seconds,
        constrained=args.constrained,
        decode_conf=config.decode_conf,
        talker=load_talker(args.talker, device(args.ngpu), args.dtype),
    )


def load_talker(name: str | None, where: str, dtype: str | None):
    """Another LLM on the device `where`, or None."""
    from steermoe.llms.causal import CausalLM

    return CausalLM.from_pretrained(model=name, dtype=dtype or "auto").to(where).pack() if name else None


def show(reply) -> None:
    """The answer on standard output; calls, and why it did not end by itself, on standard error."""
    for call in reply.calls:
        print(f"  call: {call}", file=sys.stderr, flush=True)
    print(reply.text, flush=True)
    if reply.ended != "end":
        print(f"  (ended: {reply.ended})", file=sys.stderr, flush=True)


def talk(conversation, lines) -> None:
    """Turn by turn; what goes wrong in one is said, and the conversation goes on."""
    prompt = "> " if sys.stdin.isatty() else ""
    print(prompt, end="", file=sys.stderr, flush=True)
    for line in lines:
        line = line.strip()
        if line == "/quit":
            break
        try:
            if line == "/new":
                conversation.clear()
            elif line:
                show(conversation.say(*parse_turn(line)))
        except UserError as error:
            print(f"  error: {error}", file=sys.stderr, flush=True)
        except KeyboardInterrupt:  # ends an answer that takes too long
            print("  (stopped)", file=sys.stderr, flush=True)
        print(prompt, end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run(main)
