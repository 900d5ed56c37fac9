"""Serves a trained model: OpenAI's /v1/audio/transcriptions and /v1/chat/completions, and a page to talk to it.

Bound to this machine alone unless --host says otherwise; then give --api-key-file, and --certfile for microphones elsewhere.
"""

from __future__ import annotations

import gc
import importlib.util
import sys
from pathlib import Path

from steermoe.bin.chat import load_talker
from steermoe.bin.cli import Parser, run, split_overrides
from steermoe.bin.decode import add_model_options, decode_conf, device
from steermoe.errors import UserError
from steermoe.pretrained import NAME, adapter_path, find_adapter

PACKAGES = ("starlette", "uvicorn", "websockets", "python-multipart", "prometheus-client")


def main(argv=None) -> None:
    parser = Parser(prog="steermoe serve", description=__doc__)
    parser.add_argument("--model", type=adapter_path, default=NAME, help="experiment folder, package or adapter file")
    parser.add_argument("--name", default="steermoe", help="what the model is called in answers")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 is all of this machine's")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument("--allowed-host", action="append", default=[], help="one more name of this server (repeatable)")
    parser.add_argument("--api-key-file", type=Path, help="keys, one a line; a request needs one: Authorization: Bearer KEY")
    parser.add_argument("--certfile", type=Path, help="TLS certificate (PEM): elsewhere, pages get microphones by HTTPS alone")
    parser.add_argument("--keyfile", type=Path, help="its private key")
    parser.add_argument("--max-upload", type=float, default=25.0, help="MiB of a request")
    parser.add_argument("--max-audio", type=float, default=600.0, help="seconds of a recording or of a live session")
    parser.add_argument("--max-waiting", type=float, default=3600.0, help="seconds of audio that may wait; more is refused")
    parser.add_argument("--max-requests", type=int, default=64, help="at work at once; more are refused")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds that a request may take")
    parser.add_argument("--talker", help="another LLM for chats (folder, hub id, catalog name): it gets what is read, as text")
    add_model_options(parser)
    parser.epilog = "Keys of decode_conf can be overridden: --decode-conf.max-batch 8"
    words, overrides = split_overrides(argv)
    args = parser.parse_args(words)
    check(args)
    serve(args, overrides)


def check(args) -> None:
    """What can be wrong is known before the model is loaded."""
    missing = [package for package in PACKAGES if importlib.util.find_spec(package.replace("-", "_")) is None]
    if missing:
        raise UserError(f"serving needs {', '.join(missing)}: pip install 'steermoe[serve]', or pip install {' '.join(missing)}")
    for name in ("max_upload", "max_audio", "max_waiting", "max_requests", "timeout"):
        if not getattr(args, name) > 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name):g}: must be above 0")
    if not 0 <= args.port < 65536:
        raise UserError(f"--port {args.port}: 0 to 65535")
    args.keys = read_keys(args.api_key_file) if args.api_key_file else []
    for file in filter(None, (args.certfile, args.keyfile)):
        if not file.is_file():
            raise UserError(f"{file}: no such file")


def read_keys(path: Path) -> list[str]:
    from steermoe.files import read_lines

    keys = [line.strip() for _, line in read_lines(path) if line.strip()]
    if not keys:
        raise UserError(f"{path}: has no key in it; write one on each line")
    return keys


def serve(args, overrides: list[str]) -> None:
    import uvicorn

    from steermoe.api import SteerMoE
    from steermoe.checkpoint import read_metadata
    from steermoe.serve.app import Server
    from steermoe.serve.limits import LOOPBACK, Limits

    conf = decode_conf(read_metadata(find_adapter(args.model))[0], args.model, overrides)
    where = {"encoder_model": args.encoder_model, "llm_model": args.llm_model}
    model = SteerMoE.from_pretrained(args.model, device=device(args.ngpu), dtype=args.dtype, **where)
    model.decode_conf = conf
    talker = load_talker(args.talker, device(args.ngpu), args.dtype)
    gc.collect()
    gc.freeze()  # what torch and the models are made of stays: the collector looks at requests' leavings alone, so it looks often
    here = args.host in LOOPBACK
    if not (here or args.keys):
        print(f"steermoe serve: whoever reaches {args.host} can use this server; --api-key-file asks for keys", file=sys.stderr)
    limits = Limits(round(args.max_upload * 2**20), args.max_audio, args.max_waiting, args.max_requests, args.timeout)
    hosts = [*LOOPBACK, *args.allowed_host] if here else args.allowed_host
    server = Server(model, limits, name=args.name, hosts=hosts, keys=args.keys, talker=talker)
    settings = {"ssl_certfile": args.certfile, "ssl_keyfile": args.keyfile} if args.certfile else {}
    uvicorn.run(
        server.app, host=args.host, port=args.port, access_log=False, server_header=False, proxy_headers=False, ws_max_size=2**20,
        timeout_keep_alive=75, timeout_graceful_shutdown=10, limit_concurrency=args.max_requests + 256, **settings,
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
