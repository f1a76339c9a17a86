"""The commands of ``relucheck``, a module each: its options, and what it does.

``add`` of a module describes its command to the parser of ``relucheck.__main__``, and names the function that runs it. The
modules import what they run when they run it, so that ``relucheck --help`` answers at once.
"""
