#!/usr/bin/env bash
# Your own speech: ./run.sh --corpus FOLDER|TABLE.csv|LINES.jsonl, from the adapter that comes with the code; ./run.sh --help
# A folder has recordings, each with its text in a .txt of the same name; egs/README.md says what tables look like.
set -e
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=utils/pipeline.sh
. ../../utils/pipeline.sh

about="your own recordings with texts: a folder, a .csv, .tsv or .jsonl table, or a Kaldi directory"
downloaded=downloads/none
init=pretrained
check_download=true # without --corpus it ends before anything is installed
test_sets="test"
option dev_share 0.1 "of the utterances for validation, by whole speakers, where the corpus names no sets"
option test_share 0.1 "likewise for the test set"
option split_seed 1 "of who goes where"

pipeline "$@"
