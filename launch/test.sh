#!/usr/bin/env bash
# Makes .venv, installs jaxft with its test extra, checks the code's style and types, and runs the tests.
#   launch/test.sh [flags of pytest]
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare test
if [ $# -eq 0 ]; then
  .venv/bin/ruff check .
  .venv/bin/ruff format --check .
  .venv/bin/mypy
  # A file's tests share what they make; two workers keep two cores busy, each takes some GB.
  set -- -n 2 --dist loadfile --no-loadscope-reorder
fi
exec .venv/bin/python -m pytest "$@"
