"""Registration, sign-in and sessions: every shortcut is refused in one sentence, and changes nothing."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tang_attest.ports.operators import OperatorRole
from tang_attest.protocol.values.base64url import b64u, unb64u
from tests.service.operators.authenticator import Passkey
from tests.service.operators.conftest import Console, code_of


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA"])
async def test_a_passkey_registers_and_signs_in(console: Console, algorithm: str) -> None:
    """Both algorithms that authenticators have; the session says who it is, and with which role."""
    passkey = await console.register("alice", "approver", Passkey(algorithm))
    secret, session = await console.sign_in.sign_in(passkey.get(await console.sign_in.assertion_options()))
    assert (session.name, session.role) == ("alice", OperatorRole.APPROVER)
    assert await console.sign_in.session(secret) == session
    assert [entry.event for entry in await console.audit()][:3] == [
        "operator sign-in",
        "operator register",
        "operator add",
    ]
    assert (await console.audit())[0].actor == "console:alice"
    assert secret not in str([entry.members() for entry in await console.audit()])


async def test_options_ask_for_a_verified_user_and_both_algorithms(console: Console) -> None:
    """A stolen phone that is locked signs nothing."""
    link = await console.server.operators.add("alice", OperatorRole.VIEWER)
    options: Any = await console.sign_in.registration_options(link.token)
    assert options["authenticatorSelection"]["userVerification"] == "required"
    assert options["authenticatorSelection"]["residentKey"] == "required"
    assert [each["alg"] for each in options["pubKeyCredParams"]] == [-7, -8]
    assert options["rp"]["id"] == "console.test"
    assert (await console.sign_in.assertion_options())["userVerification"] == "required"


async def test_a_link_is_good_once(console: Console) -> None:
    """Also for two browsers at once."""
    link = await console.server.operators.add("alice", OperatorRole.VIEWER)
    options = [await console.sign_in.registration_options(link.token) for _ in range(2)]
    codes = await asyncio.gather(
        *(code_of(console.sign_in.register(link.token, Passkey().create(each))) for each in options)
    )
    assert sorted(codes) == ["link-used", "ok"]
    assert await code_of(console.sign_in.registration_options(link.token)) == "link-used"
    assert len(await console.server.store.operators.list_passkeys()) == 1


async def test_a_link_expires(console: Console) -> None:
    """After fifteen minutes, for the second step too; and while the clock is before its time."""
    link = await console.server.operators.add("alice", OperatorRole.VIEWER)
    console.clock.advance(minutes=14, seconds=59)
    options = await console.sign_in.registration_options(link.token)
    console.clock.advance(seconds=1)
    assert await code_of(console.sign_in.registration_options(link.token)) == "link-expired"
    assert await code_of(console.sign_in.register(link.token, Passkey().create(options))) == "link-expired"
    console.clock.advance(minutes=-17)
    assert await code_of(console.sign_in.registration_options(link.token)) == "link-expired"


@pytest.mark.parametrize("text", ["", "x" * 43, "ä", "\udc80", "a" * 100_000])
async def test_a_link_of_nobody(console: Console, text: str) -> None:
    """Any text that somebody puts into the address."""
    assert await code_of(console.sign_in.registration_options(text)) == "link-invalid"
    assert await code_of(console.sign_in.register(text, {})) == "link-invalid"
    assert await code_of(console.sign_in.session(text)) == "sign-in-required"


async def test_a_newer_link_replaces_the_older(console: Console) -> None:
    """A reset withdraws what was not used."""
    old = await console.server.operators.add("alice", OperatorRole.VIEWER)
    new = await console.server.operators.reset("alice")
    assert await code_of(console.sign_in.registration_options(old.token)) == "link-used"
    assert await code_of(console.sign_in.registration_options(new.token)) == "ok"


@pytest.mark.parametrize(
    ("changes", "members"),
    [
        ({"verified": False}, {}),
        ({"present": False}, {}),
        ({"origin": "https://console.test.evil.example"}, {}),
        ({"origin": "http://console.test"}, {}),
        ({"origin": "https://console.test:8443"}, {}),
        ({"rp_id": "evil.example"}, {}),
        ({}, {"type": "webauthn.get"}),
        ({}, {"challenge": b64u(bytes(56))}),
        ({}, {"challenge": "no base64url!"}),
        ({}, {"challenge": 7}),
    ],
)
async def test_a_foreign_registration(
    console: Console, changes: dict[str, Any], members: dict[str, Any]
) -> None:
    """Of another origin, of another challenge, without its user: refused, and the link is still good."""
    link = await console.server.operators.add("alice", OperatorRole.VIEWER)
    options = await console.sign_in.registration_options(link.token)
    credential = Passkey(**changes).create(options, **members)
    assert await code_of(console.sign_in.register(link.token, credential)) == "passkey-invalid"
    assert await code_of(console.sign_in.register(link.token, Passkey().create(options))) == "ok"


@pytest.mark.parametrize(
    ("changes", "members"),
    [
        ({"verified": False}, {}),
        ({"present": False}, {}),
        ({"origin": "https://evil.example"}, {}),
        ({"origin": "https://console.test.evil.example"}, {}),
        ({"rp_id": "evil.example"}, {}),
        ({"handle": b"somebody else"}, {}),
        ({}, {"type": "webauthn.create"}),
        ({}, {"crossOrigin": True}),
        ({}, {"challenge": b64u(bytes(56))}),
    ],
)
async def test_a_foreign_assertion(
    console: Console, changes: dict[str, Any], members: dict[str, Any]
) -> None:
    """The same at sign-in; no session is opened."""
    passkey = await console.register("alice")
    for name, value in changes.items():
        setattr(passkey, name, value)
    credential = passkey.get(await console.sign_in.assertion_options(), **members)
    assert await code_of(console.sign_in.sign_in(credential)) == "passkey-invalid"
    assert await console.server.store.operators.list_sessions() == []


async def test_a_stranger_does_not_sign_in(console: Console) -> None:
    """With a passkey of their own, and with the id of somebody else's."""
    known = await console.register("alice")
    foreign = Passkey(handle=known.handle)
    options = await console.sign_in.assertion_options()
    assert await code_of(console.sign_in.sign_in(foreign.get(options))) == "passkey-unknown"
    foreign.credential_id = known.credential_id
    assert await code_of(console.sign_in.sign_in(foreign.get(options))) == "passkey-invalid"


