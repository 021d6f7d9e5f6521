#!/usr/bin/env bash
# Fine-tunes on all GPUs of this host: one process owns them all, which is JAX's own way; there is no launcher.
#   launch/multi_gpu.sh [--print] [flags of python -m jaxft.train]
# CUDA_VISIBLE_DEVICES chooses among the GPUs; mesh.data is by default their number.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
find_print "$@"
command=(.venv/bin/python -m jaxft.train ${words[@]+"${words[@]}"})
if [ -n "$printing" ]; then
  show "${command[@]}"
  exit
fi
prepare cuda
exec "${command[@]}"
