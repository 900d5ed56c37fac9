# shellcheck shell=bash disable=SC2154,SC2034 # the variables are those of pipeline.sh
# The part of utils/pipeline.sh that knows what a recipe's corpus has; sourced by it.

# Sets `script` to the command that runs the recipe's download or data_prep.
local_script() { # NAME
  if [ -f "$scripts/$1.sh" ]; then script=(bash "$scripts/$1.sh"); else script=("${PYTHON:-python3}" "$scripts/$1.py"); fi
}

# Before the environment is made and anything is printed: a corpus that is needed and cannot be had ends the run in one message.
check_corpus() {
  local script message
  [ "$check_download" = true ] && [ -z "$corpus" ] || return 0
  [ "$first_stage" -le 0 ] || { [ "$backfill" = true ] && [ ! -e "data/$train_set/text" ]; } || return 0
  local_script download
  [ "${script[0]}" = bash ] || "${script[0]}" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2> /dev/null ||
    return 0 # tools/setup.sh says what to do
  message=$(PYTHONPATH=$root "${script[@]}" downloads "${own_options[@]}" --check true 2>&1) || die "${message#*error: }"
}

# Sets `sets`. A data preparation may leave data/sets, the names of the sets that the corpus has: of the recipe's test sets the
# others are left out then, unless --test-sets asked for them.
choose_sets() {
  local name known=""
  if [ -z "$asked_sets" ] && [ -f data/sets ]; then
    known=$(tr '\n' ' ' < data/sets)
    test_sets=""
    for name in $recipe_sets; do
      [[ " $known" != *" $name "* ]] || test_sets=${test_sets:+$test_sets }$name
    done
    test_sets=${test_sets:-$recipe_sets} # none of them: stage 0 says which there are
  fi
  sets=()
  for name in "$train_set" "$dev_set" $test_sets $train_sets $dev_sets; do
    [[ $name != */* ]] || continue # made by another recipe
    name=${name%%:*}
    [[ " ${sets[*]} " == *" $name "* ]] || sets+=("$name")
  done
}
