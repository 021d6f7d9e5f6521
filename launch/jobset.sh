#!/usr/bin/env bash
# Fills in launch/jobset.yaml and applies it: several GPU hosts on Kubernetes.
#   launch/jobset.sh [--print] NAME --image=IMAGE --hosts=N --gpus=G -- --workdir=gs://BUCKET/run [flags of python -m jaxft.train]
# IMAGE has this package with its cuda extra; G is the number of GPUs of each host.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
usage() {
  sed -n '2,4s/^# \{0,1\}//p' "launch/jobset.sh" >&2
  exit 2
}
[ "${1:-}" = --print ] && printing=yes && shift
[ $# -gt 0 ] && [ "${1#-}" = "$1" ] || usage
name=$1 image='' hosts='' gpus=''
shift
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case "$1" in
    --image=*) image=${1#*=} ;;
    --hosts=*) hosts=${1#*=} ;;
    --gpus=*) gpus=${1#*=} ;;
    *) usage ;;
  esac
  shift
done
[ $# -gt 0 ] && [ -n "$image" ] && [ -n "$hosts" ] && [ -n "$gpus" ] || usage
shift
case " $* " in
  *" --workdir="*) ;;
  *) printf '%s\n' "launch/jobset.sh needs --workdir=URL that all pods reach, such as gs://BUCKET/run" >&2 && exit 2 ;;
esac
manifest=$(<launch/jobset.yaml)
manifest=${manifest//'{NAME}'/"$name"}
manifest=${manifest//'{IMAGE}'/"$image"}
manifest=${manifest//'{HOSTS}'/"$hosts"}
manifest=${manifest//'{GPUS}'/"$gpus"}
flags=$(printf '%q ' "$@")
manifest=${manifest//'{FLAGS}'/"${flags% }"}
if [ -n "${printing:-}" ]; then
  printf '%s\n' "# kubectl apply -f -" "$manifest"
else
  kubectl apply -f - <<<"$manifest"
fi
