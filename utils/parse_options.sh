# shellcheck shell=bash
# Kaldi's command line for a bash script: `--foo-bar x` sets the variable foo_bar. To be sourced:
#
#   nj=4        # set every option's default first,
#   skip=false  # a default of true or false makes it a boolean
#   help_message="usage: $0 [options] data"
#   . utils/parse_options.sh     # what is not an option stays in $1, $2, …
#
# If `option_names` lists names (utils/pipeline.sh does), nothing else is an option, and --help shows ${option_help[NAME]} and the
# default of each. If there is an array `overrides`, `--some-conf.key value` goes there. `--` ends the options.

option_names=${option_names-}
declare -gA option_help

# The nearest of several words, if it is near: nearest WORD CANDIDATE…
nearest() {
  printf '%s\n' "$@" | awk '
    NR == 1 { word = $0; best = 3; if (length(word) < 5) best = 2; next }
    { d = distance(word, $0); if (d < best || index($0, word) == 1 && !found) { if (d < best) best = d; found = $0 } }
    END { print found }
    function distance(a, b,   i, j, row, last, cost, m) {
      for (j = 0; j <= length(b); j++) row[j] = j
      for (i = 1; i <= length(a); i++) {
        last = row[0]; row[0] = i
        for (j = 1; j <= length(b); j++) {
          cost = last + (substr(a, i, 1) != substr(b, j, 1))
          last = row[j]
          m = row[j] + 1; if (row[j - 1] + 1 < m) m = row[j - 1] + 1; if (cost < m) m = cost
          row[j] = m
        }
      }
      return row[length(b)]
    }'
}

option_error() {
  printf '%s: error: %s\n' "${0##*/}" "$1" >&2
  exit 1
}

# Every option with its default and explanation.
print_options() {
  local name shown
  for name in $option_names; do
    shown=${!name}
    printf '  --%-18s %s\n  %-20s (default: %s)\n' "${name//_/-}" "${option_help[$name]}" "" "${shown:-none}"
  done
}

while [ $# -gt 0 ]; do
  case $1 in
    --) shift; break ;;
    -h | --help)
      [ -z "${help_message-}" ] || printf '%s\n' "$help_message"
      [ -z "$option_names" ] || print_options
      [ -z "${help_end-}" ] || printf '%s\n' "$help_end"
      exit 0
      ;;
    --*=*) option_error "$1: write the value as a word of its own: ${1%%=*} ${1#*=}" ;;
    --*.*)
      declare -p overrides > /dev/null 2>&1 || option_error "unknown option $1; --help lists them all"
      if [ $# -lt 2 ] || [[ $2 == --* ]]; then option_error "$1 needs a value, as in $1 100"; fi
      overrides+=("$1" "$2")
      shift 2
      ;;
    --*)
      option_name=${1#--}
      option_name=${option_name//-/_}
      if [[ ! $option_name =~ ^[a-z][a-z0-9_]*$ || -z ${!option_name+set} ]] ||
        [[ -n $option_names && " $option_names " != *" $option_name "* ]]; then
        # shellcheck disable=SC2086 # a list of words
        option_hint=$(nearest "$option_name" $option_names)
        option_error "unknown option $1${option_hint:+ (did you mean --${option_hint//_/-}?)}; --help lists them all"
      fi
      if [ $# -lt 2 ] || [[ $2 == --* ]]; then option_error "$1 needs a value (default: ${!option_name:-none})"; fi
      if [[ ${!option_name} =~ ^(true|false)$ && ! $2 =~ ^(true|false)$ ]]; then
        option_error "$1 must be true or false, not '$2'"
      fi
      printf -v "$option_name" %s "$2"
      shift 2
      ;;
    -[0-9]* | [!-]* | "") break ;;
    *) option_error "unknown option $1; options begin with two dashes, --help lists them all" ;;
  esac
done
unset option_name option_hint
