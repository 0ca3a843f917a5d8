# SPDX-License-Identifier: GPL-3.0-or-later
"""What the make targets of cloud-init templates do, in a folder of the test's own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.requirements import REPOSITORY

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDo2Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6 ada@example.com"


@pytest.fixture
def templates(tmp_path: Path) -> Templates:
    return Templates(tmp_path)


class Templates:
    """Calls .ci/template as the Makefile does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *words: str, fails: bool = False) -> str:
        done = subprocess.run(
            [sys.executable, str(REPOSITORY / ".ci" / "template"), *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env={**os.environ, "FLEET_STATE_DIR": str(self.folder / "state")},
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stderr if fails else done.stdout

    def fill_in(self, **values: str) -> None:
        env = self.folder / ".env"
        text = env.read_text()
        for name, value in values.items():
            text = re.sub(rf"^{name}=.*$", f'{name}="{value}"', text, flags=re.MULTILINE)
        env.write_text(text)


def test_list_names_every_template_and_what_it_sets_up(templates: Templates) -> None:
    lines = templates("list").splitlines()
    shipped = sorted(path.name.split(".")[0] for path in (REPOSITORY / "templates/cloud-init").glob("*.yml.j2"))
    assert [line.split()[0] for line in lines[: len(shipped)]] == shipped == ["agent", "hub", "nodejs", "python"]
    assert "python   Python 3.12 with pip, venv and uv" in lines


def test_show_prints_a_template_its_parts_and_its_values(templates: Templates) -> None:
    text = templates("show", "agent")
    assert "{% include 'parts/runners.yml.j2' %}" in text
    assert "#   parts/podman.yml.j2: Podman for the user" in text
    assert re.search(r"# Values: .*\bfleet_wheel\b.*\brunners\b", text)


def test_from_a_copy_to_user_data(templates: Templates) -> None:
    text = templates("copy", "nodejs")
    assert "wrote .env: fill in SSH_PUBLIC_KEY, GIT_NAME and GIT_EMAIL" in text
    assert "expected a public SSH key, found none; nobody could log in" in templates("render", "", "", fails=True)
    templates.fill_in(SSH_PUBLIC_KEY=KEY, GIT_NAME="Ada Lovelace", VM_NAME="shop")
    own = templates.folder / "cloud-init/parts/build.yml.j2"
    own.write_text(own.read_text().replace("jq", "jq, tmux"))
    assert templates("render").splitlines() == [
        "template nodejs: cloud-init/nodejs.yml.j2",
        "wrote cloud-init/shop/user-data, cloud-init/shop/meta-data",
    ]
    assert "same as before: cloud-init/shop/user-data" in templates("render", "nodejs", ".env")
    data = yaml.safe_load((templates.folder / "cloud-init/shop/user-data").read_text())
    assert "tmux" in data["packages"]
    assert "Ada Lovelace" in data["write_files"][0]["content"]
    assert "(your copy in cloud-init/)" in templates("list")
    again = templates("copy", "nodejs", fails=True)
    assert again == "cloud-init/nodejs.yml.j2 is there already; remove it to copy the shipped one again\n"


def test_errors_are_one_sentence(templates: Templates) -> None:
    assert templates("show", "pyton", fails=True) == 'template "pyton": not found, did you mean "python"?\n'
    assert templates("copy", "../python", fails=True).startswith('template "../python": not found')
    assert templates("copy", fails=True).startswith("TEMPLATE is missing: expected one of agent, hub, nodejs, python")
    assert templates("render", fails=True) == ".env: there is no such file; make copy-template writes one to fill in\n"
    templates("copy", "python")
    templates.fill_in(SSH_PUBLIC_KEY="ssh-rsa AAAAB3NzaC1yc2E...")
    wrong = templates("render", fails=True)
    assert "the ssh-rsa key is not complete" in wrong
    assert wrong.count("\n") == 1
    templates.fill_in(SSH_PUBLIC_KEY=KEY)
    own = templates.folder / "cloud-init/parts/build.yml.j2"
    own.write_text("pakages: [git]\n")
    wrong = templates("render", fails=True)
    assert re.search(r'line \d+: unknown key "pakages", did you mean "packages"\?\n$', wrong)
    assert wrong.count("\n") == 1
    with (templates.folder / ".env").open("a") as file:
        file.write("VM_MEM=1G\n")
    assert templates("render", fails=True) == '.env: unknown variable "VM_MEM", did you mean "VM_MEMORY"?\n'
