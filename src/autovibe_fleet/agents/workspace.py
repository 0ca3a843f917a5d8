# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the agent works: a folder, or a git worktree or clone of its own, whose result is a branch, a diff and a patch.

What was not committed is never lost: it is committed to the agent's branch, or, where git refuses, kept in a patch.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fleet_core.agents import AgentDefinition, Workspace
from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, Unavailable

from .programs import Done, run

Row = dict[str, Any]
_PATIENCE = 120.0  # seconds for a git command on files of this host
_CLONE_PATIENCE = 1800.0  # seconds for one that may use the network
_ENV = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
# What would point git at another repository, if fleetd was started from a hook.
_FOREIGN = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_PREFIX")
_BUSY = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "rebase-merge", "rebase-apply")


async def prepare(definition: AgentDefinition, run_id: int, folder: Path, known: Row) -> Row:
    """Make the workspace of a run, or find it again, and return its facts for the run's row.

    known: the facts of earlier, when the run goes on. folder: the agent's own. The row has kind and path, and for git
    repository, base (a commit) and branch. Raises FleetError in a sentence when git is missing or cannot do it.
    """
    wanted = definition.workspace
    if known.get("path") and os.path.isdir(known["path"]):
        return known
    if wanted.kind == "folder":
        path = wanted.path or os.fspath(folder / "workspace")
        if wanted.path and not os.path.isdir(path):
            raise NotFound(f'agent "{definition.name}": workspace: folder {path} does not exist')
        os.makedirs(path, mode=0o700, exist_ok=True)
        return {"kind": "folder", "path": path}
    for name in _FOREIGN:
        os.environ.pop(name, None)
    if shutil.which("git") is None:
        raise Unavailable(f'agent "{definition.name}": workspace: git is needed for a {wanted.kind}, and was not found')
    branch = wanted.branch or f"agent/{definition.name}/run-{run_id}"
    path = os.path.join(wanted.path or os.fspath(folder / "workspaces"), f"run-{run_id}")
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    make = _worktree if wanted.kind == "worktree" else _clone
    try:
        await remove_old(folder, run_id)
        return await make(wanted, branch, path)
    except FleetError as error:
        raise type(error)(f'agent "{definition.name}": workspace: {error}') from error


async def _worktree(wanted: Workspace, branch: str, path: str) -> Row:
    repository = await _repository(wanted.repository)
    base = await _base(repository, wanted.base)
    await _git(repository, "worktree", "prune", check=False)
    if await _ok(repository, "show-ref", "--verify", "--quiet", f"refs/heads/{branch}"):
        done = await _git(repository, "worktree", "add", path, branch, check=False)
    else:
        done = await _git(repository, "worktree", "add", "-b", branch, path, base, check=False)
    if done.code != 0:
        raise Conflict(f"no worktree of {repository} could be made at {path}: {_said(done)}")
    return {"kind": "worktree", "path": path, "repository": repository, "base": base, "branch": branch}


async def _clone(wanted: Workspace, branch: str, path: str) -> Row:
    source = wanted.repository
    local = os.path.isdir(source)
    if local:
        await _base(await _repository(source), wanted.base)
    done = await _git("/", "clone", "--quiet", source, path, check=False, timeout=_CLONE_PATIENCE)
    if done.code != 0:
        shutil.rmtree(path, ignore_errors=True)
        raise Unavailable(f"{source} could not be cloned: {_said(done)}")
    remote = f"origin/{wanted.base}"
    named = wanted.base and await _ok(path, "rev-parse", "--verify", "--quiet", f"{remote}^{{commit}}")
    base = await _commit_of(path, remote if named else wanted.base or "HEAD")
    existing = await _ok(path, "show-ref", "--verify", "--quiet", f"refs/remotes/origin/{branch}")
    await _git(path, "checkout", "--quiet", "-B", branch, f"origin/{branch}" if existing else base)
    return {"kind": "clone", "path": path, "repository": source, "base": base, "branch": branch}


