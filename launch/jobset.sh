#!/usr/bin/env bash
# Fills in launch/jobset.yaml and applies it: several GPU hosts on Kubernetes.
#   launch/jobset.sh [--print] NAME --image=IMAGE --hosts=N --gpus=G -- --workdir=gs://BUCKET/run [flags of python -m jaxft.train]
# IMAGE has this package with its cuda extra (and gcs, for gs:// paths); G is the number of GPUs of each host.
source "$(dirname "${BASH_SOURCE[0]}")/remote.sh"
read_words "$@"
image='' hosts='' gpus=''
for flag in ${flags[@]+"${flags[@]}"}; do
  case "$flag" in
    --image=*) image=${flag#*=} ;;
    --hosts=*) hosts=${flag#*=} ;;
    --gpus=*) gpus=${flag#*=} ;;
    *) usage ;;
  esac
done
[ -n "$image" ] && [ -n "$hosts" ] && [ -n "$gpus" ] || usage
needs --workdir= "URL that all pods reach, such as gs://BUCKET/run"
manifest=$(<launch/jobset.yaml)
manifest=${manifest//'{NAME}'/"$name"}
manifest=${manifest//'{IMAGE}'/"$image"}
manifest=${manifest//'{HOSTS}'/"$hosts"}
manifest=${manifest//'{GPUS}'/"$gpus"}
typed=$(printf '%q ' "${words[@]}")
manifest=${manifest//'{FLAGS}'/"${typed% }"}
if [ -n "$printing" ]; then
  printf '%s\n' "# kubectl apply -f -" "$manifest"
else
  kubectl apply -f - <<<"$manifest"
fi
