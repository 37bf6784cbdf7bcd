"""Event logs: strict reading, replay as a TPM does it, and descriptions that never fail."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tang_attest.errors import Malformed
from tang_attest.protocol.eventlog import (
    Event,
    EventLog,
    EventType,
    Mismatch,
    as_json,
    data_matches_digest,
    describe,
    parse,
    replay,
    replays_to,
)
from tests.protocol.eventlog import writer as w
from tests.protocol.eventlog.tpm import started_tpm

ALGORITHM_IDS = {name: algorithm for algorithm, name in w.HASHES.items()}
VECTORS = sorted(path.name for path in w.VECTORS.glob("*.bin"))
ONE_BANK = w.agile((w.SHA256,), [w.Measurement(4, w.EV_SEPARATOR, bytes(4))])
AFTER_SPEC_ID = len(w.agile((w.SHA256,), []))


def load(name: str) -> EventLog:
    return parse((w.VECTORS / name).read_bytes())


def all_pcrs(log: EventLog) -> dict[str, dict[int, bytes]]:
    return {algorithm.name: replay(log, algorithm.name) for algorithm in log.algorithms}


# --- vectors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "content"), w.built_vectors().items())
def test_built_vectors_regenerate(name: str, content: bytes) -> None:
    """Every vector that is not a recording is exactly what the writer makes."""
    assert (w.VECTORS / name).read_bytes() == content


def test_every_vector_is_built_or_recorded() -> None:
    """No vector without a known origin."""
    assert set(VECTORS) == {*w.built_vectors(), *(f"{name}.bin" for name in w.RECORDED)}


@pytest.mark.parametrize("name", w.RECORDED)
def test_recorded_log_replays_to_what_the_kernel_read_from_the_tpm(name: str) -> None:
    """A real boot: OVMF and what it started measured, the kernel printed the log and the PCRs of the same TPM."""
    recorded = w.recorded_values(name)
    for bank, quoted in recorded.items():
        unexplained = [
            (mismatch.pcr, mismatch.events) for mismatch in replays_to(load(f"{name}.bin"), bank, quoted)
        ]
        # Linux's IMA, which keeps a list of its own, extends PCR 10.
        assert unexplained == ([(10, 0)] if len(quoted) == 24 else [])


@pytest.mark.parametrize("name", VECTORS)
def test_a_tpm_extended_with_the_events_has_the_replayed_values(name: str, tmp_path: Path) -> None:
    """Premise and replay at once: StartupLocality, H-CRTM and extends do in a TPM what ``replay`` computes."""
    log = load(name)
    locality = 3 if any(b"StartupLocality" in event.data for event in log.events) else None
    hcrtm = [event for event in log.events if event.type == EventType.EV_EFI_HCRTM_EVENT]
    measured = w.HCRTM_MEASURED if hcrtm else None
    with started_tpm(tmp_path, locality=locality, hcrtm=measured) as tpm:
        for event in log.events:
            if event.extends and event not in hcrtm:
                tpm.extend(event.pcr, {ALGORITHM_IDS[bank]: value for bank, value in event.digests.items()})
        for algorithm in log.algorithms:
            read = {pcr: tpm.read(pcr, ALGORITHM_IDS[algorithm.name]) for pcr in range(24)}
            assert replays_to(log, algorithm.name, read) == ()


def tpm2_eventlog(path: Path) -> dict[str, dict[int, bytes]]:
    """The ``pcrs`` at the end of what ``tpm2 eventlog`` prints (YAML)."""
    done = subprocess.run(["tpm2", "eventlog", path], check=True, capture_output=True, text=True)
    pcrs: dict[str, dict[int, bytes]] = {}
    for bank, values in re.findall(r"^  (\w+):\n((?:    \d+ *: 0x[0-9a-f]+\n)+)", done.stdout, re.MULTILINE):
        pcrs[bank] = {int(pcr): bytes.fromhex(v) for pcr, v in re.findall(r"(\d+) *: 0x(\w+)", values)}
    return pcrs


@pytest.mark.parametrize("name", ["agile.bin", "ovmf.bin", "sha1.bin"])
def test_agrees_with_tpm2_eventlog(name: str) -> None:
    """On a log without the features that tpm2-tools 5.4 misreads, every PCR of every bank is the same."""
    assert tpm2_eventlog(w.VECTORS / name) == all_pcrs(load(name))


@pytest.mark.parametrize("name", ["hcrtm.bin", "startup-locality-3.bin"])
def test_agrees_with_tpm2_eventlog_but_for_pcr_0(name: str) -> None:
    """tpm2-tools before 5.6 extends EV_NO_ACTION and starts PCR 0 at zero; a TPM does not (test above)."""
    theirs, ours = tpm2_eventlog(w.VECTORS / name), all_pcrs(load(name))
    for values in (*theirs.values(), *ours.values()):
        del values[0]
    assert theirs == ours
    assert ours["sha256"].keys() == set(range(1, 8))


# --- reading ------------------------------------------------------------------------------------------------


def test_reads_a_crypto_agile_log() -> None:
    """Format, banks, events with index, offset, type name and digests."""
    log = load("agile.bin")
    assert (log.format, log.startup_locality) == ("crypto-agile", None)
    assert log.algorithms == (("sha1", 20), ("sha256", 32), ("sha384", 48))
    assert len(log.events) == 1 + len(w.FIRMWARE) + len(w.LINUX)
    assert (log.events[0].type_name, log.events[0].extends) == ("EV_NO_ACTION", False)
    event = log.events[5]
    assert (event.index, event.pcr, event.type_name) == (5, 0, "EV_SEPARATOR")
    assert event.digests["sha384"] == hashlib.sha384(bytes(4)).digest()
    assert (w.VECTORS / "agile.bin").read_bytes()[event.offset :].startswith(struct.pack("<II", 0, 4))


def test_reads_a_sha1_log() -> None:
    """With or without a Spec ID Event00, there is one bank."""
    for name in ("sha1.bin", "sha1-spec-id-00.bin"):
        log = load(name)
        assert (log.format, log.algorithms) == ("sha1", (("sha1", 20),))
    assert replay(load("sha1.bin"), "sha1") == replay(load("sha1-spec-id-00.bin"), "sha1")


def test_an_announced_bank_that_no_event_carries_is_not_in_the_log() -> None:
    """Firmware announces inactive banks; replaying one must fail rather than yield initial values."""
    digest = hashlib.sha256(bytes(4)).digest()
    log = parse(w.spec_id([(w.SHA1, 20), (w.SHA256, 32)]) + w.event2(4, 4, [(w.SHA256, digest)], bytes(4)))
    assert log.algorithms == (("sha256", 32),)
    with pytest.raises(Malformed, match=r"^the log has no sha1 bank, only sha256$"):
        replay(log, "sha1")


@pytest.mark.parametrize("left_out", ["sha1", "sha256"])
def test_a_bank_that_some_events_leave_out_is_not_in_the_log(left_out: str) -> None:
    """A real Windows log has later events with SHA-1 alone: the other bank is missing, and cannot be replayed."""
    kept, dropped = ("sha256", "sha1") if left_out == "sha1" else ("sha1", "sha256")
    number = {"sha1": w.SHA1, "sha256": w.SHA256}[kept]
    digest = hashlib.new(kept, b"later").digest()
    log = parse(w.agile((w.SHA1, w.SHA256), w.FIRMWARE) + w.event2(12, 6, [(number, digest)], b"later"))
    assert [bank for bank, _ in log.algorithms] == [kept]
    before = parse(w.agile((number,), w.FIRMWARE))
    assert replay(log, kept).items() >= replay(before, kept).items()
    with pytest.raises(Malformed) as caught:
        replay(log, dropped)
    assert caught.value.code == "eventlog-bank-missing"
    # In the middle too, and an event with fewer digests may be followed by one with all of them.
    middle = w.event2(12, 6, [(number, digest)], b"later") + w.agile((w.SHA1, w.SHA256), w.SEPARATORS)[69:]
    assert [bank for bank, _ in parse(w.agile((w.SHA1, w.SHA256), w.FIRMWARE) + middle).algorithms] == [kept]
    assert list(as_json(log)["pcrs"]) == [kept]  # type: ignore[call-overload]  # as_json's values are objects


@pytest.mark.parametrize(
    "opening", [b"StartupLocality\0\3", b"StartupLocality\0\0", b"SP800-155 Event\0", b"", b"x"]
)
def test_a_sha1_log_that_begins_with_an_informative_event(opening: bytes) -> None:
    """A real one tells its startup locality first; without a Spec ID event there is only the SHA-1 format."""
    events = b"".join(w.event1(m.pcr, m.type, m.digest(w.SHA1), m.data) for m in w.SEPARATORS)
    log = parse(w.event1(0, 3, bytes(20), opening) + events)
    assert (log.format, log.algorithms) == ("sha1", (("sha1", 20),))
    located = opening.startswith(b"StartupLocality")
    assert log.startup_locality == (opening[-1] if located else None)
    assert replay(log, "sha1").keys() == {m.pcr for m in w.SEPARATORS} | ({0} if located else set())


def test_an_unknown_but_announced_algorithm_is_carried_and_not_replayed() -> None:
    """A bank of the future must not hide the banks that we know."""
    digest = hashlib.sha256(bytes(4)).digest()
    events = w.event2(4, 4, [(0x99, b"\1" * 7), (w.SHA256, digest)], bytes(4))
    log = parse(w.spec_id([(0x99, 7), (w.SHA256, 32)]) + events)
    assert log.events[1].digests["0x0099"] == b"\1" * 7
    assert replay(log, "sha256").keys() == {4}
    with pytest.raises(Malformed, match=r"^the 0x0099 bank cannot be replayed here$"):
        replay(log, "0x0099")
    assert list(as_json(log)["pcrs"]) == ["sha256"]  # type: ignore[call-overload]  # as_json's values are objects


def test_an_unknown_event_type_is_extended_like_any_other() -> None:
    """A type that we do not know is still a measurement."""
    log = parse(w.agile((w.SHA256,), [w.Measurement(4, 0x80000099, b"x")]))
    assert log.events[1].type_name == "0x80000099"
    assert replay(log, "sha256").keys() == {4}


def test_an_informative_event_may_name_no_pcr() -> None:
    """SP 800-155 platform ids have PCR index 0xffffffff; they are listed and change nothing."""
    log = parse(ONE_BANK + w.event2(w.NO_PCR, 3, [(w.SHA256, bytes(32))], b"SP800-155 Event\0"))
    assert replay(log, "sha256").keys() == {4}
    assert as_json(log)["events"][2]["pcr"] is None  # type: ignore[index]  # as_json's values are objects


SEPARATOR = hashlib.sha256(bytes(4)).digest()

BROKEN: Mapping[str, tuple[bytes, str]] = {
    "empty": (b"", "the log is empty"),
    "first header cut": (b"\0" * 3, "event 0 at offset 0x0: need 4 bytes for the PCR index, had 3"),
    "digest cut": (
        ONE_BANK[: AFTER_SPEC_ID + 12 + 2 + 9],
        "event 1 at offset 0x41: need 32 bytes for the sha256 digest, had 9",
    ),
    "event size cut": (ONE_BANK[:-6], "event 1 at offset 0x41: need 4 bytes for the event size, had 2"),
    "data cut": (ONE_BANK[:-1], "event 1 at offset 0x41: need 4 bytes for the event data, had 3"),
    "absurd event size": (
        ONE_BANK[:-8] + b"\xff\xff\xff\xff" + bytes(4),
        "event 1 at offset 0x41: need 4294967295 bytes for the event data, had 4",
    ),
    "algorithm not announced": (
        w.spec_id([(w.SHA256, 32)]) + w.event2(4, 4, [(w.SHA384, bytes(48))], b""),
        "event 1 at offset 0x41: digest algorithm 0x000c is not announced in the Spec ID event",
    ),
    "two digests of one algorithm": (
        w.spec_id([(w.SHA1, 20), (w.SHA256, 32)]) + w.event2(4, 4, [(w.SHA256, SEPARATOR)] * 2, b""),
        "event 1 at offset 0x45: two sha256 digests",
    ),
    "no digest": (
        w.spec_id([(w.SHA256, 32)]) + w.event2(4, 4, [], b"x" * 20),
        "event 1 at offset 0x41: 0 digests, but the Spec ID event announces 1 algorithms",
    ),
    "too many digests": (
        w.spec_id([(w.SHA256, 32)]) + w.event2(4, 4, [(w.SHA256, SEPARATOR)] * 2, b""),
        "event 1 at offset 0x41: 2 digests, but the Spec ID event announces 1 algorithms",
    ),
    "another bank later": (
        w.spec_id([(w.SHA1, 20), (w.SHA256, 32)])
        + w.event2(4, 4, [(w.SHA256, SEPARATOR)], b"")
        + w.event2(4, 4, [(w.SHA1, bytes(20))], b""),
        "the log has no bank that every event has a digest for",
    ),
    "PCR 24": (
        w.spec_id([(w.SHA256, 32)]) + w.event2(24, 4, [(w.SHA256, SEPARATOR)], b""),
        "event 1 at offset 0x41: PCR index 24 is above 23",
    ),
    "no PCR, but extended": (
        w.spec_id([(w.SHA256, 32)]) + w.event2(w.NO_PCR, 4, [(w.SHA256, SEPARATOR)], b""),
        "event 1 at offset 0x41: PCR index 4294967295 is above 23",
    ),
    "zero padding": (
        ONE_BANK + bytes(100),
        "event 2 at offset 0x77: 100 bytes that begin as 0x00 padding follow the last event",
    ),
    "one zero byte": (
        ONE_BANK + bytes(1),
        "event 2 at offset 0x77: 1 bytes that begin as 0x00 padding follow the last event",
    ),
    "ff padding": (
        ONE_BANK + b"\xff" * 64,
        "event 2 at offset 0x77: 64 bytes that begin as 0xff padding follow the last event",
    ),
    "zero padding of a sha1 log": (
        w.sha1_only(w.SEPARATORS[:1]) + bytes(64),
        "event 1 at offset 0x24: 64 bytes that begin as 0x00 padding follow the last event",
    ),
    "garbage": (ONE_BANK + b"garbage.", "event 2 at offset 0x77: PCR index 1651663207 is above 23"),
    "signature": (
        w.spec_id([(w.SHA256, 32)], signature=b"Spec ID Event04\0"),
        r"event 0 at offset 0x0: EV_NO_ACTION with signature b'Spec ID Event04\x00' is no Spec ID event (00, 02 or 03)",
    ),
    "spec id with a digest": (
        w.event1(0, 3, b"\1" * 20, b"Spec ID Event03\0"),
        "event 0 at offset 0x0: the Spec ID event must name PCR 0 and have an all-zero digest",
    ),
    "spec id cut": (
        w.event1(0, 3, bytes(20), b"Spec ID Event03\0" + bytes(9)),
        "event 0 at offset 0x0: need 4 bytes for the number of algorithms, had 1",
    ),
    "no algorithms": (w.spec_id([]), "event 0 at offset 0x0: 0 digest algorithms announced, not 1 to 16"),
    "absurd number of algorithms": (
        w.spec_id([(w.SHA256, 32)], count=0xFFFFFFFF),
        "event 0 at offset 0x0: 4294967295 digest algorithms announced, not 1 to 16",
    ),
    "algorithm announced twice": (
        w.spec_id([(w.SHA256, 32)] * 2),
        "event 0 at offset 0x0: digest algorithm 0x000b is announced twice",
    ),
    "wrong digest size": (
        w.spec_id([(w.SHA256, 20)]),
        "event 0 at offset 0x0: sha256 is announced with 20 bytes, it has 32",
    ),
    "unknown algorithm of no size": (
        w.spec_id([(0x99, 0)]),
        "event 0 at offset 0x0: digest algorithm 0x0099 is announced with 0 bytes",
    ),
    "unknown algorithm of absurd size": (
        w.spec_id([(0x99, 0xFFFF)]),
        "event 0 at offset 0x0: digest algorithm 0x0099 is announced with 65535 bytes",
    ),
    "vendor info overflow": (
        w.spec_id([(w.SHA256, 32)], vendor=b"abc", vendor_size=255),
        "event 0 at offset 0x0: need 255 bytes for the vendor info, had 3",
    ),
    "bytes after vendor info": (
        w.spec_id([(w.SHA256, 32)], tail=b"xy"),
        "event 0 at offset 0x0: 2 bytes after the vendor info",
    ),
    "locality 5": (
        w.agile((w.SHA256,), [w.startup_locality(5)]),
        "event 1 at offset 0x41: startup locality 05 is not one byte 0, 3 or 4",
    ),
    "no locality": (
        w.agile((w.SHA256,), [w.Measurement(0, 3, b"StartupLocality\0")]),
        "event 1 at offset 0x41: startup locality missing is not one byte 0, 3 or 4",
    ),
    "locality told twice": (
        w.agile((w.SHA256,), [w.startup_locality(3)] * 2),
        "event 2 at offset 0x84: StartupLocality must come once, in PCR 0, before PCR 0 is extended",
    ),
    "locality too late": (
        w.agile((w.SHA256,), [w.SEPARATORS[0], w.startup_locality(3)]),
        "event 2 at offset 0x77: StartupLocality must come once, in PCR 0, before PCR 0 is extended",
    ),
    "H-CRTM too late": (
        w.agile((w.SHA256,), [w.SEPARATORS[0], w.Measurement(0, w.EV_EFI_HCRTM_EVENT, b"HCRTM")]),
        "event 2 at offset 0x77: the H-CRTM event must come once, before PCR 0 is otherwise extended",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_refuses(case: str) -> None:
    """The fault, its event and offset: enough to find it with a hex viewer."""
    content, sentence = BROKEN[case]
    with pytest.raises(Malformed) as caught:
        parse(content)
    assert caught.value.code == "eventlog-malformed"
    assert caught.value.sentence == sentence


def test_malformed_carries_event_and_offset() -> None:
    """For programs, as data."""
    with pytest.raises(Malformed) as caught:
        parse(ONE_BANK[:-1])
    assert caught.value.reasons[0].data == (("event", 1), ("offset", AFTER_SPEC_ID))


def test_size_and_event_limits() -> None:
    """Limits are inclusive, and apply before anything is read."""
    assert len(parse(ONE_BANK, limit=len(ONE_BANK), max_events=2).events) == 2
    with pytest.raises(Malformed, match=r"^the log has 119 bytes, more than 118$"):
        parse(ONE_BANK, limit=118)
    with pytest.raises(Malformed, match=r"^the log has more than 1 events$"):
        parse(ONE_BANK, max_events=1)
    with pytest.raises(Malformed, match="more than 1048576"):
        parse(bytes((1 << 20) + 1))


@pytest.mark.parametrize("name", VECTORS)
def test_every_truncation_is_noticed_or_ends_between_events(name: str) -> None:
    """A cut inside an event is Malformed; a cut between two events is the log of the events before it.

    The second cannot be noticed by any reader: it takes a quote to see that the log is too short.
    """
    content = (w.VECTORS / name).read_bytes()
    whole = parse(content)
    ends = {event.offset: event.index for event in whole.events if event.index} | {
        len(content): len(whole.events)
    }
    for size in range(len(content)):
        if size in ends:
            assert parse(content[:size]).events == whole.events[: ends[size]]
            continue
        with pytest.raises(Malformed):
            parse(content[:size])


@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_but_malformed(content: bytes) -> None:
    """Any bytes of a stranger are a parsed log or Malformed."""
    for start in (b"", w.spec_id([(w.SHA256, 32)]), ONE_BANK):
        try:
            log = parse(start + content)
        except Malformed:
            continue
        json.dumps(as_json(log))


@given(st.sampled_from(VECTORS), st.data())
def test_changed_bytes_raise_nothing_but_malformed(name: str, data: st.DataObject) -> None:
    """The same for logs that are almost right, and their descriptions."""
    content = bytearray((w.VECTORS / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        log = parse(bytes(content))
    except Malformed:
        return
    json.dumps(as_json(log))


MEASUREMENTS = st.lists(
    st.builds(
        w.Measurement,
        st.integers(0, 23),
        st.integers(0, 0xFFFFFFFF).filter(lambda t: t not in {w.EV_NO_ACTION, w.EV_EFI_HCRTM_EVENT}),
        st.binary(max_size=40),
        st.none() | st.binary(max_size=4),
    ),
    max_size=12,
)
BANKS = st.lists(st.sampled_from(sorted(w.HASHES)), min_size=1, unique=True)


@given(BANKS, MEASUREMENTS, st.binary(max_size=255))
def test_what_is_written_is_read(banks: list[int], measurements: list[w.Measurement], vendor: bytes) -> None:
    """parse(write(events)) gives the events back, and replays to a plain computation of the extends."""
    log = parse(w.agile(banks, measurements, vendor=vendor))
    assert [algorithm.name for algorithm in log.algorithms] == [w.HASHES[bank] for bank in banks]
    read = [(event.pcr, event.type, event.data, dict(event.digests)) for event in log.events[1:]]
    assert read == [
        (m.pcr, m.type, m.data, {w.HASHES[bank]: m.digest(bank) for bank in banks}) for m in measurements
    ]
    for bank in banks:
        values: dict[int, bytes] = {}
        for m in measurements:
            start = (b"\xff" if 17 <= m.pcr <= 22 else b"\0") * w.SIZES[bank]
            values[m.pcr] = hashlib.new(w.HASHES[bank], values.get(m.pcr, start) + m.digest(bank)).digest()
        assert replay(log, w.HASHES[bank]) == values


# --- replay -------------------------------------------------------------------------------------------------


def test_startup_locality_alone_sets_pcr_0() -> None:
    """PCR 0 appears without any extend if the log tells its locality."""
    assert replay(load("startup-locality-only.bin"), "sha256") == {0: bytes(31) + b"\3"}


def test_an_hcrtm_outranks_the_startup_locality() -> None:
    """TPM2_Startup does not touch PCR 0 after an H-CRTM sequence, so it starts at 4."""
    assert load("hcrtm.bin").startup_locality == 4
    assert load("startup-locality-3.bin").startup_locality == 3


def test_asking_for_a_bank_that_the_log_lacks() -> None:
    """Never initial values by default: that would look like a machine that measures nothing."""
    with pytest.raises(Malformed, match=r"^the log has no sha256 bank, only sha1$"):
        replay(load("sha1.bin"), "sha256")
    with pytest.raises(Malformed, match=r"^the log has no md5 bank, only sha1, sha256, sha384$"):
        replays_to(load("agile.bin"), "md5", {})


def test_replays_to_reports_every_unexplained_pcr() -> None:
    """All at once, ascending, with the number of events, so that a caller can tell tampering from late extends."""
    log = load("agile.bin")
    values = replay(log, "sha256")
    quoted = {**values, 4: b"\1" * 32, 10: b"\2" * 32, 12: bytes(32), 17: b"\xff" * 32, 18: bytes(32)}
    assert replays_to(log, "sha256", quoted) == (
        Mismatch(4, quoted=b"\1" * 32, replayed=values[4], events=2),
        Mismatch(10, quoted=b"\2" * 32, replayed=bytes(32), events=0),
        Mismatch(18, quoted=bytes(32), replayed=b"\xff" * 32, events=0),
    )


def test_a_shortened_log_does_not_explain_the_quote() -> None:
    """The premise of accepting a log that is cut between two events."""
    content = (w.VECTORS / "agile.bin").read_bytes()
    whole = parse(content)
    shorter = parse(content[: whole.events[-1].offset])
    (mismatch,) = replays_to(shorter, "sha256", replay(whole, "sha256"))
    assert (mismatch.pcr, mismatch.events) == (9, 1)


# --- for people ---------------------------------------------------------------------------------------------


def event(event_type: int, data: bytes, measured: bytes | None = None) -> Event:
    digest = hashlib.sha256(data if measured is None else measured).digest()
    return Event(1, 69, 4, event_type, {"sha256": digest}, data=data)


LOAD_OPTION = struct.pack("<IH", 1, 4) + "Linux\0".encode("utf-16-le") + b"\x7f\xff\4\0"

DESCRIBED = [
    (w.EV_NO_ACTION, b"StartupLocality\0\3", "startup locality 3"),
    (w.EV_NO_ACTION, b"Spec ID Event03\0rest", "Spec ID Event03"),
    (w.EV_NO_ACTION, b"SP800-155 Event\0\1\2", '"SP800-155 Event"'),
    (w.EV_SEPARATOR, bytes(4), "separator: 4 bytes 00000000"),
    (w.EV_SEPARATOR, b"\1\0\0\0", "separator after an error: 4 bytes 01000000"),
    (w.EV_S_CRTM_VERSION, "1.2\0".encode("utf-16-le"), '"1.2"'),
    (w.EV_S_CRTM_VERSION, w.EFI_GLOBAL.bytes_le, "8be4df61-93ca-11d2-aa0d-00e098032b8c"),
    (w.EV_POST_CODE, b"ACPI DATA", '"ACPI DATA"'),
    (w.EV_POST_CODE, struct.pack("<QQ", 0x1000, 32), "firmware blob at 0x1000, 32 bytes"),
    (0x8000000A, b"\3abc" + struct.pack("<QQ", 16, 32), '"abc", firmware blob at 0x10, 32 bytes'),
    (w.EV_ACTION, b"Calling INT 19h", '"Calling INT 19h"'),
    (w.EV_IPL, b"grub_cmd: linux /vmlinuz\0", '"grub_cmd: linux /vmlinuz"'),
    (w.EV_IPL, "quiet ro\0".encode("utf-16-le") + b"\0", '"quiet ro"'),
    (w.EV_EVENT_TAG, w.tagged(0x8F3B22EC, b"Linux initrd\0"), 'initrd: "Linux initrd"'),
    (w.EV_EVENT_TAG, w.tagged(0x8F3B22ED, b"LOADED_IMAGE\0"), 'load options: "LOADED_IMAGE"'),
    (w.EV_EVENT_TAG, w.tagged(7, b""), "tag 0x00000007: no data"),
    (w.EV_EFI_VARIABLE_DRIVER_CONFIG, w.variable("SecureBoot", b"\1"), "SecureBoot (EFI global): 1 bytes 01"),
    (w.EV_EFI_VARIABLE_BOOT, w.variable("BootOrder", b"\1\0\0\0"), "BootOrder (EFI global): 0001, 0000"),
    (w.EV_EFI_VARIABLE_BOOT, w.variable("Boot0001", LOAD_OPTION), 'Boot0001 (EFI global): "Linux"'),
    (w.EV_EFI_VARIABLE_BOOT, w.variable("Boot0001", b"\1\2"), "Boot0001 (EFI global): 2 bytes 0102"),
    (
        w.EV_EFI_BOOT_SERVICES_APPLICATION,
        w.image_load("\\EFI\\BOOT\\BOOTX64.EFI"),
        "PciRoot(0x0)/Pci(0x2,0x0)/HD(1,GPT,e3d1a5a0-12b2-4c1f-9d3b-0a5c6f7e8d90)/\\EFI\\BOOT\\BOOTX64.EFI (123456 bytes)",
    ),
    (
        0x80000006,
        bytes(56) + w.EFI_GLOBAL.bytes_le + bytes(20) + struct.pack("<Q", 3),
        "disk 8be4df61-93ca-11d2-aa0d-00e098032b8c, 3 partitions",
    ),
    (0x80000099, b"\0\1\2", "3 bytes 000102"),
    (0x80000099, b"", "no data"),
]


@pytest.mark.parametrize(("event_type", "data", "expected"), DESCRIBED)
def test_describes(event_type: int, data: bytes, expected: str) -> None:
    """The common events read as what they mean."""
    assert describe(event(event_type, data)) == expected


@given(st.sampled_from(list(EventType)) | st.integers(0, 0xFFFFFFFF), st.binary(max_size=200))
def test_describe_never_raises_and_never_prints_control_characters(event_type: int, data: bytes) -> None:
    """A log is written by whoever wants to; its text must not drive the operator's terminal."""
    assert describe(event(event_type, data)).isprintable()


