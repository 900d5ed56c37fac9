#!/usr/bin/env bash
# LibriSpeech, 460 h as in the paper, or any parts of it: ./run.sh --parts 960h; ./run.sh --corpus DIR; ./run.sh --help
set -e
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=utils/pipeline.sh
. ../../utils/pipeline.sh

about="LibriSpeech (CC BY 4.0), read English, 16 kHz: all train parts together, dev, test-clean and test-other"
downloaded=downloads/LibriSpeech
check_download=true
test_sets="test-clean test-other"
option parts "" "parts to take: 'train-clean-100 train-clean-360', 460h, 960h; if it is not given, what --corpus has, else 460h"
option mirror https://www.openslr.org/resources "where the archives are: OpenSLR or a mirror of it"

pipeline "$@"
