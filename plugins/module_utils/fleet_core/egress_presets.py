# SPDX-License-Identifier: GPL-3.0-or-later
"""Presets: services that policies open by one word, and what that opens by its nature.

A preset names as little as the service needs. Telemetry, and hosts where anybody can leave things, are presets of their
own or left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from .egress_entries import Entry, entry


@dataclass(frozen=True)
class Preset:
    """title: what it is for. opens: what else a machine can do with it. entries: as in a policy.

    uploads: whether what a machine sends there can get to strangers.
    """

    name: str
    title: str
    opens: str
    entries: tuple[str, ...]
    uploads: bool = True


_MODEL = "Whatever a machine reads can be sent to the model, with any account whose key it has; files can be uploaded."
_PUBLISH = "Anybody with a token can publish, and so leave data there; anybody's packages run code when installed."
_READ = "Downloads only; the names of what is asked for are seen by the mirrors."
_SHARED = "The hosts serve what anybody has put there."

_MODELS = (
    Preset(
        "claude",
        "Claude and Claude Code: the API, signing in, updates",
        _MODEL,
        ("api.anthropic.com", "claude.ai", "platform.claude.com", "console.anthropic.com"),
    ),
    Preset(
        "claude-telemetry",
        "What Claude Code reports of its use and its errors",
        "Error reports may hold parts of what a machine works on; the last two hosts take reports for anybody.",
        ("statsig.anthropic.com", "sentry.io", "http-intake.logs.us5.datadoghq.com"),
    ),
    Preset(
        "openai",
        "OpenAI and Codex: the API, signing in, ChatGPT's backend",
        _MODEL,
        ("api.openai.com", "auth.openai.com", "chatgpt.com"),
    ),
    Preset(
        "gemini",
        "Google's Gemini, with an API key or an account",
        _MODEL,
        (
            *("generativelanguage.googleapis.com", "cloudcode-pa.googleapis.com", "oauth2.googleapis.com"),
            *("accounts.google.com", "www.googleapis.com"),
        ),
    ),
    Preset(
        "google-cloud",
        "Google Cloud: Vertex AI, and every other API, storage included",
        "Everything that Google's APIs offer, with any account: any bucket of anybody can be written.",
        ("googleapis.com", "accounts.google.com", "cloud.google.com", "gcr.io", "pkg.dev"),
    ),
    Preset(
        "qwen",
        "Qwen: signing in, the API of both regions",
        _MODEL,
        ("chat.qwen.ai", "portal.qwen.ai", "dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com"),
    ),
    Preset(
        "opencode",
        "opencode: its list of models, its own models, shared sessions",
        f"{_MODEL} A session can be shared with anybody.",
        ("models.dev", "opencode.ai"),
    ),
    Preset("mistral", "Mistral: the API", _MODEL, ("api.mistral.ai",)),
    Preset("deepseek", "DeepSeek: the API", _MODEL, ("api.deepseek.com",)),
    Preset("openrouter", "OpenRouter: models of many makers", _MODEL, ("openrouter.ai",)),
    Preset("xai", "xAI: the API", _MODEL, ("api.x.ai",)),
    Preset(
        "huggingface",
        "Hugging Face: models and data sets",
        "Anybody with a token can push repositories. Its hosts below hf.co serve files of everybody.",
        ("huggingface.co", "hf.co"),
    ),
)
_CODE = (
    Preset(
        "github",
        "GitHub: git over HTTPS and SSH, the API, raw files, releases",
        "Anybody with a token or key can push to any repository, write issues and gists.",
        (
            *("github.com:22,443", "raw.githubusercontent.com", "objects.githubusercontent.com"),
            *("release-assets.githubusercontent.com", "github-releases.githubusercontent.com"),
            *("media.githubusercontent.com", "github-cloud.githubusercontent.com"),
        ),
    ),
    Preset(
        "github-packages",
        "GitHub's registries of packages and container images",
        _PUBLISH,
        ("ghcr.io", "pkg.github.com", "pkg-containers.githubusercontent.com"),
    ),
    Preset(
        "github-copilot",
        "GitHub Copilot",
        _MODEL,
        ("githubcopilot.com", "copilot-proxy.githubusercontent.com", "api.github.com", "github.com"),
    ),
    Preset(
        "gitlab",
        "GitLab.com: git over HTTPS and SSH, the API, its registry",
        "Anybody with a token or key can push to any repository, write issues and snippets.",
        ("gitlab.com:22,443",),
    ),
    Preset(
        "bitbucket",
        "Bitbucket: git over HTTPS and SSH, the API",
        "Anybody with a token or key can push to any repository and write snippets.",
        ("bitbucket.org:22,443",),
    ),
)
_PACKAGES = (
    Preset("pypi", "Packages of Python: pip, uv", _PUBLISH, ("pypi.org", "files.pythonhosted.org")),
    Preset("npm", "Packages of Node.js: npm, pnpm", _PUBLISH, ("registry.npmjs.org",)),
    Preset("yarn", "Packages of Node.js: yarn", _PUBLISH, ("registry.yarnpkg.com", "repo.yarnpkg.com")),
    Preset("nodejs", "Node.js itself, and headers to build with", _READ, ("nodejs.org",), uploads=False),
    Preset(
        "crates",
        "Crates of Rust",
        _PUBLISH,
        ("crates.io",),
    ),
    Preset("rustup", "Tool chains of Rust", _READ, ("static.rust-lang.org", "sh.rustup.rs"), uploads=False),
    Preset(
        "golang",
        "Modules and tool chains of Go",
        "The proxy fetches any public module: the path that is asked for can carry a message to its owner.",
        ("proxy.golang.org", "sum.golang.org", "go.dev", "dl.google.com"),
    ),
    Preset("rubygems", "Gems of Ruby", _PUBLISH, ("rubygems.org",)),
    Preset(
        "maven",
        "Packages of Java: Maven Central, Gradle's plugins",
        _READ,
        ("repo.maven.apache.org", "repo1.maven.org", "plugins.gradle.org", "services.gradle.org"),
        uploads=False,
    ),
    Preset(
        "packagist",
        "Packages of PHP: composer",
        f"{_READ} Most archives lie at GitHub, which is a preset of its own.",
        ("packagist.org", "getcomposer.org"),
        uploads=False,
    ),
    Preset("nuget", "Packages of .NET", _PUBLISH, ("api.nuget.org", "globalcdn.nuget.org")),
    Preset(
        "conda",
        "Packages of Anaconda and conda-forge",
        _PUBLISH,
        ("repo.anaconda.com", "conda.anaconda.org", "anaconda.org"),
    ),
    Preset(
        "docker-hub",
        "Container images of Docker Hub",
        f"{_PUBLISH} {_SHARED}",
        (
            *("registry-1.docker.io", "auth.docker.io", "index.docker.io", "production.cloudflare.docker.com"),
            *("docker-images-prod.6aa30f8b08e16409b46e0173d6de2f56.r2.cloudflarestorage.com",),
        ),
    ),
    Preset("quay", "Container images of Quay", _PUBLISH, ("quay.io",)),
    Preset("galaxy", "Collections and roles of Ansible Galaxy", _PUBLISH, ("galaxy.ansible.com",)),
    Preset(
        "playwright",
        "Browsers for Playwright",
        _READ,
        ("cdn.playwright.dev", "playwright.download.prss.microsoft.com"),
        uploads=False,
    ),
)
_SYSTEMS = (
    Preset(
        "debian",
        "Packages of Debian",
        _READ,
        (
            *("deb.debian.org:80,443", "security.debian.org:80,443", "ftp.debian.org:80,443"),
            "snapshot.debian.org:80,443",
        ),
        uploads=False,
    ),
    Preset(
        "ubuntu",
        "Packages of Ubuntu",
        _READ,
        (
            *("archive.ubuntu.com:80,443", "security.ubuntu.com:80,443", "ports.ubuntu.com:80,443"),
            "changelogs.ubuntu.com:80,443",
        ),
        uploads=False,
    ),
    Preset(
        "launchpad",
        "Personal package archives of Ubuntu, and their keys",
        f"{_SHARED} The key server takes keys of anybody.",
        ("ppa.launchpadcontent.net", "api.launchpad.net", "keyserver.ubuntu.com:80,443"),
    ),
    Preset("snap", "Snaps", _SHARED, ("api.snapcraft.io", "snapcraftcontent.com")),
    Preset("alpine", "Packages of Alpine Linux", _READ, ("dl-cdn.alpinelinux.org:80,443",), uploads=False),
    Preset(
        "fedora",
        "Packages of Fedora and of EPEL, from its own hosts",
        f"{_READ} The list of mirrors names others, which stay closed.",
        ("mirrors.fedoraproject.org", "dl.fedoraproject.org", "download.fedoraproject.org"),
        uploads=False,
    ),
    Preset("rocky", "Packages of Rocky Linux", _READ, ("dl.rockylinux.org", "mirrors.rockylinux.org"), uploads=False),
    Preset("alma", "Packages of AlmaLinux", _READ, ("repo.almalinux.org", "mirrors.almalinux.org"), uploads=False),
    Preset("proxmox", "Packages of Proxmox VE", _READ, ("download.proxmox.com:80,443",), uploads=False),
    Preset("docker-packages", "Docker's own packages of its engine", _READ, ("download.docker.com",), uploads=False),
    Preset(
        "time",
        "The time by NTP, from the public pool",
        "UDP to the servers that the pool names, which are anybody's.",
        ("pool.ntp.org:123/udp", "ntp.ubuntu.com:123/udp", "time.cloudflare.com:123/udp"),
    ),
    Preset(
        "certificates",
        "Lists of revoked certificates and issuers, over plain HTTP",
        "Requests that hold what a machine chose, to the servers of issuers.",
        (
            *("lencr.org:80", "ocsp.digicert.com:80", "crl3.digicert.com:80", "crl4.digicert.com:80"),
            *("cacerts.digicert.com:80", "pki.goog:80", "ocsp.sectigo.com:80", "crl.sectigo.com:80"),
        ),
    ),
)
PRESETS = {preset.name: preset for preset in (*_MODELS, *_CODE, *_PACKAGES, *_SYSTEMS)}

# Resolvers over HTTPS and TLS that anybody may use: with one of them a machine looks up any name unseen.
# "use-application-dns.net" and "mask.icloud.com" are asked by clients that want to know whether they may.
DOH_NAMES: tuple[str, ...] = (
    *("adguard-dns.com", "dns.alidns.com", "applied-privacy.net", "blahdns.com", "canadianshield.cira.ca"),
    *("cleanbrowsing.org", "cloudflare-dns.com", "cloudflare-gateway.com", "comss.one", "controld.com"),
    *("dns-family.adguard.com", "dns-unfiltered.adguard.com", "dns.adguard.com", "dns.aa.net.uk", "dns.brahma.world"),
    *("dns.cloudflare.com", "dns.digitale-gesellschaft.ch", "dns.google", "dns.google.com", "dns.hostux.net"),
    *("dns.mullvad.net", "dns.nextdns.io", "dns.njal.la", "dns.pub", "dns.rubyfish.cn", "dns.sb", "dns.switch.ch"),
    *("dns.tuna.tsinghua.edu.cn", "dns.twnic.tw", "dns0.eu"),
    *("dns4all.eu", "dns4.eu", "dnsforge.de", "dnspod.cn", "dnswarden.com", "doh.360.cn", "doh.dns.sb"),
    *("doh.familyshield.opendns.com", "doh.ffmuc.net", "doh.la.ahadns.net", "doh.li", "doh.libredns.gr"),
    *("doh.opendns.com", "doh.pub", "doh.tiar.app", "doh.tiarap.org", "doh.xfinity.com", "doh.umbrella.com"),
    *("freedns.controld.com", "public.dns.iij.jp", "jp.tiar.app", "libredns.gr", "mask-h2.icloud.com"),
    *("mask.icloud.com", "mozilla.cloudflare-dns.com", "nextdns.io", "one.one.one.one", "opennic.org", "quad9.net"),
    *("rethinkdns.com", "uncensoreddns.org", "use-application-dns.net"),
)
DOH4: tuple[str, ...] = (
    *("1.0.0.1/32", "1.0.0.2/32", "1.0.0.3/32", "1.1.1.1/32", "1.1.1.2/32", "1.1.1.3/32", "1.12.12.12/32"),
    *("8.8.4.4/32", "8.8.8.8/32", "9.9.9.9/32", "9.9.9.10/32", "9.9.9.11/32", "9.9.9.12/32", "45.90.28.0/22"),
    *("76.76.2.0/24", "76.76.10.0/24", "94.140.14.0/24", "94.140.15.0/24", "101.101.101.101/32", "119.29.29.29/32"),
    *("120.53.53.53/32", "130.59.31.248/32", "130.59.31.251/32", "149.112.112.0/24", "149.112.121.0/24"),
    *("149.112.122.0/24", "162.159.36.0/24", "162.159.46.0/24", "172.64.36.0/24", "172.64.37.0/24"),
    *("185.222.222.222/32", "185.228.168.0/24", "185.228.169.0/24", "193.110.81.0/24", "185.253.5.0/24"),
    *("194.242.2.0/24", "208.67.220.0/24", "208.67.222.0/24", "223.5.5.5/32", "223.6.6.6/32"),
)
DOH6: tuple[str, ...] = (
    *("2001:4860:4860::/64", "2606:4700:4700::/64", "2606:1a40::/48", "2606:1a40:1::/48", "2620:119:35::/48"),
    *("2620:119:53::/48", "2620:fe::/48", "2a07:a8c0::/32", "2a07:a8c1::/32", "2a07:e340::/48", "2a09::/128"),
    *("2a0d:2a00:1::/48", "2a0d:2a00:2::/48", "2a10:50c0::/32", "2a11::/128", "2400:3200::1/128"),
    *("2400:3200:baba::1/128", "2402:4e00::/128", "2402:4e00:1::/128"),
)


@cache
def preset_entries(name: str) -> tuple[Entry, ...]:
    """Return what a preset opens."""
    return tuple(entry(f"preset {name}", text) for text in PRESETS[name].entries)


@cache
def known_domains() -> frozenset[str]:
    """Return all domains that presets open."""
    return frozenset(found.value for name in PRESETS for found in preset_entries(name) if found.kind == "domain")


def markdown(presets: Iterable[Preset] = tuple(PRESETS.values())) -> str:
    """Return the table of presets of the documentation."""
    rows = ["| preset | for | what it opens | takes uploads | by nature |", "|---|---|---|---|---|"]
    for preset in presets:
        entries = ", ".join(f"`{found.text}`" for found in preset_entries(preset.name))
        uploads = "yes" if preset.uploads else "no"
        rows.append(f"| `{preset.name}` | {preset.title} | {entries} | {uploads} | {preset.opens} |")
    return "\n".join(rows) + "\n"
