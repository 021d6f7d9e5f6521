#!/usr/bin/env bash
# Makes .venv, installs jaxft (with the cuda or tpu extra where such hardware is found) and fine-tunes.
#   launch/local.sh [flags of python -m jaxft.train]
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare
exec .venv/bin/python -m jaxft.train "$@"
