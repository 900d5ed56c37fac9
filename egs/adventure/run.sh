#!/usr/bin/env bash
# English by dozens of actors for other recipes to mix in: the speech of two adventure games of Debian's packages, with the games'
# own texts. ./run.sh --stop-stage 2, then in any recipe of the same features
# --train-sets 'train:2 ../adventure/dump/whisper_logmel80/train/data.jsonl'. Its dev and test have the voices of training.
#
# Recordings are of 11,025 Hz: nothing above 5.5 kHz. Licences, as the packages state them: both games may be used, changed and
# given away for free, with their notice, and changed ones marked as such; no fee may be taken for the game itself. So give away
# neither recordings nor texts without downloads/adventure/LICENCE.*: they can be made anew anywhere.
set -e
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=utils/pipeline.sh
. ../../utils/pipeline.sh

about="actors in two adventure games: Flight of the Amazon Queen, Beneath a Steel Sky (freeware with notice)"
downloaded=downloads/adventure

pipeline "$@"
