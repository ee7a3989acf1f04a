"""The mathematics: geometry, PSFs, operators, back projectors, restoration, quality.

No files, no configuration: numbers in, numbers out.
"""
