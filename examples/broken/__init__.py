"""Broken twins of the reference classifier: the same code with one famous bug each.

A twin repeats only the part that its bug is in, so that comparing it with the classifier's shows
the bug and nothing else. Run one: it shows the symptom in numbers, then what the guard says.

    python -m examples.broken.missing_zero_grad
    python -m examples.broken.kept_loss_graph
    python -m examples.broken.optimizer_not_checkpointed
    python -m examples.broken.train_mode_not_restored

None of them raises an error.
"""
