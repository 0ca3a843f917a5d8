# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of the DNS as policies hold them: lower case, without a dot at the end, IDNs in their xn-- form."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from .errors import InvalidInput
from .names import describe, nearest

# RFC 1035 and RFC 1123, and the underscore, which real host names have.
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_LONGEST = 253
_SHORT = 7  # shorter names are alike without anybody's slip
# IDNA 2003 maps these to others, IDNA 2008 does not: the two make different domains of them (RFC 5894, 7.2).
_DEVIATIONS = frozenset("\u00df\u03c2\u200c\u200d")

# Below these, anybody gets a name: allowing one of them as a whole opens sites of strangers. The second levels of
# countries, and hosting whose customers are told apart by the name (an excerpt of https://publicsuffix.org/list/).
PUBLIC_SUFFIXES = frozenset(
    (
        *("ac.at", "ac.il", "ac.in", "ac.jp", "ac.kr", "ac.nz", "ac.uk", "ac.za", "co.at", "co.id", "co.il"),
        *("co.in", "co.jp", "co.kr", "co.nz", "co.th", "co.uk", "co.za", "com.ar", "com.au", "com.bd"),
        *("com.br", "com.cn", "com.co", "com.eg", "com.hk", "com.mx", "com.my", "com.ng", "com.pe", "com.ph"),
        *("com.pk", "com.sa", "com.sg", "com.tr", "com.tw", "com.ua", "com.vn", "edu.au", "edu.cn", "edu.pl"),
        *("gov.au", "gov.br", "gov.cn", "gov.in", "gov.uk", "ltd.uk", "me.uk", "ne.jp", "net.au", "net.br"),
        *("net.cn", "net.il", "net.nz", "net.uk", "nhs.uk", "or.at", "or.jp", "or.kr", "org.au", "org.br"),
        *("org.cn", "org.il", "org.in", "org.nz", "org.uk", "org.za", "plc.uk", "sch.uk"),
        *("amazonaws.com", "appspot.com", "awsapprunner.com", "azureedge.net", "azurefd.net"),
        *("azurestaticapps.net", "azurewebsites.net", "b-cdn.net", "blob.core.windows.net", "blogspot.com"),
        *("cloudapp.azure.com", "cloudapp.net", "cloudflare.net", "cloudfront.net", "cloudfunctions.net"),
        *("core.windows.net", "deno.dev", "digitaloceanspaces.com", "duckdns.org", "dyndns.org"),
        *("elasticbeanstalk.com", "fastly.net", "firebaseapp.com", "fly.dev", "freeddns.org", "github.io"),
        *("githubpreview.dev", "githubusercontent.com", "gitlab.io", "glitch.me", "herokuapp.com", "hf.space"),
        *("loca.lt", "localhost.run", "localtest.me", "lhr.life", "netlify.app", "ngrok-free.app"),
        *("ngrok-free.dev", "ngrok.app", "ngrok.dev", "ngrok.io", "nip.io", "no-ip.org", "ondigitalocean.app"),
        *("onrender.com", "pages.dev", "r2.dev", "railway.app", "readthedocs.io", "repl.co", "replit.app"),
        *("replit.dev", "run.app", "serveo.net", "sslip.io", "supabase.co", "surge.sh", "translate.goog"),
        *("trycloudflare.com", "up.railway.app", "vercel.app", "web.app", "web.core.windows.net"),
        *("windows.net", "workers.dev", "xip.io"),
    )
)


def domain(where: str, value: object) -> str:
    """Return a domain as it is kept. "*.example.org" is example.org, for a domain covers all that is below it.

    Raises InvalidInput for what is no name of the DNS, for addresses however they are written, and for names that two
    versions of IDNA understand differently.
    """
    if not isinstance(value, str):
        raise InvalidInput(f"{where}: expected a domain such as example.org, found {describe(value)}")
    text = value.strip()
    name = _ascii(where, text[2:] if text.startswith("*.") else text)
    name = name[:-1] if name.endswith(".") else name
    if "*" in name:
        raise InvalidInput(f'{where}: "*" may only stand first, as in "*.example.org", found {describe(value)}')
    labels = name.split(".")
    if not name or len(name) > _LONGEST or not all(_LABEL.fullmatch(label) for label in labels):
        raise InvalidInput(f"{where}: expected a domain such as example.org, found {describe(value)}")
    if _NUMBER.fullmatch(labels[-1]):  # 127.1, 0x7f.1, 2130706433: resolvers take these for addresses
        raise InvalidInput(f"{where}: expected a domain that does not end in a number, found {describe(value)}")
    return name


