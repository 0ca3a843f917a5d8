# SPDX-License-Identifier: GPL-3.0-or-later
"""Project files made from files of other tools."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from autovibe_fleet import importing
from fleet_core.environments import environment
from fleet_core.errors import InvalidInput, NotFound

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

COMPOSE = """
services:
  web:
    image: web:1
    command: serve --port 8000
    ports: ["8000:8000"]
    depends_on: {cache: {condition: service_healthy}}
  cache:
    command: redis-server
    healthcheck: {test: [CMD, redis-cli, ping], interval: 5s}
"""


def written(tmp_path: Path, name: str, text: str) -> str:
    folder = tmp_path / "My Shop!"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return importing.text_of(importing.read(folder / name), name)


@pytest.mark.parametrize("name", ["Procfile", "Procfile.dev", "procfile", "shop.procfile"])
def test_a_procfile(tmp_path: Path, name: str) -> None:
    text = written(tmp_path, name, "web: serve $PORT\nworker: work\n")
    found = environment(tomllib.loads(text), "/srv")
    assert (found.name, [spec.name for spec in found.processes]) == ("My-Shop", ["web", "worker"])
    assert text.startswith(f"# Made from {name}.\n# Note: worker: no PORT is set")


def test_a_procfile_with_its_env_file(tmp_path: Path) -> None:
    (tmp_path / "My Shop!").mkdir()
    (tmp_path / "My Shop!" / ".env").write_text("A=1\n")
    assert 'env_files = [".env"]' in written(tmp_path, "Procfile", "web: serve\n")


@pytest.mark.parametrize("name", ["compose.yaml", "docker-compose.yml"])
def test_a_compose_file(tmp_path: Path, name: str) -> None:
    text = written(tmp_path, name, COMPOSE)
    found = environment(tomllib.loads(text), "/srv")
    assert found.order() == ["My-Shop/cache", "My-Shop/web"]
    assert "# Note: web: image web:1 is not used; its program must be installed on this host.\n" in text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("compose.yaml", "a: [", "line 1: not YAML"),
        ("compose.yaml", "a: !!python/object:x {}", "line 1: not YAML: could not determine a constructor"),
        ("compose.yaml", "a: 1", "compose file: expected services"),
        ("compose.yaml", "services: {a: {command: x, depends_on: [a]}}", "processes depend on each other in a cycle"),
        ("Procfile", "x", "Procfile, line 1: expected NAME: COMMAND"),
        ("Makefile", "x:", "expected a Procfile or a compose file"),
    ],
)
def test_an_error_names_the_file(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        written(tmp_path, name, text)
    assert str(caught.value).startswith(f"{tmp_path / 'My Shop!' / name}: {message}")
    assert "\n" not in str(caught.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="Procfile: no such file"):
        importing.read(tmp_path / "Procfile")
    (tmp_path / "Procfile").write_bytes(b"\xff")
    with pytest.raises(InvalidInput, match="expected UTF-8 text"):
        importing.read(tmp_path / "Procfile")
