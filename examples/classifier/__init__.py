"""The reference classifier: one training run, from its data to its resume.

Read it in this order; each file needs only the ones above it.

    shapes.py      the data: pictures drawn by formula, so that nothing is downloaded
    batches.py     who is held out, in which order an epoch goes, and how to enter it midway
    network.py     the network
    run.py         all that a run is: settings, network, optimizer, scheduler, position, history
    checkpoint.py  all of it in one file, written so that it is never half there
    train.py       the loop with its five verbs, the evaluation, and the two together
    __main__.py    the same from the shell
"""