@pytest.mark.parametrize(("_", "data", "__"), DESCRIBED)
@pytest.mark.parametrize("event_type", sorted(EventType))
def test_describe_survives_every_truncation(_: int, data: bytes, __: str, event_type: int) -> None:
    """Cut short or taken for another type, event data is still shown as something."""
    for size in range(len(data)):
        assert describe(event(event_type, data[:size]))


def test_text_from_a_log_is_defanged_and_cut() -> None:
    """Escape sequences and text-direction overrides are shown, not sent; long text ends in an ellipsis."""
    hostile = w.variable("\x1b[2J\u202e" + "x" * 500, b"\1")
    described = describe(event(w.EV_EFI_VARIABLE_DRIVER_CONFIG, hostile))
    assert described.startswith("\\x1b[2J\\u202exxx")
    assert "x..." in described
    assert len(described) < 300


MATCHING = [
    (w.EV_SEPARATOR, bytes(4), None),
    (w.EV_ACTION, b"Calling INT 19h", None),
    (0x80000007, b"Exit Boot Services Invocation", None),
    (w.EV_S_CRTM_VERSION, b"1\0", None),
    (w.EV_EFI_VARIABLE_DRIVER_CONFIG, w.variable("SecureBoot", b"\1"), None),
    (0x800000E0, w.variable("db", b"cert"), None),
    (w.EV_EFI_VARIABLE_BOOT, w.variable("BootOrder", b"\1\0"), None),
    (w.EV_EFI_VARIABLE_BOOT, w.variable("BootOrder", b"\1\0"), b"\1\0"),
    (w.EV_IPL, b"quiet", None),
    (w.EV_IPL, b"quiet\0", b"quiet"),
    (w.EV_IPL, b"grub_cmd: boot\0", b"boot"),
    (w.EV_IPL, b"kernel_cmdline: /vmlinuz ro\0", b"/vmlinuz ro"),
]


