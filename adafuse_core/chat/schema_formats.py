"""String formats as regular expressions. Every match can be parsed by the Python type of the same name.

The grammar engine has some of these formats, but it accepts the year 0 and ports beyond 65,535.
"""

from __future__ import annotations

from typing import Any

ORIGIN = "x-origin"  # key in a part of `allOf`: its value is the keyword from which the part was made

_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})"  # 0001 to 9999, as in Python
_LEAP = "(?:0[48]|[2468][048]|[13579][26])"  # multiples of four, without 00
_DAYS = (
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
DATE = f"(?:{_YEAR}-{_DAYS}|(?:[0-9]{{2}}{_LEAP}|{_LEAP}00)-02-29)"
TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?"
_OFFSET = "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"

# Order and nesting of RFC 3339. The number of digits is limited: Python's timedelta ends at 999,999,999 days.
_TIME_PART = "T(?:[0-9]{1,6}H(?:[0-9]{1,6}M(?:[0-9]{1,6}S)?)?|[0-9]{1,6}M(?:[0-9]{1,6}S)?|[0-9]{1,6}S)"
_DATE_PART = "(?:[0-9]{1,4}Y(?:[0-9]{1,4}M(?:[0-9]{1,4}D)?)?|[0-9]{1,4}M(?:[0-9]{1,4}D)?|[0-9]{1,6}D)"
_DURATION = f"P(?:{_DATE_PART}(?:{_TIME_PART})?|{_TIME_PART}|[0-9]{{1,6}}W)"

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"(?:{_OCTET}\.){{3}}{_OCTET}"
_IPV6 = "(?:(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}|[0-9a-f]{1,4}(?::[0-9a-f]{1,4}){0,3}::[0-9a-f]{1,4}|::[0-9a-f]{0,4})"
_BITS4, _BITS6 = "(?:3[0-2]|[12]?[0-9])", "(?:12[0-8]|1[01][0-9]|[1-9]?[0-9])"
# Address bits behind the network mask must be 0.
_NETWORK4 = rf"(?:{_IPV4}/32|(?:{_OCTET}\.){{3}}0/24|(?:{_OCTET}\.){{2}}0\.0/16|{_OCTET}\.0\.0\.0/8|0\.0\.0\.0/0)"
_NETWORK6 = f"(?:{_IPV6}/128|[0-9a-f]{{1,4}}(?::[0-9a-f]{{1,4}}){{3}}::/64|[0-9a-f]{{1,4}}::/16|::/0)"

_DOMAIN = r"(?:[a-zA-Z0-9]+(?:-[a-zA-Z0-9]+)*\.)+[a-zA-Z]{2,}"
_MAILBOX = r"[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]+)*"
_PORT = "(?::(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}))?"
_URL_TEXT = "(?:[a-zA-Z0-9._~!$&'()*+,;=:@/-]|%[0-9a-fA-F]{2})*"
_AFTER_HOST = rf"(?:/{_URL_TEXT})?(?:\?(?:{_URL_TEXT}[?]?)*)?(?:#{_URL_TEXT})?"
_NAMED_HOST = f"(?:{_DOMAIN}|localhost|{_IPV4})"
_REST_OF_URI = f"://{_NAMED_HOST}{_PORT}{_AFTER_HOST}"

_HEX = "[0-9a-fA-F]"


def uri(*schemes: str) -> str:
    """The regular expression of URIs with one of these schemes; without arguments, with any scheme."""
    if schemes:
        return f"(?:{'|'.join(scheme.replace('+', '[+]') for scheme in schemes)}){_REST_OF_URI}"
    others = f"urn:[a-z0-9][a-z0-9-]+:[a-zA-Z0-9]{_URL_TEXT}|mailto:{_MAILBOX}@{_DOMAIN}"
    return f"(?:[a-zA-Z][a-zA-Z0-9+.-]+{_REST_OF_URI}|{others})"


def _base64(letters: str) -> str:
    return f"(?:[{letters}]{{4}})*(?:[{letters}]{{2}}==|[{letters}]{{3}}=)?"


def _uuid(version: int) -> str:
    return f"{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-[89abAB]{_HEX}{{3}}-{_HEX}{{12}}"


_PATTERNS: dict[str, str | None] = {
    "date": DATE,
    "date-time": f"{DATE}T{TIME}{_OFFSET}",
    "time": TIME + _OFFSET,
    "duration": _DURATION,
    **dict.fromkeys(("email", "idn-email"), f"{_MAILBOX}@{_DOMAIN}"),
    "name-email": f"[a-zA-Z]{{1,24}}(?: [a-zA-Z]{{1,24}}){{0,3}} <{_MAILBOX}@{_DOMAIN}>",
    **dict.fromkeys(("uri", "url", "iri", "uri-reference", "iri-reference", "multi-host-uri"), uri()),
    "uuid": f"{_HEX}{{8}}-(?:{_HEX}{{4}}-){{3}}{_HEX}{{12}}",
    **{f"uuid{version}": _uuid(version) for version in range(1, 9)},
    "ipv4": _IPV4,
    "ipv4network": _NETWORK4,
    "ipv6network": _NETWORK6,
    "ipv4interface": f"{_IPV4}(?:/{_BITS4})?",
    "ipv6interface": f"{_IPV6}(?:/{_BITS6})?",
    "ipvanyaddress": f"(?:{_IPV4}|{_IPV6})",
    "ipvanynetwork": f"(?:{_NETWORK4}|{_NETWORK6})",
    "ipvanyinterface": f"(?:{_IPV4}(?:/{_BITS4})?|{_IPV6}(?:/{_BITS6})?)",
    **dict.fromkeys(("base64", "byte"), _base64("A-Za-z0-9+/")),
    "base64url": _base64("A-Za-z0-9_-"),
    **dict.fromkeys(("password", "binary", "path")),  # any string
}
_ENCODINGS = ("base64", "base64url")
_HAS_DIGIT = "^(?!^[-+.]*$)"  # in pydantic's pattern of decimal numbers


def with_patterns(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with its known formats replaced by patterns. Schemas inside it are unchanged."""
    pattern = schema.get("pattern")
    if isinstance(pattern, str) and pattern.startswith(_HAS_DIGIT):
        schema = _with_pattern({**schema, "pattern": "^" + pattern.removeprefix(_HAS_DIGIT)}, "[0-9]", "pattern")
    for key in ("format", "contentEncoding"):
        name = schema.get(key)
        if isinstance(name, str) and name in (_PATTERNS if key == "format" else _ENCODINGS):
            rest = {other: value for other, value in schema.items() if other != key}
            known = _PATTERNS[name]
            schema = rest if known is None else _with_pattern(rest, f"^(?:{known})$", key)
    return schema


def _with_pattern(schema: dict[str, Any], pattern: str, origin: str) -> dict[str, Any]:
    """The schema with an additional pattern, made from the keyword `origin`."""
    if "pattern" not in schema:
        return {**schema, "pattern": pattern}
    return {**schema, "allOf": [*schema.get("allOf", ()), {"pattern": pattern, ORIGIN: origin}]}
