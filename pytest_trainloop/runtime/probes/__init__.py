"""Ways of seeing a run, one file each: `install(observer)` replaces what it needs to.

A probe writes what it saw to `observer.run.events`. It asks `observer.patches.active`
before it does anything, calls the original function with exactly what it was given, and
lets nothing of its own fail the run.
"""
