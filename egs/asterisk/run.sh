#!/usr/bin/env bash
# A trained SteerMoE adapter and an sclite-style report from nothing, on real human speech: ./run.sh; ./run.sh --help
set -e
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=utils/pipeline.sh
. ../../utils/pipeline.sh

about="Asterisk English prompts: 551 recordings of one voice, 24 min, 16 kHz (CC BY-SA 3.0)"
downloaded=downloads/asterisk-core-sounds-en
encoder=whisper
test_sets="test"
lang=en

pipeline "$@"
