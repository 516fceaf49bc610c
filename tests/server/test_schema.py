"""The OpenAPI document: complete, valid, and kept by the server when schemathesis tries it."""

from __future__ import annotations

from unittest import SkipTest

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from tests.server.conftest import Running
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


def attack(server: Running, examples: int) -> None:
    """`examples` valid and as many invalid cases for each operation."""
    schema = schemathesis.openapi.from_url(server.url + "/openapi.json")
    checks = CHECKS.get_by_names(CHECKED)
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
                    case.call_and_validate(checks=checks)

                check()
            except (Unsatisfiable, SkipTest):
                assert mode is GenerationMode.NEGATIVE, "nothing to get wrong in this operation"


def test_a_few_cases_of_each_operation(server: Running):
    attack(server, 5)


@pytest.mark.slow
def test_two_thousand_cases(server: Running):
    attack(server, 40)
