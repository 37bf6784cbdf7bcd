"""URLs of servers, as the pin, the agent and the prediction read them."""

from __future__ import annotations

import subprocess
from pathlib import Path

FUNCTIONS = Path(__file__).parents[3] / "clevis-pin/lib/clevis-attest-functions"

#: URL -> what the pin keeps of it, or the reason against it.
URLS = {
    "http://srv": "http://srv",
    "HTTP://srv": "http://srv",
    "hTTpS://Srv.example:7500//": "https://Srv.example:7500",
    "https://srv./tang/": "https://srv./tang",
    "http://a_b:65535": "http://a_b:65535",
    "http://[::1]:7500": "http://[::1]:7500",
    "http://[::]": "http://[::]",
    "http://[1:2:3:4:5:6:7:8]": "http://[1:2:3:4:5:6:7:8]",
    "http://[::ffff:1.2.3.4]": "http://[::ffff:1.2.3.4]",
    "http://1.2.3.4": "http://1.2.3.4",
    "http://srv:99999": "http://srv:99999: its port is not 1 to 65535",
    "http://srv:0": "http://srv:0: its port is not 1 to 65535",
    "http://srv:123456": "'http://srv:123456' is not an http or https URL",
    "http://srv:": "'http://srv:' is not an http or https URL",
    "ftp://srv": "'ftp://srv' is not an http or https URL",
    "http:///x": "'http:///x' is not an http or https URL",
    "srv": "'srv' is not an http or https URL",
    "": "'' is not an http or https URL",
    " http://srv": "' http://srv' is not an http or https URL: it has white space",
    "http://srv/a b": "'http://srv/a b' is not an http or https URL: it has white space",
    "http://srv/?a": "'http://srv/?a' is not an http or https URL: it has a query or a fragment",
    "http://srv/#a": "'http://srv/#a' is not an http or https URL: it has a query or a fragment",
    "http://me:secret@srv": "'http://...@srv' is not an http or https URL: it has a user, and the pin sends none",
    **dict.fromkeys(
        (
            *(
                "http://[1::2::3]",
                "http://[:::]",
                "http://[1:2:3:4:5:6:7:8:9]",
                "http://[1:2:3]",
                "http://[:1]",
            ),
            *(
                "http://[1.2.3.4]",
                "http://[::1.2.3.256]",
                "http://[12345::]",
                "http://1.2.3",
                "http://256.1.1.1",
            ),
            *(
                "http://a..b",
                "http://.a",
                "http://-a.b",
                "http://a-.b",
                "http://srv..",
                f"http://{'a' * 254}",
            ),
        ),
        ": its host is no name and no address",
    ),
}
_READ = """
. "$1"
shift
for each; do
    why=''
    if attest_url "$each" && attest_url_works "$url"; then printf '%s\\0' "$url"; else printf '%s\\0' "$why"; fi
done
"""


def test_each_url_is_kept_or_refused_with_its_reason() -> None:
    """The scheme is of either case (RFC 3986, 3.1); ports, addresses and names are those that can be."""
    words = ["bash", "-euc", _READ, "urls", str(FUNCTIONS), *URLS]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = dict(zip(URLS, done.stdout.split("\0"), strict=False))
    expected = {url: f"{url}{kept}" if kept.startswith(":") else kept for url, kept in URLS.items()}
    assert found == expected
