#!/usr/bin/env bash
# Clotho-AQA, questions about sounds: ./run.sh; ./run.sh --corpus DIR; ./run.sh --train-answers all; ./run.sh --help
set -e
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=utils/pipeline.sh
. ../../utils/pipeline.sh

about="Clotho-AQA (CC0, CC BY): 1991 sound clips of 15 to 30 s, six questions each, three annotators a question"
downloaded=downloads/clotho_aqa
check_download=true
own_score=false # an encoder's own decoder answers no questions
option train_answers majority "train on majority, what at least two annotators said, or on all, every annotator's answer"
option prompt "please answer the following question. The question is : {question}" "what the LLM is asked; {question}: its place"
option mirror https://zenodo.org "where the corpus is: Zenodo or a mirror of it"

pipeline "$@"
