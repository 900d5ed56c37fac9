#!/usr/bin/env bash
# Questions about sounds on a fresh machine: ./run.sh; ./run.sh --esc10 DIR; ./run.sh --help
set -e
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=utils/pipeline.sh
. ../../utils/pipeline.sh

about="Questions about sound effects: Tux Paint's (GPL-2) and, where you have them, the clips of ESC-10 (CC BY, CC0)"
downloaded=downloads/tuxpaint-stamps
own_score=false # an encoder's own decoder answers no questions
option esc10 "" "folder of ESC-10, environmental sounds of 10 classes, whose clips are asked about too"

pipeline "$@"
