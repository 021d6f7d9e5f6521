#!/usr/bin/env bash
# Makes .venv, installs jaxft (with the cuda or tpu extra where such hardware is found) and fine-tunes.
#   launch/local.sh [--print] [flags of python -m jaxft.train]
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
find_print "$@"
command=(.venv/bin/python -m jaxft.train ${words[@]+"${words[@]}"})
if [ -n "$printing" ]; then
  show "${command[@]}"
  exit
fi
# shellcheck disable=SC2119 # the script's words are train's, not extras
prepare
exec "${command[@]}"