async def _repository(path: str) -> str:
    """Return the folder of a repository in which work can begin."""
    if not os.path.isdir(path):
        raise NotFound(f"repository {path} does not exist")
    found = await _git(path, "rev-parse", "--absolute-git-dir", check=False)
    if found.code != 0:
        raise InvalidInput(f"expected a git repository at {path}: {_said(found)}")
    busy = [name for name in _BUSY if os.path.exists(os.path.join(found.output.strip(), name))]
    if busy:
        raise Conflict(f"repository {path}: a merge or rebase is not finished ({busy[0]})")
    return path


async def _base(repository: str, base: str) -> str:
    """Return the commit to begin from. Changes that are in no commit would be missed, unless a base was asked for."""
    commit = await _commit_of(repository, base or "HEAD")
    if not base:
        changed = await _git(repository, "status", "--porcelain", "--untracked-files=no", check=False)
        files = changed.output.splitlines() if changed.code == 0 else []  # a bare repository has no changes
        if files:
            raise Conflict(
                f"repository {repository}: {len(files)} files have changes that are in no commit ({files[0][3:]}), so "
                "the agent would not see them; commit them, or name the commit to begin from as base"
            )
    return commit


async def _commit_of(repository: str, name: str) -> str:
    done = await _git(
        repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}", check=False
    )
    if done.code != 0:
        raise NotFound(f'repository {repository}: base "{name}": no such commit')
    return done.output.strip()


async def head(path: str) -> str:
    """Return the commit that a workspace is at, or nothing if it is in no git repository."""
    try:
        done = await _git(path, "rev-parse", "--verify", "--quiet", "HEAD", check=False)
    except FleetError:
        return ""
    return done.output.strip() if done.code == 0 else ""


async def result(name: str, run_id: int, folder: Path, row: Row) -> Row:
    """Commit what was left, write the diff and the patch of a run, and return the row with what came of it.

    Added are commit, commits, files, insertions, deletions, diff and patch (paths). Raises nothing: error says what
    git could not do. Safe to repeat.
    """
    if row.get("kind") not in ("worktree", "clone") or not os.path.isdir(row.get("path") or ""):
        return row
    path, base, branch = row["path"], row["base"], row["branch"]
    errors: list[str] = []
    tip = base
    patch = folder / f"run-{run_id}.patch"
    diff = folder / f"run-{run_id}.diff"
    try:
        saved = await _save(name, run_id, path, errors)
        tip = saved or await _commit_of(path, "HEAD")
        await _into(diff, path, "diff", "--binary", base, tip)
        await _into(patch, path, "format-patch", "--binary", "--stdout", f"{base}..{tip}")
        if saved and saved != await head(path):
            with patch.open("ab") as file:
                file.write(diff.read_bytes())
        if row["kind"] == "clone" and os.path.isdir(row["repository"]) and tip != base:
            spec = f"{tip}:refs/heads/{branch}"
            back = await _git(row["repository"], "fetch", "--quiet", "--no-tags", path, spec, check=False)
            if back.code != 0:
                errors.append(f"branch {branch} could not be brought to {row['repository']}: {_said(back)}")
        counts = await _counts(path, base, tip)
    except (FleetError, OSError) as error:
        return {**row, "error": "; ".join([*errors, str(error)])}
    found = {**row, "commit": tip, **counts, "diff": os.fspath(diff), "patch": os.fspath(patch)}
    found.pop("error", None)
    return {**found, "error": "; ".join(errors)} if errors else found


