# shellcheck shell=bash
# Sourced by the scripts that start a run on other machines. Usage: read_words "$@"; then needs FLAG WHAT
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# The script's own first lines.
usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "launch/${0##*/}" >&2
  exit 2
}

# [--print] NAME [FLAG ...] -- [WORD ...]  ->  printing, name, flags (of the machines), words (train's own)
# shellcheck disable=SC2034 # they are the scripts'
read_words() {
  find_print "$@"
  set -- ${words[@]+"${words[@]}"}
  flags=()
  [ $# -gt 0 ] && [ "${1#-}" = "$1" ] || usage
  name=$1
  shift
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    flags+=("$1")
    shift
  done
  [ $# -gt 0 ] || usage
  words=("${@:2}")
}

# Ends where none of train's words begins so.
needs() {
  case " ${words[*]-}" in
    *" $1"*) ;;
    *) say "launch/${0##*/} needs $1$2" && exit 2 ;;
  esac
}