BROKEN: list[Any] = [
    {},
    [],
    None,
    "x",
    {"rawId": "AAAA"},
    {"rawId": "AAAA", "response": {}},
    {"rawId": 7, "response": {"clientDataJSON": "AAAA"}},
    {"rawId": "A" * 5000, "response": {}},
]


@pytest.mark.parametrize("credential", BROKEN)
async def test_a_credential_that_cannot_be_read(console: Console, credential: Any) -> None:
    """No traceback, whatever a client sends."""
    link = await console.server.operators.add("alice", OperatorRole.VIEWER)
    assert await code_of(console.sign_in.sign_in(credential)) == "request-malformed"
    refused = ("request-malformed", "passkey-invalid")
    assert await code_of(console.sign_in.register(link.token, credential)) in refused


@pytest.mark.parametrize("part", ["clientDataJSON", "authenticatorData", "signature", "attestationObject"])
@pytest.mark.parametrize("size", [1, 36, 500])
async def test_a_credential_of_random_bytes(console: Console, part: str, size: int) -> None:
    """Each part, in turn; and cut short."""
    link = await console.server.operators.add("bob", OperatorRole.VIEWER)
    created = Passkey().create(await console.sign_in.registration_options(link.token))
    passkey = await console.register("alice")
    got = passkey.get(await console.sign_in.assertion_options())
    for credential, call in (
        (created, lambda: console.sign_in.register(link.token, created)),
        (got, lambda: console.sign_in.sign_in(got)),
    ):
        if part in credential["response"]:
            whole = credential["response"][part]
            for data in (bytes(range(size % 256)) or b"x", unb64u(whole)[:size]):
                if b64u(data) == whole:
                    continue
                credential["response"][part] = b64u(data)
                assert await code_of(call()) in ("passkey-invalid", "request-malformed")


