# shellcheck shell=bash disable=SC2154 # the variables are those of pipeline.sh
# The end of a run, on stdout: the scores, what the stages have made and where that is, what to do next; sourced by pipeline.sh.

summary() {
  local above=$root steermoe
  [[ $PWD/ != "$root/egs/"* ]] || above=../..
  steermoe="PYTHONPATH=$above ${PYTHON/#"$root"/$above} -m steermoe.bin"
  [ -z "${stage_done[5]}" ] || scores
  printf '\nmade:\n'
  made
  printf 'next:\n'
  next
}

line() { printf '  %s: %s\n' "$1" "$2"; }

# The tables' heads and Sum/Avg lines, ours and the encoder's own.
scores() {
  local name out
  for name in $test_sets; do
    for out in "$exp/decode_${name}_$decode_tag" ${own_exp:+"$own_exp/decode_$name"}; do
      printf '\n%s\n' "$out/result.txt"
      awk '/SPKR/ && !head++ || /Sum\/Avg/ && !sum++ || /^Accuracy /' "$out/result.txt"
    done
  done
}

# What each stage of this run leaves, also where an earlier run had made it.
made() {
  local name page
  [ -z "${stage_done[-1]}" ] || line corpus "$corpus_dir"
  for name in "${sets[@]}"; do
    [ -z "${stage_done[0]}" ] || line data "data/$name, $(utterances "data/$name/text")"
  done
  for name in "${sets[@]}"; do
    if [ -n "${stage_done[2]}" ]; then
      line "features and text" "$dump/$name/data.jsonl, $(utterances "$dump/$name/data.jsonl")"
    elif [ -n "${stage_done[1]}" ]; then
      line features "$dump/$name/feats.scp"
    fi
  done
  if [ -n "${stage_done[3]}" ]; then
    [ -z "$pretrain_config" ] || line encoder "$encoder_name"
    line "parameters and memory" "$exp/model_info.txt"
  fi
  [ -z "${stage_done[4]}" ] || line adapter "$exp/checkpoints/best.safetensors; curves: $exp/plots, tensorboard --logdir exp"
  if [ -n "${stage_done[5]}" ]; then
    page=$(answers && echo result.txt || echo report.html)
    for name in $test_sets; do line "to look at" "$exp/decode_${name}_$decode_tag/$page"; done
    line report "$exp/RESULTS.md"
  fi
  [ -z "${stage_done[6]}" ] || line package "$exp/package, and in one file $exp/package.zip"
}

# Whether the adapter has been scored by its answers to questions (score_answers, which makes no page), not by transcripts.
answers() {
  local scored=("$exp"/decode_*/result.txt)
  [ -f "${scored[0]}" ] && [ ! -f "${scored[0]%result.txt}report.html" ]
}

# usage: with_a_file MODEL: the command to try it
with_a_file() {
  if answers; then
    printf '%s.chat --model %s "@FILE.wav QUESTION"' "$steermoe" "$1"
  else
    printf '%s.transcribe --model %s FILE.wav' "$steermoe" "$1"
  fi
}

utterances() { printf '%d utterances' "$(wc -l < "$1")"; }

# After the last stage that was asked for.
next() {
  local again="./run.sh ${given:+${given% } }"
  if [ "$last_stage" -eq 6 ]; then
    line "on another machine" "copy $exp/package.zip there; $(with_a_file package.zip)"
    line "for everybody" "$steermoe.pack --exp $exp --push-to-hub USER/NAME"
    return
  fi
  [ "$last_stage" -ne 2 ] ||
    line "in another recipe's training" "--train-sets '$train_set ../${PWD##*/}/$dump/$train_set/data.jsonl'"
  if [ "$last_stage" -lt 5 ]; then
    line "go on" "$again--stage ${stage_names[last_stage + 2]}"
    return
  fi
  line "your own recordings" "$(with_a_file "$exp")"
  line "to hand it on" "$again--stage pack"
  line "other settings" "$again--tag NAME --train-conf.max-steps 1000; ../../utils/show_result.sh compares"
}
