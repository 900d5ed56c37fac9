#!/usr/bin/env bash
# Stands for python in the tests of utils/pipeline.sh: notes every `-m steermoe.bin.VERB …` in $FAKE/calls and leaves the files
# that the verb would leave. $FAKE_FAIL names a verb that fails, $FAKE_HANG one that does not end. Else: the real python.
set -e
if [ "$1" != -m ]; then
  exec "$REAL_PYTHON" "$@"
fi
if [ "$2" = torch.distributed.run ]; then # one process stands for all
  printf '%s\n' "torchrun ${*:3:3}" >> "$FAKE/calls"
  shift 5
fi
verb=${2#steermoe.bin.}
shift 2
printf '%s\n' "$verb $*" >> "$FAKE/calls"
if [ "$verb" = data_dir ]; then
  [ -f "${!#}/text" ]
  exit
fi
declare -A at
while [ $# -gt 0 ]; do
  case $1 in
    --print-name) at[print]=1; shift ;;
    --*) at[${1#--}]=$2; shift 2 ;;
    *) shift ;;
  esac
done
if [ "$verb" = "$FAKE_FAIL" ] && [ -z "${at[print]}" ]; then
  echo "steermoe $verb: error: bad luck" >&2
  exit 7
fi
if [ "$verb" = "$FAKE_HANG" ] && [ -z "${at[print]}" ]; then
  echo $$ >> "$FAKE/hanging"
  exec sleep 60
fi
out=${at[out]}
case $verb in
  fetch)
    local_encoder=${at[encoder-conf.model]:-$(awk '/ model: exp\// { print $2; exit }' "${at[config]:-/dev/null}")}
    printf '%s\t%s\n' "${local_encoder:-whisper-tiny.en}" "${local_encoder:-/models/encoder}" SmolLM2-135M-Instruct /models/llm
    ;;
  dump)
    name=$(basename "${at[config]}" .yaml)
    [ -z "${at[print]}" ] || { echo "${name#train_}_feats"; exit; }
    mkdir -p "$out"
    echo "dump: 5/10 utt (50 %), 1.00 utt/s, 00:00:05 left" >&2
    if [ "${at[job]}" = 0 ]; then echo > "$out/feats.scp"; else echo > "$out/feats.${at[job]}.ark"; fi
    ;;
  join_sets) echo > "$out" ;;
  prepare_text) [ -f "${at[feats]}/feats.scp" ] && echo > "$out" ;;
  pretrain) mkdir -p "$out" && [ -f "${at[train]}" ] && [ -f "${at[dev]}" ] && echo > "$out/config.json" ;;
  prepare_model)
    [ "${at[dry-run]}" != true ] || exec echo "a table"
    echo table > "${at[exp]}/model_info.txt" ;;
  train)
    mkdir -p "${at[exp]}/checkpoints" "${at[exp]}/plots"
    [ -f "${at[train]}" ] && [ -f "${at[dev]}" ] && touch "${at[exp]}/checkpoints/best.safetensors" "${at[exp]}/.train.done"
    ;;
  decode)
    mkdir -p "$out" && echo > "$out/hyp.trn"
    printf '{"decode_conf": {"unit": "%s", "normalizer": "english"}}\n' "${at[decode-conf.unit]:-word}" > "$out/decode.json"
    ;;
  whisper | ctc) mkdir -p "$out" && echo > "$out/hyp.trn" ;;
  score)
    echo > "$out/report.html"
    printf '%s\n' ",--." "| SPKR    | # Snt # Wrd | Corr    Sub |" "| a       |    1     2 | 98.0    1.0 |" \
    "| Sum/Avg |    1     2 | 98.0    1.0 |" "| SPKR    | raw |" "| Sum     |  2 |" > "$out/result.txt"
    ;;
  score_answers) [ -f "${at[data]}" ] && printf '%s\n' "Accuracy 60.00 [50.00, 70.00] N=5 C=3 clips=2" > "$out/result.txt" ;;
  results) echo table > "$out" ;;
  pack) mkdir -p "${at[exp]}/package" && echo > "${at[exp]}/package.zip" ;;
  *) echo "no such verb: $verb" >&2; exit 1 ;;
esac
