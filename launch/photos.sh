#!/bin/sh
# The study of docs/results/photos.md, in order of value, a piece at a time.
#
#   sh launch/photos.sh PHOTOS CAPTIONS AUTOENCODER WORKDIR MINUTES
#
# AUTOENCODER is a folder or hub id, or "" for none. What is done lies in WORKDIR.tgz at the
# end, some hundred kilobytes a trial; put it beside WORKDIR on another machine, start the
# same command there, and it goes on. PYTHON and PRESET (photos, photos_cpu) may be set.
set -eu

photos=$1 captions=$2 autoencoder=$3 workdir=$4 minutes=$5
python=${PYTHON:-python} preset=${PRESET:-photos}
sweeps=fig3,fig5,training_length,complexity,table_train_mitigations
sweeps=$sweeps,mitigations_at_inference,caption_count,fig4,unconditional,detectors
sweeps=$sweeps,dataset_size,caption_specificity,text_encoder,mitigations_once,fig2
ends=$(($(date +%s) + 60 * minutes))

sweep() {
    "$python" -m launch.sweep --sweep="configs/sweeps.py:$sweeps" --preset="$preset" \
        --source="$photos" --captions="$captions" --autoencoder="$autoencoder" \
        --workdir="$workdir" "$@"
}

mkdir -p "$workdir"
if [ -e "$workdir.tgz" ]; then
    tar xzf "$workdir.tgz" -C "$workdir" --skip-old-files
fi
for seeds in 1 3; do  # first all of one seed
    left=$(((ends - $(date +%s)) / 60))
    [ "$left" -gt 0 ] || break
    sweep --num_seeds="$seeds" --results_only --minutes="$left" || break
done
sweep --num_seeds=3 --collect || true
tar czf "$workdir.tgz" -C "$workdir" --exclude=./.jax_cache --exclude=./runs/cache \
    --exclude=checkpoints --exclude=frozen --exclude=embeddings --exclude=generations .
