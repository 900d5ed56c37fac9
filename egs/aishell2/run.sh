#!/usr/bin/env bash
# AISHELL-2, 1000 h of read Mandarin, which its publisher gives on application: ./run.sh --corpus DIR; ./run.sh --help
set -e
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=utils/pipeline.sh
. ../../utils/pipeline.sh

about="AISHELL-2, read Mandarin, 16 kHz, the iOS recordings: train, dev, test; scored by character"
downloaded=downloads/AISHELL-2
check_download=true
test_sets="test"
lang=zh
option channel iOS "recordings to take where the corpus has several: iOS, Android or Mic"

pipeline "$@"