@pytest.mark.parametrize(("event_type", "data", "measured"), MATCHING)
def test_data_that_was_measured_matches(event_type: int, data: bytes, measured: bytes | None) -> None:
    """Each convention that firmware and boot loaders have for what is hashed."""
    assert data_matches_digest(event(event_type, data, measured), "sha256")


@pytest.mark.parametrize(
    ("event_type", "data", "measured"),
    [
        (w.EV_SEPARATOR, bytes(4), b"\1\0\0\0"),
        (w.EV_IPL, b"/vmlinuz\0", b"the kernel"),
        (w.EV_IPL, b"anything: boot\0", b"boot"),
        (w.EV_EFI_VARIABLE_DRIVER_CONFIG, w.variable("SecureBoot", b"\1"), b"\1"),
        (w.EV_EFI_VARIABLE_BOOT, b"too short", b"something"),
        (w.EV_EFI_BOOT_SERVICES_APPLICATION, b"even if it did", None),
    ],
)
def test_data_that_was_not_measured_does_not_match(
    event_type: int, data: bytes, measured: bytes | None
) -> None:
    """A changed value, a file's name, an unknown prefix, another type's convention."""
    assert not data_matches_digest(event(event_type, data, measured), "sha256")


def test_no_answer_for_a_bank_without_a_digest() -> None:
    """False, not an error: the caller shows a log, whatever is in it."""
    assert not data_matches_digest(event(w.EV_SEPARATOR, bytes(4)), "sha384")


