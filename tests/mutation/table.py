"""For `make mutants`: what became of the mutants, file by file, as the table of docs/mutation.md.

`mutmut results` names the survivors, `mutmut show NAME` shows one.
"""

from __future__ import annotations

from collections import Counter

from mutmut.mutation.data import SourceFileMutationData
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files

KILLED = ("killed", "timeout")


def main() -> None:
    total: Counter[str] = Counter()
    print("| file | mutants | killed | share |")
    print("|---|---:|---:|---:|")
    for path in sorted(walk_mutatable_files()):
        data = SourceFileMutationData(path=path)
        data.load()
        counts = Counter(status_by_exit_code[code] for code in data.exit_code_by_key.values())
        print(row(f"`{path}`", counts))
        total += counts
    print(row("all", total))


def row(name: str, counts: Counter[str]) -> str:
    killed = sum(counts[status] for status in KILLED)
    return f"| {name} | {counts.total()} | {killed} | {killed / counts.total():.1%} |"


if __name__ == "__main__":
    main()