async def test_an_assertion_opens_one_session(console: Console) -> None:
    """Replayed, alone and from two workers at once, it opens none."""
    passkey = await console.register("alice")
    credential = passkey.get(await console.sign_in.assertion_options())
    codes = await asyncio.gather(*(code_of(console.sign_in.sign_in(credential)) for _ in range(3)))
    assert sorted(codes) == ["ok", "passkey-invalid", "passkey-invalid"]
    assert len(await console.server.store.operators.list_sessions()) == 1


async def test_a_challenge_expires(console: Console) -> None:
    """After five minutes, and when the clock goes back by more than a minute."""
    passkey = await console.register("alice")
    credential = passkey.get(await console.sign_in.assertion_options())
    console.clock.advance(minutes=5)
    assert await code_of(console.sign_in.sign_in(credential)) == "passkey-invalid"
    console.clock.advance(minutes=-7)
    assert await code_of(console.sign_in.sign_in(credential)) == "passkey-invalid"
    console.clock.advance(minutes=1)
    assert await code_of(console.sign_in.sign_in(credential)) == "ok"


async def test_a_challenge_of_registration_signs_nobody_in(console: Console) -> None:
    """Challenges have a purpose."""
    passkey = await console.register("alice")
    link = await console.server.operators.add("bob", OperatorRole.ADMIN)
    options = await console.sign_in.registration_options(link.token)
    assert await code_of(console.sign_in.sign_in(passkey.get(options))) == "passkey-invalid"


async def test_a_counter_that_goes_back_is_a_copy(console: Console) -> None:
    """A synced passkey keeps 0; one that counted has to go on counting."""
    passkey = await console.register("alice")
    for _ in range(2):
        await console.enter(passkey)
    counting = await console.register("bob", passkey=Passkey(counts=True))
    await console.enter(counting)
    await console.enter(counting)
    counting.sign_count -= 1
    options = await console.sign_in.assertion_options()
    assert await code_of(console.sign_in.sign_in(counting.get(options))) == "passkey-invalid"
    counting.sign_count, counting.counts = 0, False
    options = await console.sign_in.assertion_options()
    assert await code_of(console.sign_in.sign_in(counting.get(options))) == "passkey-invalid"


async def test_a_session_ends(console: Console) -> None:
    """Thirty minutes idle, twelve hours in all, and before its time."""
    passkey = await console.register("alice")
    secret, _ = await console.sign_in.sign_in(passkey.get(await console.sign_in.assertion_options()))
    for _ in range(24):
        console.clock.advance(minutes=29, seconds=59)
        assert await code_of(console.sign_in.session(secret)) == "ok"
    console.clock.advance(minutes=1)
    assert await code_of(console.sign_in.session(secret)) == "sign-in-required"
    secret, _ = await console.sign_in.sign_in(passkey.get(await console.sign_in.assertion_options()))
    console.clock.advance(minutes=30)
    assert await code_of(console.sign_in.session(secret)) == "sign-in-required"
    secret, _ = await console.sign_in.sign_in(passkey.get(await console.sign_in.assertion_options()))
    console.clock.advance(minutes=-2)
    assert await code_of(console.sign_in.session(secret)) == "sign-in-required"


async def test_a_stolen_session_after_sign_out(console: Console) -> None:
    """By its operator, by the server's, by a reset and by a removal: the secret opens nothing."""
    passkey = await console.register("alice")
    operators = console.server.operators

    async def stolen() -> tuple[str, Any]:
        return await console.sign_in.sign_in(passkey.get(await console.sign_in.assertion_options()))

    secret, session = await stolen()
    await console.sign_in.sign_out(session)
    await console.sign_in.sign_out(session)
    assert await code_of(console.sign_in.session(secret)) == "sign-in-required"
    secret, _ = await stolen()
    assert await operators.sign_out("alice") == 1
    assert await code_of(console.sign_in.session(secret)) == "sign-in-required"
    secret, _ = await stolen()
    await operators.reset("alice")
    assert await code_of(console.sign_in.session(secret)) == "sign-in-required"
    options = await console.sign_in.assertion_options()
    assert await code_of(console.sign_in.sign_in(passkey.get(options))) == "passkey-unknown"


