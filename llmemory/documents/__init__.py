"""Documents on their way into the tables and out again: split, planned, embedded, written, read."""
