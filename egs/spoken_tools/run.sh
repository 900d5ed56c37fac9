#!/usr/bin/env bash
# The paper's agentic check: spoken questions that need a function, asked as text, as a transcript and by voice. ./run.sh --help
set -eo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
root=../..

option_names=""
declare -gA option_help
option() { # NAME DEFAULT EXPLANATION
  printf -v "$1" %s "$2"
  option_names="$option_names $1"
  option_help[$1]=$3
}
option stage -1 "first stage"
option stop_stage 5 "last stage"
option model pretrained "trained adapter: the one that comes with the code, an experiment folder, package or adapter file"
option lists "tools_en questions_en" "lists of queries/, as one word: tools_en, tools_zh, questions_en or your own"
option lang en "language of the speech, for the encoder's own decoder"
option tts "" "another synthesiser than flite: a command with {text} and {wav} in it"
option voices "slt rms" "flite's voices, as one word: slt, rms, awb, kal16"
option conditions "" "how to ask, as one word of text, alone, transcript, voice; default: all that a list can be asked"
option talker "" "another LLM that is asked in the place of the adapter's: it gets what the adapter reads, as text"
option system "" "the system message; default: what the adapter was trained with, or the talker's own"
option whisper "" "Whisper that makes the transcripts, instead of the adapter's encoder"
option data "" "data directory of your own recordings of one list, with utterances VOICE-QUERY-TURN; nothing is synthesised then"
option constrained "" "true: keep calls inside the functions' schemas; required: and begin every turn with one (need llguidance)"
option tag "" "appended to the experiment's name"
option max_tokens 128 "of one answer"
option ngpu 0 "GPUs: 0 or 1"
option encoder_model "" "where the frozen encoder is; default: where training found it"
option llm_model "" "where the frozen LLM is; default: where training found it"
help_message="usage: ./run.sh [options]      spoken tool calls and questions, against the same as text

Options:"
help_end="
Stages:
  -1  download   flite and its voices                    downloads/flite
   0  data       the queries, spoken                     data/LIST/{wav.scp,text,…}
   5  ask        asked as text, transcript and by voice  exp/LIST_MODEL/{answers.jsonl,RESULTS.md}"
given=$(printf '%q ' "$@")
# shellcheck source=utils/parse_options.sh
. "$root/utils/parse_options.sh"
# shellcheck source=egs/spoken_tools/local/run_list.sh
. local/run_list.sh
# shellcheck disable=SC2154 # the options set these
{
  [ $# -eq 0 ] || option_error "unexpected word '$1'; options begin with two dashes, --help lists them all"
  python=$(bash "$root/tools/setup.sh")
  export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
  name=${model%/}
  name=${name##*/}
  [ -z "$talker" ] || name=${name}_talker_$(basename "$talker")
  [ -z "$constrained" ] || name=${name}_constrained_$constrained

  for list in $lists; do
    run_list "$list"
  done
}
