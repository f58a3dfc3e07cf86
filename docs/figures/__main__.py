"""Runs the examples of docs/observe.md that draw a figure, all or those named: python -m docs.figures [NAME.png …]"""

import re
import sys

from docs.figures import FOLDER

PAGE = FOLDER.parent / "observe.md"
for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S):
    drawn = re.findall(r'"([\w-]+\.png)"', block)
    if drawn and (not sys.argv[1:] or {*drawn} & {*sys.argv[1:]}):
        exec(compile(block, str(PAGE), "exec"), {"__name__": "example"})
        print(*(FOLDER / name for name in drawn), sep="\n")
