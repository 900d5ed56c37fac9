#!/usr/bin/env bash
# Mini LibriSpeech, 5 h of training speech (OpenSLR 31), with the scripts of the librispeech recipe: ./run.sh; ./run.sh --help
set -e
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=utils/pipeline.sh
. ../../utils/pipeline.sh

about="mini LibriSpeech, read English, 16 kHz: train-clean-5, dev-clean-2, and LibriSpeech's test-clean"
downloaded=downloads/LibriSpeech
scripts=../librispeech/local
check_download=true
test_sets="test-clean"
option parts train-clean-5 "parts to take; dev-clean-2 and test-clean come with them if no dev and no test part is named"
option mirror https://www.openslr.org/resources "where the archives are: OpenSLR or a mirror of it"

pipeline "$@"
