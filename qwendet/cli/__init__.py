"""The command line: a file per command family, each parsing, calling one function, and printing."""
