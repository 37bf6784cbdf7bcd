"""docs/how-to/updates/pipeline.md really works: its own commands, with curl, over TLS, against the program."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.serving import clean_environment, initialize, program, serving
from tests.web.admin.client import pcrread, values
from tools.generate_docs import ROOT

HOW_TO = (ROOT / "docs/how-to/updates/pipeline.md").read_text()


def certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate for localhost and its key."""
    paths = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc",
         "-keyout", paths[1], "-out", paths[0], "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    return paths


def test_the_pipeline_stages_an_image(tmp_path: Path) -> None:
    """The token of the how-to stages the how-to's image; again is fine, after a revocation nothing is."""
    state = ["--state", str(tmp_path / "state")]
    initialize(tmp_path / "state")
    assert program(*state, "policy", "create", "webservers", "--selection", "sha256:0,2,4,7").returncode == 0
    (create,) = re.findall(r"^    tang-attest (admin-token create .*)$", HOW_TO, re.MULTILINE)
    token = program(*state, *create.split()).stdout.strip()
    (tmp_path / "header").write_text(f"Authorization: Bearer {token}\n")
    (tmp_path / "image-42.pcrs").write_bytes(pcrread(values("a")))
    (script,) = re.findall(r"^```bash\n(.*?)^```", HOW_TO, re.MULTILINE | re.DOTALL)
    cert, key = certificate(tmp_path)
    with serving(tmp_path, "--admin-api", "--tls-certificate", cert, "--tls-key", key) as server:
        names = {"SERVER": f"https://localhost:{server.port}", "HEADER": "header", "CA": str(cert)}

        def step() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                ["bash", "-euc", script], cwd=tmp_path, env=clean_environment(**names),
                capture_output=True, text=True, check=False,
            )  # fmt: skip

        first, again = step(), step()
        assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
        assert first.stdout == again.stdout
        state_now = json.loads(first.stdout)
        assert (state_now["label"], state_now["life"]) == ("image-42", "staged")
        assert program(*state, "admin-token", "revoke", "image-build").returncode == 0
        late = step()
        assert late.returncode != 0
        assert json.loads(late.stdout)["code"] == "admin-token-invalid"
        log = server.log.read_text()
    audit = json.loads(program(*state, "audit", "--json").stdout)
    assert [row["actor"] for row in audit if row["event"] == "policy state add"] == ["token:image-build"]
    files = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert len(files) >= 2
    assert token not in log
    assert not [path for path in files if token.encode() in path.read_bytes()]


@pytest.mark.parametrize("switched_on", [True, False])
def test_it_is_off_unless_it_is_switched_on(tmp_path: Path, switched_on: bool) -> None:
    """A server of machines has no admin API by itself, nor its document."""
    initialize(tmp_path / "state")
    with serving(tmp_path, *(["--admin-api"] if switched_on else [])) as server:
        for path, status in (("openapi.json", 200), ("devices", 401)):
            done = subprocess.run(
                ["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}",
                 f"http://127.0.0.1:{server.port}/admin/v1/{path}"],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            assert done.stdout == (str(status) if switched_on else "404")
