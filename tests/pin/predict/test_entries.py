"""Boot loader entries: the order of versions, and files that nobody wrote in good faith."""

from __future__ import annotations

import subprocess

from hypothesis import given, settings
from hypothesis import strategies as st
from predict.loaders.entries import settings as entry_settings
from predict.loaders.entries import version_key

NAMES = st.lists(
    st.text("019.-~+abZ_", min_size=1, max_size=9).filter(lambda name: not name.startswith(".")),
    min_size=2,
    max_size=8,
)


@given(NAMES)
@settings(deadline=None, max_examples=60)
def test_versions_have_the_order_of_sort(names: list[str]) -> None:
    """``sort -V`` of coreutils."""
    files = [f"{name}.conf" for name in names]
    command = ["sort", "-V"]
    told = subprocess.run(
        command,
        input="\n".join(files) + "\n",
        env={"LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(files, key=version_key) == told.stdout.split()


@given(st.text(st.characters(max_codepoint=255), max_size=200))
def test_any_entry_is_read(content: str) -> None:
    """Keys without white space, values of one line."""
    for key, value in entry_settings(content):
        assert not set(key) & set(" \t\n\v\f\r\0")
        assert not set(value) & set("\n\0")
        assert key + value in content.replace("\0", "").replace(" ", "") or value.strip(" \t\v\f\r") == value


def test_keys_and_values() -> None:
    """White space around both goes; the last line may lack its end."""
    content = "title  A b \n\n# a comment\n linux\t/vmlinuz\noptions"
    assert [pair for pair in entry_settings(content) if pair[0]] == [
        ("title", "A b"),
        ("#", "a comment"),
        ("linux", "/vmlinuz"),
        ("options", ""),
    ]
