"""The checks: one promise that a loop keeps, one marker, one file each."""
