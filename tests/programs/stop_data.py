"""train.py, whose data stop after some batches while the process lives on:
`python stop_data.py COUNT --config=... --workdir=...`"""

import itertools
import sys
import threading

import train
from copymit.training import loop

count = int(sys.argv.pop(1))
iterate_batches = loop.iterate_batches


def stopping(*args, **options):
    yield from itertools.islice(iterate_batches(*args, **options), count)
    threading.Event().wait()


loop.iterate_batches = stopping
train.run()
