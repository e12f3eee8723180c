"""Say which broken twins there are: `python -m examples.broken`."""

from __future__ import annotations

import click

from examples import broken

if __name__ == "__main__":
    click.echo(broken.__doc__)
