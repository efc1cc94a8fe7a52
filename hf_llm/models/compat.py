"""What differs between the versions of transformers that the code meets."""

TESTED_TRANSFORMERS = ("5.16", "5.24")  # the oldest and the newest minor release, both of which the tests run with
