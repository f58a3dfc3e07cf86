"""Views that a person can read: one self-contained HTML page, and the terminal.

Both take the plain dictionary that ``regard see --json`` prints (``format_version`` 1) and nothing else:
`regard.view.html` writes the page, `regard.view.terminal` prints the summary.
"""

from regard.view.html import check_path, render, write
from regard.view.terminal import print_report

__all__ = ["check_path", "print_report", "render", "write"]
