"""train.py, which also notes in a file, step by step, the examples that this process
draws: `python record_examples.py FILE --config=... --workdir=...`"""

import json
import sys

import train
from copymit.training import loop

record = sys.argv.pop(1)
iterate_batches = loop.iterate_batches


def recording(*args, **options):
    with open(record, "w") as file:
        for batch in iterate_batches(*args, **options):
            file.write(json.dumps(batch["example_index"].tolist()) + "\n")
            yield batch


loop.iterate_batches = recording
train.run()