async def _save(name: str, run_id: int, path: str, errors: list[str]) -> str:
    """Commit what is in no commit. Where that is refused, return a commit that no branch has, but the diff shows."""
    status = await _git(path, "status", "--porcelain", check=False)
    if status.code == 0 and not status.output.strip():
        return ""
    message = f"Work of agent {name}, run {run_id}, that was not committed"
    identity = () if await _ok(path, "config", "user.email") else _identity(name)
    with contextlib.suppress(FleetError):
        await _git(path, "add", "--all")
        await _git(path, *identity, "-c", "commit.gpgsign=false", "commit", "--quiet", "--no-verify", "-m", message)
        return ""
    index = {"GIT_INDEX_FILE": os.path.join(path, f".fleet-index-{run_id}")}
    try:
        await _git(path, "read-tree", "HEAD", env=index)
        await _git(path, "add", "--all", "--", ".", f":!.fleet-index-{run_id}*", env=index)
        tree = (await _git(path, "write-tree", env=index)).output.strip()
    finally:
        for left in Path(path).glob(f".fleet-index-{run_id}*"):
            left.unlink()
    made = await _git(path, *_identity(name), "commit-tree", tree, "-p", "HEAD", "-m", message)
    errors.append("git refused to commit what was left; it is in the diff and in the patch")
    return made.output.strip()


def _identity(name: str) -> tuple[str, ...]:
    return ("-c", f"user.name=agent {name}", "-c", f"user.email={name}@localhost")


async def _counts(path: str, base: str, tip: str) -> Row:
    commits = await _git(path, "rev-list", "--count", f"{base}..{tip}")
    short = (await _git(path, "diff", "--shortstat", base, tip)).output
    found: Row = {"commits": int(commits.output)}
    for key, word in (("files", "file"), ("insertions", "insertion"), ("deletions", "deletion")):
        match = re.search(rf"(\d+) {word}", short)
        found[key] = int(match.group(1)) if match else 0
    return found


async def remove_old(folder: Path, run_id: int) -> None:
    """Remove the worktrees and clones of earlier runs of which everything is in a branch or in a patch."""
    for marker in sorted(folder.glob("run-*.patch")):
        number = marker.stem.removeprefix("run-")
        path = folder / "workspaces" / f"run-{number}"
        if not number.isdigit() or int(number) >= run_id or not path.is_dir():
            continue
        status = await _git(os.fspath(path), "status", "--porcelain", check=False)
        if status.code != 0 or status.output.strip():
            continue
        if (path / ".git").is_file():
            await _git(os.fspath(path), "worktree", "remove", "--force", os.fspath(path), check=False)
        elif await _is_elsewhere(os.fspath(path)):
            shutil.rmtree(path, ignore_errors=True)


async def _is_elsewhere(clone: str) -> bool:
    """Tell whether no commit of a clone, stashed ones included, is lost with it: HEAD's are in the patch of its run."""
    words = ("rev-list", "--count", "--branches", "--glob=refs/stas[h]", "--not", "HEAD", "--remotes")
    own = await _git(clone, *words, check=False)
    return own.code == 0 and own.output.strip() == "0"


async def _into(file: Path, path: str, *words: str) -> None:
    """Write the output of a git command to a private file, at once."""
    new = file.with_name(f"{file.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as output:
        await _git(path, *words, take=output.write)
    os.replace(new, file)


async def _ok(path: str, *words: str) -> bool:
    return (await _git(path, *words, check=False)).code == 0


async def _git(
    path: str,
    *words: str,
    check: bool = True,
    env: dict[str, str] | None = None,
    timeout: float = _PATIENCE,
    take: Callable[[bytes], object] | None = None,
) -> Done:
    done = await run(["git", *words], path, {**_ENV, **(env or {})}, timeout, take=take)
    if check and done.code != 0:
        raise Unavailable(f"git {words[0]} in {path}: {_said(done)}")
    return done


def _said(done: Done) -> str:
    if done.code is None:
        return "git did not end in time"
    lines = [line.strip() for line in (done.errors or done.output).splitlines() if line.strip()]
    return next((line for line in lines if line.startswith(("fatal:", "error:"))), lines[-1] if lines else "failed")
