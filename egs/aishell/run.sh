#!/usr/bin/env bash
# AISHELL-1, 178 h of read Mandarin that anyone can download (OpenSLR 33, 15 GB): ./run.sh; ./run.sh --corpus DIR; ./run.sh --help
set -e
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=utils/pipeline.sh
. ../../utils/pipeline.sh

about="AISHELL-1, read Mandarin, 16 kHz: train, dev, test; scored by character"
downloaded=downloads/data_aishell
check_download=true
test_sets="test"
lang=zh
option mirror https://www.openslr.org/resources "where the archive is: OpenSLR or a mirror of it"

pipeline "$@"