async def test_a_removed_operator(console: Console) -> None:
    """Neither session nor passkey nor link works; the public key stays, and the name is not given again."""
    passkey = await console.register("alice")
    secret, _ = await console.sign_in.sign_in(passkey.get(await console.sign_in.assertion_options()))
    await console.server.operators.remove("alice")
    assert await code_of(console.sign_in.session(secret)) == "sign-in-required"
    options = await console.sign_in.assertion_options()
    assert await code_of(console.sign_in.sign_in(passkey.get(options))) == "passkey-unknown"
    assert [key.public_key for key in await console.server.store.operators.list_passkeys()] == [passkey.cose]
    assert await code_of(console.server.operators.add("alice", OperatorRole.ADMIN)) == "name-taken"
    assert await code_of(console.server.operators.reset("alice")) == "not-found"
    link = await console.server.operators.add("bob", OperatorRole.ADMIN)
    await console.server.operators.remove("bob")
    assert await code_of(console.sign_in.registration_options(link.token)) == "link-used"


async def test_a_role_holds_at_once(console: Console) -> None:
    """In sessions that are open already."""
    passkey = await console.register("alice", "viewer")
    secret, session = await console.sign_in.sign_in(passkey.get(await console.sign_in.assertion_options()))
    assert session.role is OperatorRole.VIEWER
    await console.server.operators.set_role("alice", OperatorRole.ADMIN)
    assert (await console.sign_in.session(secret)).role is OperatorRole.ADMIN


async def test_secrets_are_stored_as_digests(console: Console) -> None:
    """A copy of the database signs nobody in."""
    passkey = await console.register("alice")
    link = await console.server.operators.add("bob", OperatorRole.VIEWER)
    secret, session = await console.sign_in.sign_in(passkey.get(await console.sign_in.assertion_options()))
    stored = b"".join(path.read_bytes() for path in console.server.directory.glob("tang-attest.db*"))
    for text in (secret, link.token, session.csrf):
        assert text.encode() not in stored
        assert unb64u(text) not in stored


async def test_operators_are_listed(console: Console) -> None:
    """With their passkeys, their open sessions and the link that waits."""
    await console.enter(await console.register("bob", "admin"))
    link = await console.server.operators.add("alice", OperatorRole.VIEWER)
    alice, bob = await console.server.operators.list_operators()
    assert (alice.name, alice.passkeys, alice.sessions, alice.link_expires_at) == (
        "alice",
        0,
        0,
        link.expires_at,
    )
    assert (bob.role, bob.passkeys, bob.sessions, bob.link_expires_at) == (OperatorRole.ADMIN, 1, 1, None)
    console.clock.advance(hours=1)
    alice, bob = await console.server.operators.list_operators()
    assert (alice.link_expires_at, bob.sessions) == (None, 0)


async def test_a_form_of_another_session(console: Console) -> None:
    """The token of a session's forms is its own."""
    passkey = await console.register("alice")
    one, other = await console.enter(passkey), await console.enter(passkey)
    one.check_csrf(one.csrf)
    for token in (other.csrf, "", "ä"):
        with pytest.raises(Exception, match="form is of another session"):
            one.check_csrf(token)


async def test_the_library_and_the_record_agree(console: Console) -> None:
    """Client data that a browser may send with more members is accepted by both checks."""
    passkey = await console.register("alice")
    credential = passkey.get(await console.sign_in.assertion_options(), other="member")
    assert json.loads(unb64u(credential["response"]["clientDataJSON"]))["other"] == "member"
    assert await code_of(console.sign_in.sign_in(credential)) == "ok"
