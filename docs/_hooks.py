"""For MkDocs: a page's links to files of the repository lead to a copy of them, as text, in the site.

Pages link as an editor follows a link (`../qwendet/loader.py`); the site needs no address of the repository.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

TO_REPOSITORY = re.compile(r"\]\(\.\./([^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Add the files that a page links to, and point its links there."""
    repository = Path(config.docs_dir).parent

    def copied(link: re.Match[str]) -> str:
        place = f"source/{link[1]}.txt"
        if (repository / link[1]).is_file() and files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, abs_src_path=str(repository / link[1])))
        return f"]({place})"

    return TO_REPOSITORY.sub(copied, markdown)
