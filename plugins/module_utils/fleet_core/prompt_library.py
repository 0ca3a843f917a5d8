# SPDX-License-Identifier: GPL-3.0-or-later
"""Methods that every .p file may use without defining them; a method of the same name in the file wins."""

from __future__ import annotations

NAME = "stdlib.p"

# Bodies are indented by a tab in .p files.
TEXT = """\
; Manner

conversational:
    Talk as in a conversation: short, light, at most three sentences. Go into detail only when you are asked to.

concise:
    Be brief. Give the result first, then only what is needed to understand it.

; Form of an answer

listify(n):
    Give the answer as a numbered list of [n] items, one item a line, and nothing beside the list.

summarize(n):
    Summarize in at most [n] sentences. Keep names, numbers and decisions.

; Ways of working

pick-one(file):
    Read [file]. Choose the most important item in it that is still open, work on that one only, and mark it as done in
    [file] when it is finished and checked.

small-commits:
    Work in small steps. After each step run the tests, and when they pass, commit with a message that says why.

review(what):
    Review [what]. Name every fault with its file and line, what goes wrong and when. Change nothing.
""".replace("    ", "\t")