def check_whole(where: str, name: str) -> str:
    """Return a domain unless it is a public suffix. Raises InvalidInput."""
    if "." not in name or name in PUBLIC_SUFFIXES:
        raise InvalidInput(
            f'{where}: "{name}" is a public suffix, under which anybody gets a name: name what is below it, or give '
            f"{{domain: {name}, force: true}}"
        )
    return name


def check_spelling(where: str, name: str, known: Iterable[str]) -> str:
    """Return a domain unless it is one slip away from one that is known and is none of them.

    A slip is a letter too many, too few, another or two that have changed places. Raises InvalidInput.
    """
    domains = frozenset(known)
    if covered(name, domains):
        return name
    tails = {part.count("."): part for part in parents(name) if len(part) >= _SHORT}
    near = [other for other in domains if _one_slip(tails.get(other.count("."), ""), other)]
    if near:
        raise InvalidInput(
            f'{where}: "{name}" is spelt almost like "{min(near)}", did you mean that? '
            f"If not, give {{domain: {name}, force: true}}"
        )
    return name


def covers(above: str, name: str) -> bool:
    """Tell whether a domain is the other or above it."""
    return name == above or name.endswith("." + above)


def covered(name: str, domains: Iterable[str]) -> bool:
    """Tell whether one of the domains covers the name."""
    if not isinstance(domains, (set, frozenset)):
        domains = frozenset(domains)
    return any(part in domains for part in parents(name))


@lru_cache(maxsize=8192)
def parents(name: str) -> tuple[str, ...]:
    """Return the name and the domains above it: a.example.org, example.org, org."""
    labels = name.split(".")
    return tuple(".".join(labels[first:]) for first in range(len(labels)))


def widest(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names that no other of them covers, in the order of the alphabet."""
    whole = frozenset(names)
    return tuple(sorted(name for name in whole if not any(part in whole for part in parents(name)[1:])))


def preset_hint(name: str, presets: Iterable[str]) -> str:
    """Return what to say of a word without a dot that may be a preset in the wrong place."""
    presets = tuple(presets)
    if name in presets:
        return f'; "{name}" is a preset: it belongs under presets'
    return nearest(name, presets)


def _ascii(where: str, text: str) -> str:
    text = text.lower()
    if text.isascii():
        return text
    labels = []
    for label in text.split("."):
        if label.isascii():
            labels.append(label)
            continue
        kinds = {unicodedata.category(letter)[0] for letter in label} - {"L", "M", "N"}
        odd = kinds - {"P"} or any(unicodedata.category(letter)[0] == "P" and letter != "-" for letter in label)
        if odd or _DEVIATIONS & set(label) or unicodedata.normalize("NFKC", label) != label:
            raise InvalidInput(
                f"{where}: expected a domain whose letters mean the same to every resolver, or its xn-- form, "
                f"found {describe(text)}"
            )
        labels.append("xn--" + label.encode("punycode").decode("ascii"))
    return ".".join(labels)


def _one_slip(first: str, second: str) -> bool:
    """Tell whether the optimal string alignment distance of two texts is 1."""
    if not first or first == second or abs(len(first) - len(second)) > 1:
        return False
    start = 0
    while start < min(len(first), len(second)) and first[start] == second[start]:
        start += 1
    rest, other = first[start:], second[start:]
    if len(rest) == len(other):
        return rest[1:] == other[1:] or (rest[:2] == other[1::-1] and rest[2:] == other[2:])
    return rest[1:] == other or rest == other[1:]
