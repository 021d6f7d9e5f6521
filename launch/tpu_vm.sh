#!/usr/bin/env bash
# Fine-tunes on every worker of a TPU slice by gcloud; the workers find each other by themselves.
#   launch/tpu_vm.sh [--print] NAME --zone=ZONE [--project=P] -- --workdir=gs://BUCKET/run [flags of python -m jaxft.train]
# The tracked files of this folder, as they are now, are copied to ~/jaxft on each worker, which makes its own .venv.
# Paths must be gs:// or lie in this folder: the workers share no disk.
source "$(dirname "${BASH_SOURCE[0]}")/remote.sh"
read_words "$@"
needs --workdir=gs:// "BUCKET/run: the workers share no disk"
run() {
  if [ -n "$printing" ]; then show "$@"; else "$@"; fi
}
archive=$(mktemp -d)
trap 'rm -r "$archive"' EXIT
remote="mkdir -p jaxft && tar -xzf jaxft.tgz -C jaxft && cd jaxft && exec launch/local.sh$(printf ' %q' "${words[@]}")"
# A commit of what differs from the last one, on no branch; empty where nothing does.
[ -n "$printing" ] || changed=$(git stash create)
run git archive --format=tar.gz --output="$archive/jaxft.tgz" "${changed:-HEAD}"
run gcloud compute tpus tpu-vm scp "$archive/jaxft.tgz" "$name:jaxft.tgz" --worker=all ${flags[@]+"${flags[@]}"}
run gcloud compute tpus tpu-vm ssh "$name" --worker=all ${flags[@]+"${flags[@]}"} --command="$remote"
