#!/bin/sh
# The study of docs/results/photos.md, in order of value, a piece at a time.
#
#   sh launch/photos.sh PHOTOS CAPTIONS AUTOENCODER WORKDIR MINUTES [OPTION...]
#
# AUTOENCODER is a folder or hub id, or "" for none. OPTIONs go to launch.sweep, such as
# --only=factor=1,10, --num_seeds=1 or --override=SETTING=VALUE; give the same each time.
# What is done lies in WORKDIR.tgz at the end, some hundred kilobytes a trial, among them
# small pictures of PHOTOS; put it beside WORKDIR on another machine, start the same command
# there, and it goes on. Ends with 0 when all is done, and with 1 while something is open.
# PYTHON and PRESET (photos, photos_cpu) may be set.
set -eu

photos=$1 captions=$2 autoencoder=$3 workdir=$4 minutes=$5
shift 5
sweeps=fig3,fig5,training_length,complexity,table_train_mitigations
sweeps=$sweeps,mitigations_at_inference,caption_count,fig4,unconditional,detectors
sweeps=$sweeps,dataset_size,caption_specificity,text_encoder,mitigations_once,fig2

sweep() {
    "${PYTHON:-python}" -m launch.sweep --sweep="configs/sweeps.py:$sweeps" \
        --preset="${PRESET:-photos}" --source="$photos" --captions="$captions" \
        --autoencoder="$autoencoder" --workdir="$workdir" "$@"
}

mkdir -p "$workdir"
if [ -e "$workdir.tgz" ]; then
    tar xzf "$workdir.tgz" -C "$workdir" --keep-newer-files --warning=no-ignore-newer
fi
status=0
sweep "$@" --results_only --minutes="$minutes" || {  # which collects what is whole
    status=$?
    sweep "$@" --collect
}
# A checkpoint stays here, and with it the record that says there is one.
tar czf "$workdir.tgz.partial" -C "$workdir" --exclude=./.jax_cache \
    --exclude=./runs/cache --exclude=checkpoints --exclude=frozen --exclude=embeddings \
    --exclude=generations --exclude=train.json .
mv "$workdir.tgz.partial" "$workdir.tgz"
exit "$status"
