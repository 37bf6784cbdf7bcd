"""The admin API's OpenAPI document: valid, served as it is committed, and true."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from tang_attest.ports.admin import Scope
from tang_attest.web.admin.routes import OPERATIONS, document
from tests.cli.serving import PATIENCE_S, program, serving
from tests.server import Server
from tools.generate_docs import ROOT


def test_the_document_is_openapi() -> None:
    """A maintained validator says so, of OpenAPI 3.1 and of every schema in it."""
    found = document()
    assert found["openapi"] == "3.1.0"
    OpenAPIV31SpecValidator(found).validate()


async def test_the_document_is_served_to_everybody(server: Server) -> None:
    """It holds no secret; it is the file in docs/, which test_docs.py compares with the program."""
    for method in ("GET", "HEAD"):
        answer = await server.request(method, "/admin/v1/openapi.json")
        assert (answer.status, answer.headers["Content-Type"].split(";")[0]) == (200, "application/json")
    answer = await server.request("GET", "/admin/v1/openapi.json")
    assert answer.body == json.loads((ROOT / "docs" / "openapi.json").read_text())


def test_every_operation_needs_a_scope() -> None:
    """Reading never needs more than ``read``, and changing never less than another."""
    assert len({operation.name for operation in OPERATIONS}) == len(OPERATIONS)
    for operation in OPERATIONS:
        assert (operation.scope is Scope.READ) == (operation.method == "GET"), operation.name
        parameters = set(re.findall(r"\{(\w+)\}", operation.path))
        assert parameters == set(operation.parameters.model_fields), operation.name


@pytest.mark.slow
def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    """Random requests to a real server: no defect, no status or answer that is not documented, no way around the token."""
    state = ["--state", str(tmp_path / "state")]
    assert program(*state, "init").returncode == 0
    assert program(*state, "policy", "create", "web", "--selection", "sha256:0,4,7").returncode == 0
    scopes = [word for scope in Scope for word in ("--scope", scope.value)]
    token = program(*state, "admin-token", "create", "schemathesis", *scopes).stdout.strip()
    with serving(tmp_path, "--admin-api") as server:
        done = subprocess.run(
            [
                Path(sys.executable).parent / "schemathesis",
                "run",
                f"http://127.0.0.1:{server.port}/admin/v1/openapi.json",
                "--header",
                f"Authorization: Bearer {token}",
                "--max-examples=10",
                "--generation-deterministic",
                "--no-color",
                # Limits beyond a schema: values fit the policy, a label is printable.
                "--exclude-checks=positive_data_acceptance",
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            timeout=2 * PATIENCE_S - 10,
        )
        log = server.log.read_text()
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(OPERATIONS)} selected / {len(OPERATIONS)} total" in done.stdout
    assert "defect" not in log
    assert token not in log
