# shellcheck shell=bash disable=SC2154 # `option` sets the variables of the options
#
# The one driver of all recipes: options, stages, and what is missing made first. egs/<corpus>/run.sh does
#
#   . ../../utils/pipeline.sh     # defines the options below, with their defaults
#   test_sets="test other"        # sets what is the corpus's own
#   pipeline "$@"
#
# and has local/download.sh (or .py) DOWNLOADS and local/data_prep.py (or .sh) --corpus DIR --out data; both get the options that
# the recipe itself has added with `option NAME DEFAULT EXPLANATION`. A stage is a function below and mostly one
# `python -m steermoe.bin.<verb>`; each verb knows when its output is finished, and does nothing then.

set -eo pipefail # not -u: bash before 4.4 takes an empty array for an unset one
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

option_names=""
declare -gA option_help stage_done
overrides=()
child="" current="" # the process that runs, the stage that runs

option() { # NAME DEFAULT EXPLANATION
  printf -v "$1" %s "$2"
  option_names="$option_names $1"
  option_help[$1]=$3
}
cores=$(getconf _NPROCESSORS_ONLN 2> /dev/null || echo 2)
option stage -1 "first stage, by number or name"
option stop_stage "" "last stage; if it is not given 5, or the first stage if that is later"
option encoder whisper "takes conf/train_ENCODER.yaml, and names the experiment"
option train_config "" "configuration of model and training, instead of conf/train_ENCODER.yaml"
option preset "" "the paper's models and settings over conf/train_ENCODER.yaml: W7B, C3B or C7B"
option variant paper "of the preset: paper, or authors_code where their code parts from the paper"
option init "" "adapter to start training at, with its settings: pretrained, an experiment folder, a package or a file"
option decode_config "" "YAML file with keys of decode_conf, instead of those in the training configuration"
option tag "" "appended to the experiment's name; if it is not given, the settings overridden below are"
option encoder_model "" "frozen encoder: local folder, hub id or catalog name, instead of the configuration's"
option llm "" "frozen LLM: local folder, hub id or catalog name, instead of the configuration's"
option seed "" "random seed, instead of the configuration's"
option corpus "" "folder where you have the corpus; nothing is downloaded then"
option test_sets test "data sets to decode, as one word: 'test dev'"
option train_sets "" "train on several sets, a number is how often: 'train:2 ../librispeech/dump/FEATS/train/data.jsonl:0.5'"
option dev_sets "" "likewise for validation, without weights"
option own_score true "also decode and score with the frozen encoder's own decoder, where it has one"
option lang en "language of the speech, for the encoder's own decoder"
option nj "$((cores < 8 ? cores : 8))" "parallel jobs of stage 1"
option decode_nj 1 "parallel jobs of stage 5, each with a GPU if --ngpu is over 0"
option ngpu 0 "GPUs for training, a process on each; other jobs take one; 0: the CPU"
option num_processes "" "processes of the training, started by torchrun; if it is not given --ngpu, at least 1"
option cmd_backend local "where jobs run: local, or slurm (utils/cmd.sh)"
option backfill true "make missing inputs of a stage by running the earlier stages; false: an error names them"
option allow_pipes false "run the commands of wav.scp lines that end in |"
option dry_run false "print the parameters and the memory that the models and settings need, and stop; needs neither"
option verbose false "print every command before it runs"
driver_options=$option_names

about=""                    # one line for --help
train_set=train dev_set=dev
downloaded=downloads/corpus # the folder that local/download.sh leaves
scripts=local               # where download.* and data_prep.* are: another recipe's, for a corpus of the same form
check_download=false        # true: download.* knows `--check true`, which says at once, in one message, what cannot be reached

stage_names=(download data features text model train decode pack) # from stage -1
stage_titles=("Data Download" "Data Preparation" "Feature Generation" "Text Preparation" "Model Preparation" "Training"
  "Decoding and Scoring" "Packing")
stage_leaves=("downloads/" "data/SET/{wav.scp,text,…}" "dump/FEATURES/SET/feats.scp" "dump/FEATURES/SET/data.jsonl"
  "exp/NAME/model_info.txt" "exp/NAME/checkpoints" "exp/NAME/decode_SET_TAG/result.txt, RESULTS.md" "exp/NAME/package{,.zip}")

