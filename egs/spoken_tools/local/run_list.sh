# shellcheck shell=bash disable=SC2154 # the variables are those of run.sh, which sources this

# All stages of one list of queries.
run_list() { # LIST
  local list=$1 speech out how
  speech=${data:-data/$list}
  if [ "$stage" -le -1 ] && [ -z "$data$tts" ]; then
    bash local/download.sh downloads
  fi
  if [ "$stage" -le 0 ] && [ "$stop_stage" -ge 0 ] && [ -z "$data" ]; then
    [ "$lang" = en ] || [ -n "$tts" ] || option_error "flite speaks English; --lang $lang needs --tts COMMAND, or --data DIR"
    "$python" local/speak.py --queries "queries/$list.jsonl" --out "$speech" --voices "$voices" ${tts:+--tts "$tts"}
  fi
  if [ "$stage" -le 5 ] && [ "$stop_stage" -ge 5 ]; then
    "$python" -m steermoe.bin.data_dir validate --no-feats "$speech"
    out=exp/${list}_$name$tag
    mkdir -p "$out"
    case $list in
      tools*) how=(--tools tools.py --conditions "${conditions:-text transcript voice}") ;;
      *) how=(--conditions "${conditions:-text alone transcript voice}") ;;
    esac
    "$python" local/ask.py --model "$model" --queries "queries/$list.jsonl" --data "$speech" --out "$out" "${how[@]}" \
      ${constrained:+--constrained "$constrained"} --max-tokens "$max_tokens" --language "$lang" --ngpu "$ngpu" \
      ${encoder_model:+--encoder-model "$encoder_model"} ${llm_model:+--llm-model "$llm_model"} \
      ${talker:+--talker "$talker"} ${system:+--system "$system"} ${whisper:+--whisper "$whisper"}
    "$python" local/score.py --queries "queries/$list.jsonl" --out "$out" --made-by "./run.sh ${given% }"
  fi
}
