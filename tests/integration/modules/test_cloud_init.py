# SPDX-License-Identifier: GPL-3.0-or-later
"""The module cloud_init, its templates on every distribution, and the role."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from tests.integration.modules.plays import REPOSITORY, Play, Task, task
from tests.requirements import require_tool

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDo2Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6 ada@example.com"
TEMPLATES = ("python", "nodejs", "agent", "hub")
DISTRIBUTIONS = ("ubuntu-22.04", "ubuntu-24.04", "debian-12", "debian-13")
MAC = "52:54:00:12:34:02"
VALUES = {"ssh_public_keys": [KEY], "git_name": "Ada \"A\" {{ '{{' }} x }}", "git_email": "ada@example.com"}
SCHEMAS = REPOSITORY / "plugins/plugin_utils/cloud_init_schemas"


def cloud_init(play: Play, check_mode: bool = False, ignore_errors: bool = False, **options: Any) -> Task:
    return task("cloud_init", check_mode, ignore_errors, **{"dest": str(play.folder / "seeds"), **options})


def machine(template: str, distribution: str) -> str:
    return f"{template}-{distribution.replace('.', '')}"


def load(play: Play, name: str, file: str = "user-data") -> Any:
    return yaml.safe_load((play.folder / "seeds" / name / file).read_text(encoding="utf-8"))


def scripts(data: Mapping[str, Any]) -> dict[str, str]:
    found = {item["path"]: item["content"] for item in data["write_files"]}
    return {
        path: text for path, text in found.items() if path.startswith("/opt/autovibe/setup/") and path[-4:] != ".txt"
    }


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Play:
    """Every template for every distribution."""
    folder = tmp_path_factory.mktemp("rendered")
    play = Play(folder, folder / "state")
    wheel = folder / "autovibe_fleet-0.1.0-py3-none-any.whl"
    wheel.write_bytes(b"a wheel")
    tasks = [
        cloud_init(
            play,
            template=template,
            values={**VALUES, **({"fleet_wheel": str(wheel)} if template in ("agent", "hub") else {})},
            machines=[
                {"name": machine(template, name), "distribution": name, "mac_address": MAC} for name in DISTRIBUTIONS
            ],
            schema_check=False,
        )
        for template in TEMPLATES
    ]
    play([{**item, "diff": False} for item in tasks], FLEET_UNUSED="1")
    return play


@pytest.mark.parametrize(("template", "distribution"), list(itertools.product(TEMPLATES, DISTRIBUTIONS)))
class TestTemplates:
    def test_user_data_fits_the_schema_of_cloud_init(self, rendered: Play, template: str, distribution: str) -> None:
        data = load(rendered, machine(template, distribution))
        schema = json.loads((SCHEMAS / "schema-cloud-config-v1.json").read_text())
        assert [error.message for error in jsonschema.Draft4Validator(schema).iter_errors(data)] == []
        assert data["ssh_pwauth"] is False
        assert data["ssh_genkeytypes"] == ["ed25519"]
        (user,) = data["users"]
        assert (user["lock_passwd"], user["ssh_authorized_keys"]) == (True, [KEY])
        assert not set(user) & {"passwd", "plain_text_passwd", "hashed_passwd"}

    def test_network_configuration_and_meta_data_fit(self, rendered: Play, template: str, distribution: str) -> None:
        name = machine(template, distribution)
        network = load(rendered, name, "network-config")
        schema = json.loads((SCHEMAS / "schema-network-config-v2.json").read_text())
        jsonschema.Draft7Validator(schema).validate(network)
        assert network["ethernets"]["net0"]["match"] == {"macaddress": MAC}
        meta = load(rendered, name, "meta-data")
        assert meta["local-hostname"] == name
        assert re.fullmatch(re.escape(name) + "-[0-9a-f]{12}", meta["instance-id"])

    def test_scripts_are_sound(self, rendered: Play, template: str, distribution: str) -> None:
        found = scripts(load(rendered, machine(template, distribution)))
        assert "/opt/autovibe/setup/run" in found
        for path, text in found.items():
            assert "{{" not in text.replace("{{.Host", "")
            done = subprocess.run(["sh", "-n"], input=text, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{path}: {done.stderr}"

    def test_nothing_is_piped_from_the_network_into_a_shell(
        self, rendered: Play, template: str, distribution: str
    ) -> None:
        text = (rendered.folder / "seeds" / machine(template, distribution) / "user-data").read_text(encoding="utf-8")
        assert not re.search(r"(curl|wget)[^\n]*\|", text)
        assert not re.search(r"https?://(?!registry)", re.sub(r"#.*", "", text))

    def test_cloud_init_itself_accepts_it(self, rendered: Play, template: str, distribution: str) -> None:
        program = require_tool("cloud-init", "to check user data by its own schema")
        path = rendered.folder / "seeds" / machine(template, distribution) / "user-data"
        command = [program, "schema", "--config-file", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr


def test_scripts_satisfy_shellcheck(rendered: Play) -> None:
    program = require_tool("shellcheck", "to check the scripts of templates")
    texts = {
        text: path
        for template, distribution in itertools.product(TEMPLATES, DISTRIBUTIONS)
        for path, text in scripts(load(rendered, machine(template, distribution))).items()
    }
    for text, path in texts.items():
        command = [program, "-s", "sh", "-S", "warning", "-e", "SC2043", "-"]  # a loop over what may be one word
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{path}:\n{done.stdout}"


def test_python_comes_from_the_distribution_or_from_uv(rendered: Play) -> None:
    for distribution in DISTRIBUTIONS:
        data = load(rendered, machine("python", distribution))
        text = scripts(data)["/opt/autovibe/setup/30-python.sh"]
        assert ("python3.12" in data["packages"]) == (distribution == "ubuntu-24.04")
        assert ("uv python install" in text) == (distribution != "ubuntu-24.04")


@pytest.mark.parametrize(("template", "least"), [("nodejs", 20), ("agent", 22)])
def test_nodejs_comes_from_the_distribution_where_it_is_new_enough(rendered: Play, template: str, least: int) -> None:
    for distribution in DISTRIBUTIONS:
        data = load(rendered, machine(template, distribution))
        own = distribution == "debian-13" and least == 20
        assert ("nodejs" in data["packages"]) == own
        assert ("/opt/autovibe/setup/20-nodejs.sh" in scripts(data)) != own


def test_downloads_have_hashes(rendered: Play) -> None:
    for template, distribution in itertools.product(TEMPLATES, DISTRIBUTIONS):
        files = {
            item["path"]: item["content"] for item in load(rendered, machine(template, distribution))["write_files"]
        }
        for path, text in files.items():
            if path.endswith(".txt"):
                assert text.count("==") * 2 <= text.count("--hash=sha256:"), path
            if path.endswith("package-lock.json"):
                packages = {key: item for key, item in json.loads(text)["packages"].items() if key}
                assert all(item["integrity"].startswith("sha512-") for item in packages.values())
            if path.endswith(".sh") and re.search(r"pip install(?!.*wheels)", text.replace("\\\n", "")):
                assert "--require-hashes" in text, path


def test_user_data_of_python_is_what_it_was(rendered: Play) -> None:
    """A small picture; the rest is compared by its parts."""
    data = load(rendered, "python-debian-13")
    assert list(data) == [
        *("hostname", "manage_etc_hosts", "timezone", "locale", "ssh_genkeytypes", "ssh_deletekeys", "disable_root"),
        *("ssh_pwauth", "users", "package_update", "package_upgrade", "packages", "write_files", "runcmd"),
    ]
    assert [item["path"] for item in data["write_files"]] == [
        "/home/dev/.gitconfig",
        "/opt/autovibe/setup/run",
        "/opt/autovibe/setup/uv.txt",
        "/opt/autovibe/setup/20-uv.sh",
        "/opt/autovibe/setup/30-python.sh",
    ]
    assert data["write_files"][0]["content"] == '[user]\n\tname = "Ada \\"A\\" {{ x }}"\n\temail = "ada@example.com"\n'
    assert data["runcmd"] == [["/opt/autovibe/setup/run"]]


def test_the_wheel_of_fleetd_travels_in_user_data(rendered: Play) -> None:
    data = load(rendered, "agent-debian-12")
    (wheel,) = [item for item in data["write_files"] if item["path"].endswith(".whl")]
    assert (wheel["path"], wheel["encoding"]) == ("/opt/autovibe/wheels/autovibe_fleet-0.1.0-py3-none-any.whl", "b64")
    assert wheel["path"] in scripts(data)["/opt/autovibe/setup/40-fleetd.sh"]


def test_steps_run_once_and_end_at_the_first_that_fails(rendered: Play, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.write_text(scripts(load(rendered, "python-debian-13"))["/opt/autovibe/setup/run"])
    for name, text in {"10-a": "echo a >>log", "20-b": "test -e ready", "30-c": "echo c >>log"}.items():
        (tmp_path / f"{name}.sh").write_text(text)
    done = subprocess.run(["sh", str(run)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "autovibe: 20-b.sh failed\n")
    (tmp_path / "ready").touch()
    subprocess.run(["sh", str(run)], capture_output=True, check=True)
    assert (tmp_path / "log").read_text() == "a\nc\n"


def test_mirrors_reach_the_steps(play: Play, tmp_path: Path) -> None:
    urls = {
        "pip_index": "https://a.example/simple",
        "npm_registry": "https://b.example/",
        "python_mirror": "http://c:1/x",
    }
    play([cloud_init(play, template="python", values={**VALUES, **urls, "name": "a"})])
    for path, text in scripts(load(play, "a")).items():
        if path.endswith(("/run", "/mirrors")):
            (tmp_path / Path(path).name).write_text(text)
    (tmp_path / "10-show.sh").write_text("env >seen\n")
    subprocess.run(["sh", str(tmp_path / "run")], check=True, capture_output=True)
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines() if "=" in line)
    names = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "NPM_CONFIG_REGISTRY", "UV_PYTHON_INSTALL_MIRROR")
    assert [seen[name] for name in names] == [urls["pip_index"], *urls.values()]


def test_files_are_private_and_written_once(play: Play) -> None:
    again = cloud_init(
        play, template="python", values={**VALUES, "name": "one", "mac_address": MAC}, schema_check=False
    )
    foreseen, first, second = play([{**again, "check_mode": True}, again, again])
    folder = play.folder / "seeds" / "one"
    assert (
        foreseen["actions"]
        == first["actions"]
        == [f"write {folder}/{name}" for name in ("user-data", "meta-data", "network-config")]
    )
    assert [item["after_header"] for item in foreseen["diff"]] == [item.split()[1] for item in first["actions"]]
    assert foreseen["changed"]
    assert first["changed"]
    assert not second["changed"]
    assert second["diff"] == []
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert first["machines"] == [
        {
            "name": "one",
            "distribution": "ubuntu-24.04",
            "user": "dev",
            "cpus": 2,
            "memory": 4 * 1024**3,
            "disk": 20 * 1024**3,
        }
    ]
    (folder / "meta-data").chmod(0o644)
    changed = cloud_init(play, template="python", values={**VALUES, "name": "one"}, schema_check=False)
    third, gone, still = play(
        [
            changed,
            {**changed, "autovibe.fleet.cloud_init": {**changed["autovibe.fleet.cloud_init"], "state": "absent"}},
            changed | {"check_mode": True},
        ]
    )
    assert third["actions"] == [f"rewrite {folder}/meta-data", f"remove {folder}/network-config"]
    assert gone["actions"] == [f"remove {folder}/user-data", f"remove {folder}/meta-data"]
    assert not folder.exists()
    assert still["changed"]


def test_parts_and_mime(play: Play) -> None:
    script = "#!/bin/sh\necho hello\n"
    options = {"template": "python", "values": VALUES, "schema_check": False}
    play(
        [
            cloud_init(play, machines=[{"name": "two"}], parts=[script], **options),
            cloud_init(play, machines=[{"name": "many"}], format="mime", **options),
        ]
    )
    two = (play.folder / "seeds/two/user-data").read_text()
    assert re.findall(r"Content-Type: (text/[a-z-]+)", two) == ["text/cloud-config", "text/x-shellscript"]
    many = (play.folder / "seeds/many/user-data").read_text()
    assert re.findall(r"Content-Type: (text/[a-z-]+)", many) == ["text/cloud-config"] * 4


WRONG: dict[str, tuple[str, str]] = {
    "bad YAML": ("#cloud-config\npackages: [git\nusers: x\n", "line 3: bad YAML: "),
    "an unknown key": (
        "#cloud-config\nssh_authorized_keys: [k]\n\npakages: [git]\n",
        'line 4: unknown key "pakages", did you mean "packages"?',
    ),
    "a wrong value": (
        "#cloud-config\nssh_authorized_keys: [k]\nusers:\n  - name: a\n    lock_passwd: maybe\n",
        "line 5: users[0].lock_passwd: expected true or false, found str 'maybe'",
    ),
    "a key twice": (
        "#cloud-config\nssh_authorized_keys: [k]\npackages: [a]\npackages: [b]\n",
        'line 4: the key "packages" is there twice; line 3 has it, too',
    ),
    "no header": ("packages: [git]\n", "expected #cloud-config as the first line, found 'packages: [git]'"),
    "nobody can log in": ("#cloud-config\npackages: [git]\n", "nobody could log in"),
    "a password": ("#cloud-config\nssh_authorized_keys: [k]\npassword: hush\n", "password: a password does not belong"),
    "an undefined variable": ("#cloud-config\npackages: [{{ machine.pakages }}]\n", "pakages"),
    "a missing part": ("#cloud-config\n{% include 'parts/bse.yml.j2' %}\n", "bse.yml.j2"),
}


def test_wrong_templates_fail_with_a_sentence_and_write_nothing(play: Play) -> None:
    tasks = []
    for number, (text, _message) in enumerate(WRONG.values()):
        (play.folder / f"t{number}.yml.j2").write_text(text)
        options = {"template": str(play.folder / f"t{number}.yml.j2"), "values": {**VALUES, "name": "a"}}
        tasks.append(cloud_init(play, ignore_errors=True, **options))
    for result, (what, (_text, message)) in zip(play(tasks), WRONG.items(), strict=True):
        assert message in result["msg"], what
        assert "\n" not in result["msg"], what
        assert "hush" not in result["msg"]
    assert not (play.folder / "seeds").exists()


def test_wrong_options_fail_with_a_sentence(play: Play) -> None:
    (play.folder / ".env").write_text("VM_NAME=a\nVM_MEMORY=4 G\n")
    good = {"template": "python", "values": {**VALUES, "name": "a"}}
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "cloud_init: expected template or seeds, found both or neither"),
        ({**good, "template": "pyton"}, 'cloud-init template "pyton": not found, did you mean "python"?'),
        ({**good, "template": "/nowhere/a.j2"}, "/nowhere/a.j2: there is no such file on the control node"),
        ({"template": "python", "values": {"name": "a"}}, "ssh_public_keys: expected a public SSH key, found none"),
        ({**good, "env_file": str(play.folder / ".env")}, ".env line 2: VM_MEMORY: the value has blanks in it"),
        ({**good, "machines": [{"name": "b"}, {"name": "b"}]}, 'machine "b": there are two of this name'),
        ({**good, "parts": ["echo"]}, "expected a first line such as #cloud-config"),
        ({"seeds": [{"name": "a", "user_data": {"pakages": []}}]}, 'a: user-data: unknown key "pakages"'),
        ({"seeds": [{"name": "../a", "user_data": "#!/bin/sh\n"}]}, "seed name '../a': expected a letter or digit"),
        ({"seeds": [{"name": "a", "userdata": ""}]}, 'seeds[0]: unknown key "userdata", did you mean "user_data"?'),
    ]
    results = play([cloud_init(play, ignore_errors=True, **options) for options, _message in cases])
    for result, (_options, message) in zip(results, cases, strict=True):
        assert message in result["msg"]
        assert "\n" not in result["msg"]


def test_values_come_from_the_file_then_from_all_then_from_the_machine(play: Play) -> None:
    (play.folder / ".env").write_text(f'VM_NAME=a\nVM_CPUS=3\nVM_MEMORY=1G\nSSH_PUBLIC_KEY="{KEY}"\n')
    options = {
        "template": "python",
        "env_file": str(play.folder / ".env"),
        "values": {"cpus": 4},
        "schema_check": False,
    }
    one, two = play([cloud_init(play, **options), cloud_init(play, machines=[{"name": "b", "cpus": 5}], **options)])
    assert [(item["machines"][0]["name"], item["machines"][0]["cpus"]) for item in (one, two)] == [("a", 4), ("b", 5)]
    assert two["machines"][0]["memory"] == 1024**3


def test_the_schema_command_of_the_host_has_a_say(play: Play) -> None:
    """A stand-in that refuses: what the real one says is tested with the templates."""
    folder = play.folder / "bin"
    folder.mkdir()
    (folder / "cloud-init").write_text('#!/bin/sh\ncat "$3" >"$0.seen"\necho "Error: not today"\nexit 1\n')
    (folder / "cloud-init").chmod(0o755)
    options = {"template": "python", "values": {**VALUES, "name": "a"}}
    (result,) = play([cloud_init(play, ignore_errors=True, **options)], PATH=f"{folder}:{os.environ['PATH']}")
    assert result["msg"].endswith("seeds/a/user-data: cloud-init schema says: Error: not today")
    assert (folder / "cloud-init.seen").read_text().startswith("#cloud-config\nhostname: a\n")
    assert not (play.folder / "seeds").exists()


def test_the_role_writes_seeds_of_many_machines(play: Play) -> None:
    variables = {
        "cloud_init_template": "nodejs",
        "cloud_init_dest": str(play.folder / "seeds"),
        "cloud_init_values": VALUES,
        "cloud_init_machines": [{"name": "a"}, {"name": "b", "distribution": "bookworm"}],
        "cloud_init_schema_check": False,
    }
    role = {"ansible.builtin.include_role": {"name": "autovibe.fleet.cloud_init"}, "vars": variables}
    show = {"ansible.builtin.debug": {"msg": "{{ [cloud_init_seeds, cloud_init_rendered] }}"}}
    seeds, machines = play([role, show])[-1]["msg"]
    assert [seed["name"] for seed in seeds] == ["a", "b"]
    assert [item["distribution"] for item in machines] == ["ubuntu-24.04", "debian-12"]
    assert load(play, "b")["hostname"] == "b"
    assert not any(result.get("changed") for result in play([role]))


def test_documents_are_returned_where_no_file_is_wanted(play: Play) -> None:
    values = {"name": "dev-1", "ssh_public_keys": [KEY]}
    rendered, failed, missing = play(
        [
            task("cloud_init", True, state="rendered", template="python", values=values),
            task("cloud_init", ignore_errors=True, state="rendered", template="python", values={"name": "dev-1"}),
            task("cloud_init", ignore_errors=True, template="python", values=values),
        ]
    )
    assert not rendered["changed"]
    (seed,) = rendered["seeds"]
    assert seed["user_data"].startswith("#cloud-config\n")
    assert "hostname: dev-1" in seed["user_data"]
    assert KEY.split()[1] in seed["user_data"]
    assert rendered["machines"][0]["cpus"] == 2
    assert "ssh_public_keys" in failed["msg"]
    assert "dest" in missing["msg"]
