"""One volume in pieces: cut, measured, written, and gone on with."""