def test_as_json() -> None:
    """The shape that the command line prints and tests elsewhere rely on."""
    log = load("startup-locality-3.bin")
    report = json.loads(json.dumps(as_json(log)))
    assert report.keys() == {"format", "startup_locality", "events", "pcrs"}
    assert (report["format"], report["startup_locality"]) == ("crypto-agile", 3)
    assert report["pcrs"].keys() == {"sha1", "sha256", "sha384"}
    assert report["pcrs"]["sha256"]["0"] == replay(log, "sha256")[0].hex()
    assert report["events"][4] == {
        "index": 4,
        "offset": log.events[4].offset,
        "pcr": 7,
        "type": "EV_EFI_VARIABLE_DRIVER_CONFIG",
        "digests": {bank: digest.hex() for bank, digest in log.events[4].digests.items()},
        "description": "SecureBoot (EFI global): 1 bytes 01",
        "data_matches_digest": True,
    }


def test_as_json_says_when_the_log_cannot_tell() -> None:
    """Null where a digest is over something outside the log; false only where it should have matched."""
    events = load("agile.bin").events
    report = as_json(EventLog("crypto-agile", (), events))["events"]
    assert isinstance(report, list)
    by_type = {(shown["type"], shown["pcr"]): shown["data_matches_digest"] for shown in report}
    assert by_type["EV_EFI_BOOT_SERVICES_APPLICATION", 4] is None
    assert (by_type["EV_IPL", 8], by_type["EV_IPL", 9]) == (True, None)
    forged = Event(0, 0, 0, w.EV_SEPARATOR, {"sha256": bytes(32)}, data=bytes(4))
    shown = as_json(EventLog("crypto-agile", (), (forged,)))["events"]
    assert shown[0]["data_matches_digest"] is False  # type: ignore[index]  # as_json's values are objects


@pytest.mark.bench
def test_speed_of_a_20_kb_log() -> None:
    """Another project spent 4.7 s on such a log; this must stay in the milliseconds."""
    measurements = (w.FIRMWARE + w.LINUX) * 9
    content = w.agile((w.SHA1, w.SHA256, w.SHA384), measurements)
    assert len(content) > 20_000
    started = time.perf_counter()
    for _ in range(20):
        replay(parse(content), "sha256")
    took = (time.perf_counter() - started) / 20
    print(f"{len(content)} bytes, {len(measurements)} events: {took * 1000:.2f} ms")
    assert took < 0.1
