"""``make console-demo`` starts, its link signs in, an approval opens a machine, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.console.browser.console import Console
from tests.console.browser.visitor import visiting

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.slow,
    pytest.mark.timeout(600),
]

_ROOT = Path(__file__).parents[2]


async def _lines_until(stream: asyncio.StreamReader, text: str) -> str:
    """Return what *stream* says up to the line with *text*."""
    said = ""
    while text not in said:
        line = (await stream.readline()).decode()
        assert line, said
        said += line
    return said


def _names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


async def test_the_demonstration(browser: Browser, tmp_path: Path) -> None:
    """At http://localhost, which browsers take for secure; after Ctrl-C its directory is gone."""
    demo = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.console.demo"),
        cwd=_ROOT,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert demo.stdout is not None
        said = await _lines_until(demo.stdout, "Ctrl-C ends")
        [address] = re.findall(r"The console: +(\S+)", said)
        [link] = re.findall(r"Your sign-in: +(\S+)", said)
        async with visiting(browser, address) as visitor:
            console = Console(visitor)
            await console.register(link)
            for title in (
                "vault-1 asks to unlock",
                "web-2 was refused",
                "3 machines were refused",
                "db-1 announced its next boot",
                "pi-garage is suspended",
                "nas is silent",
                "Rollout november of policy kiosks stopped",
            ):
                await expect(visitor.page.get_by_role("heading", name=title)).to_be_visible()
            await visitor.page.get_by_role("link", name="Look: web-2 was refused").click()
            await visitor.page.get_by_role("button", name="Approve").click()
            await console.sign_button.click()
            await expect(visitor.page.get_by_test_id("sequel")).to_contain_text("Opened")
        await _lines_until(demo.stdout, "web-2 OPENED")
        demo.send_signal(signal.SIGINT)
        await _lines_until(demo.stdout, "nothing is left behind")
        assert await demo.wait() == 0
        assert _names(tmp_path) == []
    finally:
        if demo.returncode is None:
            demo.terminate()
            await demo.wait()
