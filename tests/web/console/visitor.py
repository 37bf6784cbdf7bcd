"""A browser without pixels: keeps the cookie, reads forms as the pages have them, and signs with a passkey in software."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any, Final
from urllib.parse import urlencode

from aiohttp.test_utils import TestClient

from tests.service.operators.authenticator import ORIGIN, Passkey

Fields = Mapping[str, str | Sequence[str]]

#: Elements without an end tag.
_VOID: Final = frozenset({"meta", "link", "input", "br", "rect", "path"})


@dataclass
class PageForm:
    """A form of a page: its action, its fields as a browser would send them, and options for a passkey."""

    method: str
    action: str
    fields: list[tuple[str, str]] = field(default_factory=list)
    options: dict[str, Any] | None = None


class PageReader(HTMLParser):
    """Reads forms and text; fails on markup that is not nested."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.forms: list[PageForm] = []
        self.scripts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], f"not closed: {self._open}"

    @property
    def text(self) -> str:
        """The words of the page."""
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the element."""
        found = dict(attrs)
        self.attributes += attrs
        if tag not in _VOID:
            self._open.append(tag)
        if tag == "script":
            self.scripts.append(found.get("src") or "")
        if tag == "form":
            options = found.get("data-options")
            self.forms.append(
                PageForm(
                    found.get("method") or "get",
                    found.get("action") or "",
                    options=json.loads(options) if options else None,
                )
            )
        if tag == "input" and self.forms and "form" in self._open:
            self._field(found)

    def _field(self, found: Mapping[str, str | None]) -> None:
        chosen = found.get("type") not in ("checkbox", "radio") or "checked" in found
        if chosen and (name := found.get("name")):
            self.forms[-1].fields.append((name, found.get("value") or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the element, which ends at once."""
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        """Check the nesting."""
        if tag not in _VOID:
            assert self._open, f"</{tag}> ends nothing"
            assert self._open.pop() == tag, f"</{tag}> is not nested"

    def handle_data(self, data: str) -> None:
        """Note the words."""
        self.words.append(data)


@dataclass
class Shown:
    """An answer: status, headers, and the page."""

    status: int
    headers: Any
    body: str

    @property
    def page(self) -> PageReader:
        """The page, read."""
        return PageReader(self.body)

    @property
    def text(self) -> str:
        """The words of the page."""
        return self.page.text

    def form(self, action: str) -> PageForm:
        """The first form of the page that goes to *action*, or to an address below it."""
        return next(form for form in self.page.forms if form.action.startswith(action))

    def forms_about(self, act: str) -> Iterator[PageForm]:
        """The forms of the page that name the act *act*."""
        return (form for form in self.page.forms if ("act", act) in form.fields)


class Visitor:
    """One browser; ``cookie`` is the session's secret once its operator has signed in."""

    def __init__(self, client: TestClient[Any, Any], passkey: Passkey | None = None) -> None:
        self.client, self.passkey = client, passkey
        self.cookie = ""

    async def request(self, method: str, path: str, **options: Any) -> Shown:
        """Any request with the cookie."""
        headers = dict(options.pop("headers", {}))
        if self.cookie:
            headers.setdefault("Cookie", f"__Host-tang-attest={self.cookie}")
        async with self.client.request(
            method, path, headers=headers, allow_redirects=False, **options
        ) as answer:
            body = await answer.text()
            for name, morsel in answer.cookies.items():
                if name == "__Host-tang-attest":
                    self.cookie = morsel.value
            return Shown(answer.status, answer.headers, body)

    async def get(self, path: str, **headers: str) -> Shown:
        """The page at *path*."""
        return await self.request("GET", path, headers=headers)

    async def post(self, path: str, fields: Fields, **headers: str) -> Shown:
        """A form to *path*, from a page of the console."""
        pairs = [
            (name, value)
            for name, values in fields.items()
            for value in ([values] if isinstance(values, str) else values)
        ]
        return await self.send(PageForm("post", path, pairs), None, **headers)

    async def send(self, form: PageForm, changes: Fields | None = None, **headers: str) -> Shown:
        """*form* as a browser sends it, with *changes* to its fields."""
        pairs = [(name, value) for name, value in form.fields if name not in (changes or {})]
        for name, values in (changes or {}).items():
            pairs += [(name, value) for value in ([values] if isinstance(values, str) else values)]
        sent = {"Origin": ORIGIN, "Content-Type": "application/x-www-form-urlencoded"} | headers
        return await self.request(
            "POST",
            form.action,
            data=urlencode(pairs).encode(),
            headers={name: value for name, value in sent.items() if value},
        )

    async def sign_in(self) -> Shown:
        """Open a session with the passkey."""
        form = (await self.get("/sign-in")).form("/sign-in")
        return await self.sign(form)

    async def sign(self, form: PageForm, **changes: Any) -> Shown:
        """Answer *form*, which asks for a passkey."""
        assert self.passkey is not None
        assert form.options is not None
        credential = self.passkey.get(form.options, **changes)
        return await self.send(form, {"credential": json.dumps(credential)})

    async def act(self, form: PageForm, changes: Fields | None = None) -> Shown:
        """Send *form*, which names an act, and sign what the next page asks."""
        asked = await self.send(form, changes)
        assert asked.status == 200, asked.text
        return await self.sign(asked.form("/acts/"))
