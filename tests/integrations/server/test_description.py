"""The OpenAPI description against the server: requests that schemathesis makes from it never fail inside."""

from __future__ import annotations

import hypothesis
import pytest
import schemathesis

from adafuse_core import ScriptedMember
from tests.integrations.server.running import serving

EXAMPLES = 12  # requests for each operation, valid and invalid
SETTINGS = hypothesis.settings(
    deadline=None, database=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)


@pytest.fixture(scope="module")
def server():
    with serving(ScriptedMember("one", "a b c"), ScriptedMember("two", "a b c")) as running:
        yield running


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_requests_made_from_the_description_never_fail_inside(server, count, mode):
    valid = mode is schemathesis.GenerationMode.POSITIVE
    statuses = []
    for operation in operations(server):
        if not (valid or len(operation.body)):
            continue  # nothing in it can be invalid

        @hypothesis.settings(SETTINGS, max_examples=EXAMPLES)
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def call(case):
            if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                case.body["model"] = "pair"  # a random name would end every request
            response = case.call(base_url=server.url)
            assert response.status_code < 500, response.text
            statuses.append(response.status_code)

        call()
    count("requests made from the description", len(statuses), at_least=2 * EXAMPLES)
    assert (200 if valid else 400) in statuses
    server.idle()


def operations(server):
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    return [operation.ok() for operation in schema.get_all_operations()]


def test_the_description_has_all_routes(server):
    paths = server.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        *("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{name}", "/v1/adafuse/ensembles"),
        *("/health", "/ready", "/metrics"),
    }
