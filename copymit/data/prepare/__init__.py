"""From whatever images and captions there are to one data set that is read at random.

In: folders, tar files, tables. Out: ArrayRecord files in `tensorflow_datasets`' layout
(`python -m copymit.data.prepare`), which `copymit.data.record_source` reads.
"""