say() { printf '%s\n' "$*" >&2; }
die() { printf '%s: error: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# Runs a command so that a signal to this script reaches it at once.
run() {
  [ "$verbose" = false ] || say "+ $(printf '%q ' "$@")"
  (trap - INT && exec "$@") < /dev/null &
  child=$!
  local status=0
  wait "$child" || status=$?
  child=""
  return "$status"
}
# Here, or where --cmd-backend says: [OPTIONS] LOG COMMAND…
here() { run bash "$root/utils/run_local.sh" "$@"; }
submit() { run bash "$root/utils/cmd.sh" "$@"; }
stop() {
  trap "" INT TERM
  [ -z "$child" ] || { kill -TERM "$child" && wait "$child"; } 2> /dev/null || true
  exit "$1"
}

# shellcheck source=utils/corpus.sh
. "$root/utils/corpus.sh"
# shellcheck source=utils/settings.sh
. "$root/utils/settings.sh"
# shellcheck source=utils/summary.sh
. "$root/utils/summary.sh"

# need FILE STAGE: goes back to STAGE if FILE is missing.
need() {
  [ ! -e "$1" ] || return 0
  local name=${stage_names[$2 + 1]}
  if [ "$backfill" = false ]; then
    die "$1 is missing; make it with: ./run.sh --stage $name --stop-stage $name (and the other options), or with --backfill true"
  fi
  say "$1 is missing: running stage $2 ($name) first"
  run_stage "$2"
  [ -e "$1" ] || die "$1 is missing, and stage $2 ($name) has not made it"
}

run_stage() {
  [ -z "${stage_done[$1]}" ] || return 0
  local begun=$SECONDS before=$current
  current=$1
  say "=== stage $1: ${stage_titles[$1 + 1]} (${stage_names[$1 + 1]}), $(date '+%F %T')"
  "stage_${stage_names[$1 + 1]}"
  say "=== stage $1 finished after $((SECONDS - begun)) s"
  stage_done[$1]=true
  current=$before
}

stage_download() {
  if [ -n "$corpus" ]; then
    say "the corpus is in $corpus, nothing to download"
  else
    local_script download
    here downloads/log/download.log "${script[@]}" downloads "${own_options[@]}"
  fi
}

stage_data() {
  local name
  if [ -n "$corpus" ] || [ "$check_download" = false ] || [ "$backfill" = false ]; then
    need "$corpus_dir" -1
  else
    run_stage -1 # some of the parts may be there and others not
  fi
  local_script data_prep
  here data/.log/data_prep.log "${script[@]}" --corpus "$corpus_dir" --out data "${own_options[@]}"
  choose_sets
  for name in "${sets[@]}"; do
    [ -d "data/$name" ] || die "data/$name is missing; the data sets of this corpus are: $(cd data && echo */)"
    here data/.log/validate.log "$PYTHON" -m steermoe.bin.data_dir validate --no-feats "data/$name"
  done
}

stage_features() {
  local name dump_verb
  need "data/$train_set/wav.scp" 0
  for name in "${sets[@]}"; do
    need "data/$name/wav.scp" 0
    dump_verb=("$PYTHON" -m steermoe.bin.dump "${config[@]}" --data "data/$name" --out "$dump/$name" --nj "$nj"
      --allow-pipes "$allow_pipes")
    [ "$nj" -eq 1 ] || submit JOB="1:$nj" "$dump/$name/log/dump.JOB.log" "${dump_verb[@]}" --job JOB
    here "$dump/$name/log/merge.log" "${dump_verb[@]}" --job 0
  done
}

stage_text() {
  local name
  need "data/$train_set/text" 0
  for name in "${sets[@]}"; do
    need "data/$name/text" 0
    need "$dump/$name/feats.scp" 1
    here "$dump/$name/log/text.log" "$PYTHON" -m steermoe.bin.prepare_text "${config[@]}" --data "data/$name" \
      --feats "$dump/$name" --out "$dump/$name/data.jsonl"
  done
}

stage_model() {
  write_repeat
  if [ -n "$pretrain_config" ]; then
    need "$dump/$train_set/data.jsonl" 2
    need "$dump/$dev_set/data.jsonl" 2
    submit --gpu "$one_gpu" "$encoder_name/log/pretrain.log" "$PYTHON" -m steermoe.bin.pretrain --config "$pretrain_config" \
      --train "$dump/$train_set/data.jsonl" --dev "$dump/$dev_set/data.jsonl" --out "$encoder_name" --ngpu "$one_gpu"
  fi
  here "$exp/log/model.log" "$PYTHON" -m steermoe.bin.prepare_model "${config[@]}" --exp "$exp"
}

stage_train() {
  need "$dump/$train_set/data.jsonl" 2
  need "$dump/$dev_set/data.jsonl" 2
  need "$exp/model_info.txt" 3
  [ -z "$pretrain_config" ] || need "$encoder_name/config.json" 3
  local train_data=$dump/$train_set/data.jsonl dev_data=$dump/$dev_set/data.jsonl
  [ -z "$train_sets" ] || { train_data=$exp/train.jsonl && join_sets "$train_data" "$train_sets"; }
  [ -z "$dev_sets" ] || { dev_data=$exp/dev.jsonl && join_sets "$dev_data" "$dev_sets"; }
  local launch=("$PYTHON")
  [ "$num_processes" -eq 1 ] || launch+=(-m torch.distributed.run --standalone --nproc-per-node "$num_processes")
  submit --gpu "$ngpu" "$exp/log/train.log" "${launch[@]}" -m steermoe.bin.train "${config[@]}" \
    --train "$train_data" --dev "$dev_data" --exp "$exp" --ngpu "$one_gpu"
}

# A word is a set of this recipe, or a data.jsonl of any; a number behind a colon is its weight.
join_sets() { # OUT "WORD…"
  local word words=()
  for word in $2; do
    if [[ $word != */* ]]; then
      need "$dump/${word%%:*}/data.jsonl" 2
      word=$dump/${word%%:*}/data.jsonl${word#"${word%%:*}"}
    fi
    words+=("$word")
  done
  here "$exp/log/join.log" "$PYTHON" -m steermoe.bin.join_sets --out "$1" "${words[@]}"
}

stage_decode() {
  local name out decode_verb
  need "$exp/.train.done" 4 # written when training has ended; a best checkpoint is there long before
  for name in $test_sets; do
    need "$dump/$name/data.jsonl" 2
    [ -z "$pretrain_config" ] || need "$encoder_name/config.json" 3
    out=$exp/decode_${name}_$decode_tag
    decode_verb=("$PYTHON" -m steermoe.bin.decode --exp "$exp" --data "$dump/$name/data.jsonl" --out "$out" --ngpu "$one_gpu"
      "${decode_overrides[@]}")
    if [ "$decode_nj" -eq 1 ]; then
      submit --gpu "$one_gpu" "$out/log/decode.log" "${decode_verb[@]}"
    else
      submit --gpu "$one_gpu" JOB="1:$decode_nj" "$out/log/decode.JOB.log" "${decode_verb[@]}" --nj "$decode_nj" --job JOB
      here "$out/log/merge.log" "${decode_verb[@]}" --nj "$decode_nj" --job 0
    fi
    read_scoring "$out/decode.json"
    score "$out" "$dump/$name/data.jsonl"
    if [ -n "$own_exp" ]; then
      out=$own_exp/decode_$name
      submit --gpu "$one_gpu" "$out/log/decode.log" "$PYTHON" -m steermoe.bin."$own_verb" --model "$encoder_name" \
        --data "$dump/$name/data.jsonl" --out "$out" --ngpu "$one_gpu" "${own_verb_options[@]}"
      score "$out" "$dump/$name/data.jsonl"
    fi
  done
  here "$exp/log/results.log" "$PYTHON" -m steermoe.bin.results --exp "$exp" ${own_exp:+--own "$own_exp"} \
    ${about:+--about "$about"} --out "$exp/RESULTS.md"
}

stage_pack() {
  need "$exp/.train.done" 4
  here "$exp/log/pack.log" "$PYTHON" -m steermoe.bin.pack --exp "$exp"
}

score() {
  if [ "${scoring[1]}" = answer ]; then
    here "$1/log/score.log" "$PYTHON" -m steermoe.bin.score_answers --data "$2" --hyp "$1/hyp.trn" "${scoring[@]:2}" --out "$1"
    return
  fi
  here "$1/log/score.log" "$PYTHON" -m steermoe.bin.score --ref "$1/ref.trn" --hyp "$1/hyp.trn" "${scoring[@]}" \
    --markup false --out "$1" \
    --html true --data "$2"
}

# What is scored and how is part of the decoding configuration.
read_scoring() {
  scoring=()
  while IFS= read -r word; do scoring+=("$word"); done < <("$PYTHON" -c '
import json, sys
conf = json.load(open(sys.argv[1], encoding="utf-8"))["decode_conf"]
print("--unit", conf["unit"], "--normalizer", conf["normalizer"], sep="\n")' "$1")
  [ "${#scoring[@]}" -eq 4 ] || die "$1: no decode_conf in it; remove the file and run stage 5 again"
}

# exp/NAME/run.sh repeats the whole run with the options that made it.
write_repeat() {
  local version
  version=$(git rev-parse --short HEAD 2> /dev/null || echo unknown)
  mkdir -p "$exp"
  {
    printf '#!/usr/bin/env bash\n# Repeats this experiment; made from git %s.\n' "$version"
    # shellcheck disable=SC2016 # for the script that is written
    printf 'cd "$(dirname "${BASH_SOURCE[0]}")/../.." && exec bash ./%s %s"$@"\n' "${0##*/}" "${given:+$given }"
  } > "$exp/.run.sh.tmp"
  chmod +x "$exp/.run.sh.tmp"
  mv "$exp/.run.sh.tmp" "$exp/run.sh"
}

# Sets `number` from a stage's number or name.
stage_number() { # OPTION VALUE
  local index
  for index in "${!stage_names[@]}"; do
    number=$((index - 1))
    if [ "$2" = "$number" ] || [ "$2" = "${stage_names[index]}" ]; then return; fi
  done
  local near
  near=$(nearest "$2" "${stage_names[@]}")
  die "$1 $2: stages are -1 to 6, or ${stage_names[*]}${near:+ (did you mean $near?)}"
}

stage_table() {
  local index
  for index in "${!stage_names[@]}"; do
    printf '  %2d  %-9s %-21s %s\n' "$((index - 1))" "${stage_names[index]}" "${stage_titles[index]}" "${stage_leaves[index]}"
  done
}

pipeline() {
  local words=("$@") first_stage recipe_sets=$test_sets asked_sets
  help_message="usage: ./run.sh [options]${about:+      $about}

Options:"
  help_end="  --KEY.SUBKEY VALUE   any key of the configuration, such as --train-conf.max-steps 100 or --decode-conf.beam 4

Stages:
$(stage_table)"
  # shellcheck source=utils/parse_options.sh
  . "$root/utils/parse_options.sh"
  given=$(as_given "${words[@]}")
  asked_sets=$(printf '%s\n' "${words[@]}" | grep -m 1 '^--test[-_]sets$' || true)
  [ $# -eq 0 ] || die "unexpected word '$1'; options begin with two dashes, --help lists them all"
  stage_number --stage "$stage"
  first_stage=$number
  stage_number --stop-stage "${stop_stage:-$((first_stage > 5 ? first_stage : 5))}"
  [ "$first_stage" -le "$number" ] || die "--stage $stage comes after --stop-stage $stop_stage"
  last_stage=$number

  trap 'stop 130' INT
  trap 'stop 143' TERM HUP
  trap 'report $?' EXIT
  set_up
  for ((stage = first_stage; stage <= last_stage; stage++)); do
    run_stage "$stage"
  done
  summary
}

report() {
  case $1 in
    0) ;;
    130 | 143) say "${0##*/}: stopped; the same command goes on from here" ;;
    *) [ -z "$current" ] || say "${0##*/}: stage $current (${stage_names[current + 1]}) failed, see above" ;;
  esac
}
