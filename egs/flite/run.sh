#!/usr/bin/env bash
# Synthetic English, made of texts and voices of Debian's packages, for other recipes to mix in: ./run.sh --stop-stage 2, then
# --train-sets 'train:2 ../flite/dump/whisper_logmel80/train/data.jsonl'. Its test set has the voices of training.
# The default is 6,400 sentences; data/ takes 0.8 GB.
#
# Licences, as the packages state them: flite and its voices are free to use and change if their notices stay (BSD-like); the King
# James text has no copyright any more; the collection of fortunes is under the BSD licence, but what it quotes is by many
# authors. So give away neither texts nor speech: they can be made anew anywhere. The packages' own words are in downloads/flite.
#
# --text downloads/flite/austen speaks novels by Jane Austen instead, which are in the public domain (their package: MIT);
# --text downloads/flite/wordnet WordNet's example sentences (its licence lets use and copy freely), so few that each word comes
# about twice: 27,000 words.
set -e
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=utils/pipeline.sh
. ../../utils/pipeline.sh

about="synthetic English: fortunes (BSD) and King James verses (public domain), four voices of flite (BSD-like)"
downloaded=downloads/flite
option hours 6.485 "training speech to make"
option voices "slt awb rms kal16" "flite's voices, as one word, taken in turn"
option text "" "other plain text files, and folders of them, as one word"
option sentence_seed 1 "of the order of the sentences"

pipeline "$@"
