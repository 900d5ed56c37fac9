#!/usr/bin/env bash
# Synthetic English of many voices for other recipes to mix in, spoken by Kokoro-82M, which sounds far more like people than
# flite does, at 1.3 times real time on one core. The texts are those that egs/flite fetches:
#
#   (cd ../flite && ./run.sh --stop-stage -1); pip install kokoro-onnx; ./run.sh --stop-stage 2
#
# then, in any recipe of the same features, --train-sets 'train:2 ../kokoro/dump/whisper_logmel80/train/data.jsonl'.
# Licence of model and voices: Apache-2.0. The default text, by Jane Austen, is in the public domain.
set -e
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=utils/pipeline.sh
. ../../utils/pipeline.sh

about="synthetic speech: Jane Austen (public domain), or your own text, Mandarin too, by voices of Kokoro-82M (Apache-2.0)"
downloaded=downloads/kokoro
option hours 0.75 "training speech to make"
option voices "" "English or Mandarin voices of Kokoro to draw from, as one word; default: all 28 English"
option text ../flite/downloads/flite/austen "plain text files, and folders of them, as one word"
option sentence_seed 7 "of the order of the sentences"

pipeline "$@"
