# SPDX-License-Identifier: GPL-3.0-or-later
"""The web application: a page, a small JSON API, and /health.

GET / the page; GET /jobs, GET /jobs/ID; POST /jobs with {"title": ...} or a form; GET /health.
"""

from __future__ import annotations

import html
import json
import re
import sqlite3
import sys
import urllib.parse
from contextlib import closing

import board
import serving

PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Job board</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .4rem .6rem; border-bottom: 1px solid #ccc; overflow-wrap: anywhere; }}
input {{ font: inherit; padding: .3rem; width: 70%; }} button {{ font: inherit; padding: .3rem 1rem; }}
</style></head>
<body>
<h1>Job board</h1>
<form method="post" action="/jobs">
<input name="title" required maxlength="{limit}" aria-label="Title" placeholder="What is to be done?">
<button>Add</button>
</form>
<table><thead><tr><th>No.</th><th>Job</th><th>Status</th><th>Result</th></tr></thead>
<tbody>
{rows}
</tbody></table>
</body>
</html>
"""


class Board(serving.Handler):
    """Parse, call, answer. Each request has its own database connection."""

    def do_GET(self) -> None:  # noqa: N802 - the base class names it so
        path = urllib.parse.urlsplit(self.path).path
        number = re.fullmatch(r"/jobs/(\d{1,15})", path)
        try:
            with closing(board.connect()) as connection:
                if path == "/health":
                    connection.execute("SELECT count(*) FROM jobs").fetchone()
                    self.answer_json(200, {"status": "ok"})
                elif path == "/jobs":
                    self.answer_json(200, {"jobs": board.jobs(connection)})
                elif number is not None:
                    found = board.job(connection, int(number[1]))
                    self.answer_json(200 if found else 404, found or {"error": f"no job {number[1]}"})
                elif path == "/":
                    self.answer(200, page(board.jobs(connection)).encode(), "text/html; charset=utf-8")
                else:
                    self.answer_json(404, {"error": f"no page {path}"})
        except sqlite3.Error as error:
            self.answer_json(503, {"error": f"the database does not answer: {error}"})

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:  # noqa: N802
        body = self.body()
        if body is None:
            return
        if urllib.parse.urlsplit(self.path).path != "/jobs":
            self.answer_json(404, {"error": f"no page {self.path}"})
            return
        # `curl -d` calls everything a form; JSON is told by its first character.
        kind = self.headers.get("Content-Type") or ""
        from_form = kind.startswith("application/x-www-form-urlencoded") and not body.lstrip().startswith(b"{")
        try:
            title = title_in(body, from_form)
            with closing(board.connect()) as connection:
                made = board.add(connection, title)
        except ValueError as error:
            self.answer_json(400, {"error": str(error)})
        except sqlite3.Error as error:
            self.answer_json(503, {"error": f"the database does not answer: {error}"})
        else:
            if from_form:
                self.answer(303, b"", "text/plain", Location="/")
            else:
                self.answer_json(201, made)


def title_in(body: bytes, from_form: bool) -> str:
    """Return the title in a form or a JSON object. Raises ValueError."""
    if from_form:
        return urllib.parse.parse_qs(body.decode()).get("title", [""])[0]
    try:
        data = json.loads(body)
    except ValueError:
        data = None
    title = data.get("title") if isinstance(data, dict) else None
    if not isinstance(title, str):
        raise ValueError('expected a JSON object such as {"title": "Water the plants"}')
    return title


def page(jobs: list[dict[str, object]]) -> str:
    """Return the HTML page."""
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(str(job[key] or ''))}</td>" for key in columns) + "</tr>"
        for columns in [("id", "title", "status", "result")]
        for job in jobs
    )
    return PAGE.format(rows=rows, limit=board.TITLE_LIMIT)


if __name__ == "__main__":
    options = serving.arguments(__doc__.splitlines()[0] if __doc__ else None).parse_args()
    if not board.database_file().exists():
        sys.exit(f"{board.database_file()}: no such file; run migrate.py first")
    serving.serve(Board, options.host, options.port)
