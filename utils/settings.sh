# shellcheck shell=bash disable=SC2154,SC2034 # the variables are those of pipeline.sh
# The part of utils/pipeline.sh that knows what the options mean: names of folders, words for the verbs, models; sourced by it.

# `--train-conf.max-steps 100 --decode-conf.beam 4` to max_steps100 and beam4, for folder names.
as_tag() {
  local tag=""
  while [ $# -gt 0 ]; do
    local key=${1##*.} value=${2%/}
    [ "$key" != model ] || key=""
    tag=${tag}_${key//-/_}${value##*/}
    shift 2
  done
  printf '%s' "${tag//[^A-Za-z0-9_.+-]/}"
}

# Splits the overrides: decode_conf's are for decoding; all others are for every verb that reads the training configuration.
sort_overrides() {
  local index words word
  config_overrides=() decode_overrides=()
  [ -z "$encoder_model" ] || config_overrides+=(--encoder-conf.model "$encoder_model")
  [ -z "$llm" ] || config_overrides+=(--llm-conf.model "$llm")
  [ -z "$seed" ] || config_overrides+=(--train-conf.seed "$seed")
  if [ -n "$decode_config" ]; then
    words=$("$PYTHON" -c '
import sys, yaml
for key, value in (yaml.safe_load(open(sys.argv[1], encoding="utf-8")) or {}).items():
    print(f"--decode-conf.{key}", value, sep="\n")' "$decode_config") ||
      die "--decode-config $decode_config: not a YAML file of keys of decode_conf"
    [ -z "$words" ] || while IFS= read -r word; do decode_overrides+=("$word"); done <<< "$words"
  fi
  decode_tag=${decode_config##*/}
  decode_tag=${decode_tag%.y*ml}
  for ((index = 0; index < ${#overrides[@]}; index += 2)); do
    case ${overrides[index]} in
      --decode[-_]conf.*)
        decode_overrides+=("${overrides[@]:index:2}")
        decode_tag=$decode_tag$(as_tag "${overrides[@]:index:2}")
        ;;
      *) config_overrides+=("${overrides[@]:index:2}") ;;
    esac
  done
  decode_tag=${decode_tag#_}
  decode_tag=${decode_tag:-default}
}

# Models and settings first: where one cannot be had or another is wrong, that is known before any work is done.
find_models() {
  local name models own_role
  models=$("$PYTHON" -m steermoe.bin.fetch "${config[@]}")
  name=$("$PYTHON" -m steermoe.bin.dump "${config[@]}" "${decode_overrides[@]}" --print-name)
  dump=dump/$name
  encoder_name=${models%%$'\t'*}
  own_role=$(awk '/^encoder:/ { print $2; exit }' ${preset:+"$root/steermoe/presets/$preset.yaml"} "$train_config")
  pretrain_config="" own_verb="" own_exp=""
  if [[ $encoder_name == exp/* ]]; then # made in stage 3
    pretrain_config=conf/pretrain_${own_role:-whisper}.yaml
    [ -f "$pretrain_config" ] ||
      die "$encoder_name: a model under exp/ is made by stage 3 from $pretrain_config, which is missing"
    name=$(awk '/^teacher:/ { gsub(/["\047]/, "", $2); print $2; exit }' "$pretrain_config")
    [ -z "$name" ] || "$PYTHON" -m steermoe.bin.fetch "$name" > /dev/null
    own_verb=ctc own_verb_options=()
  elif [ "${own_role:-whisper}" = whisper ]; then
    own_verb=whisper own_verb_options=(--language "$lang" --allow-pipes "$allow_pipes")
  fi
  [ "$own_score" = false ] || [ -z "$own_verb" ] || own_exp=exp/own_$(basename "$encoder_name")
  if [ -n "$own_exp" ] && [ "$own_verb" = whisper ]; then
    models=${models%%$'\n'*}
    # OpenAI's files come without the tokens that their decoder writes.
    ! compgen -G "${models#*$'\t'}/*.pt" > /dev/null || "$PYTHON" -m steermoe.bin.fetch whisper-vocabulary > /dev/null
  fi
}

# What the options mean for folders and verbs.
set_up() {
  local name
  [[ $nj =~ ^[1-9][0-9]*$ ]] || die "--nj $nj: a whole number from 1 up"
  [[ $decode_nj =~ ^[1-9][0-9]*$ ]] || die "--decode-nj $decode_nj: a whole number from 1 up"
  [[ $ngpu =~ ^[0-9]+$ ]] || die "--ngpu $ngpu: a whole number; 0 is the CPU"
  one_gpu=$((ngpu > 0)) num_processes=${num_processes:-$((ngpu > 1 ? ngpu : 1))}
  [[ $num_processes =~ ^[1-9][0-9]*$ ]] || die "--num-processes $num_processes: a whole number from 1 up"
  [ -f "$root/utils/run_$cmd_backend.sh" ] || die "--cmd-backend $cmd_backend: local or slurm"
  [ -z "$corpus" ] || [ -e "$corpus" ] || die "--corpus $corpus: no such folder or file"
  [ -z "$decode_config" ] || [ -f "$decode_config" ] || die "--decode-config $decode_config: no such file"
  if [ -z "$train_config" ]; then
    train_config=conf/train_$encoder.yaml
    [ -f "$train_config" ] || die "--encoder $encoder: there is no $train_config, only $(echo conf/train_*.yaml)"
  fi
  [ -f "$train_config" ] || die "--train-config $train_config: no such file"

  corpus_dir=${corpus:-$downloaded}
  own_options=()
  for name in ${option_names#"$driver_options"}; do own_options+=("--${name//_/-}" "${!name}"); done
  [ "$dry_run" = true ] || check_corpus

  PYTHON=$(bash "$root/tools/setup.sh")
  export PYTHON PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PIPELINE_PID=$$ CMD_BACKEND=$cmd_backend
  sort_overrides
  config=(--config "$train_config")
  [ -z "$preset" ] && [ "$variant" = paper ] || config+=(--preset "$preset" --variant "$variant")
  [ -z "$init" ] || config+=(--init "$init")
  config+=("${config_overrides[@]}")
  name=$(basename "${train_config%.*}")
  exp=exp/${preset:-${name#train_}}
  [ "$variant" = paper ] || exp=${exp}_$variant
  [ -z "$init" ] || exp=${exp}_init$(as_tag model "$init")
  if [ -n "$tag" ]; then exp=${exp}_$tag; else exp=$exp$(as_tag "${config_overrides[@]}"); fi
  choose_sets

  if [ "$dry_run" = true ]; then
    run "$PYTHON" -m steermoe.bin.prepare_model "${config[@]}" "${decode_overrides[@]}" --dry-run true
    exit
  fi
  [ "$last_stage" -ge 1 ] || return 0

  find_models
}

# The options as they were given, without those that say which stages run: for exp/NAME/run.sh.
as_given() {
  while [ $# -gt 0 ]; do
    [[ ${1//_/-} =~ ^--(stage|stop-stage|backfill|verbose)$ ]] || printf '%q %q ' "$1" "$2"
    shift
    shift || true
  done
}
