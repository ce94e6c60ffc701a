"""The commands, one per file; they share the code of the package above and do not import each other."""
