"""Published benchmarks: layouts of their folders, and the run over all sets behind ``eval --benchmark``."""
