"""The OpenAPI document: complete, valid, and kept by the server when schemathesis tries it."""

from unittest import SkipTest

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from tests.server.conftest import Running
from weir.bench.private import private
from weir.server.app import ENDPOINTS

load_all_checks()
CHECKED = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
]


@pytest.fixture(scope="module")
def document(http) -> dict:
    return http.get("/openapi.json").json()


def test_every_route_is_described(document, server):
    routes = {
        (route.path.replace(":path", ""), method.lower())
        for route in server.app.routes
        for method in route.methods - {"HEAD"}
    }
    described = {(path, method) for path, item in document["paths"].items() for method in item}
    assert routes == described
    assert len(ENDPOINTS) < len(routes)


def test_every_reference_leads_somewhere(document):
    schemas = document["components"]["schemas"]

    def references(value):
        if isinstance(value, dict):
            yield from [value["$ref"]] if "$ref" in value else []
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                yield from references(item)

    found = set(references(document))
    assert found and all(ref.rsplit("/", 1)[1] in schemas for ref in found)


def test_operations_have_ids_and_errors(document):
    operations = [one for item in document["paths"].values() for one in item.values()]
    assert len({one["operationId"] for one in operations}) == len(operations)
    for code in ("400", "401", "404", "413", "422", "503"):
        assert code in document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert (
        "text/event-stream"
        in (document["paths"]["/v1/completions"]["post"]["responses"]["200"]["content"])
    )


def attack(url: str, headers: dict[str, str], examples: int) -> int:
    """`examples` valid and as many invalid cases for each operation; returns how many were sent."""
    schema = schemathesis.openapi.from_url(url + "/openapi.json", headers=headers)
    checks = CHECKS.get_by_names(CHECKED)
    sent = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in GenerationMode:
            try:
                cases = operation.as_strategy(mode)

                @settings(
                    max_examples=examples,
                    deadline=None,
                    derandomize=True,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                )
                @given(cases)
                def check(case) -> None:
                    nonlocal sent
                    sent += 1
                    case.call_and_validate(checks=checks, headers=headers)

                check()
            except (Unsatisfiable, SkipTest):
                assert mode is GenerationMode.NEGATIVE, "nothing to get wrong in this operation"
    return sent


def test_a_few_cases_of_each_operation(server: Running):
    attack(server.url, {}, 3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_thousand_cases_against_a_model():
    """Afterwards the engine that began still lives, computes, and no request holds a page."""
    with private("smollm2-135m", ["--max-model-len", "256"]) as server:
        with httpx.Client(base_url=server.url, headers=server.headers, timeout=30) as http:
            began = http.get("/server_info").json()
            assert attack(server.url, server.headers, 60) >= 2000
            assert http.get("/health", params={"deep": True}).status_code == 200
            ended = http.get("/server_info").json()
    assert ended["health"] == "ready" and ended["engine"]["pid"] == began["engine"]["pid"]
    held = {name: ended["stats"][name] for name in ("running", "waiting", "pages_used")}
    assert not any(held.values()), held
    assert ended["stats"]["generated_tokens"] > 0
