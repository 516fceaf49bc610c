"""The API keys of a server and the tenants they belong to. Keeps digests, never the keys."""

import hashlib
import hmac
from collections.abc import Mapping, Sequence

from weir.errors import BadRequest


class Keys:
    """plain: keys without a tenant. named: tenant → key. Without either, no key is required."""

    def __init__(self, plain: Sequence[str], named: Mapping[str, str]):
        self._tenants = [(_digest(key), "") for key in plain]
        self._tenants += [(_digest(key), tenant) for tenant, key in named.items()]
        self._named = frozenset(named)
        self.asked = bool(self._tenants)

    def tenant(self, header: str) -> str:
        """The tenant of an Authorization header's key; empty for a plain key. The time taken
        reveals nothing about the keys. Raises `BadRequest` for an unknown key."""
        if not self.asked:
            return ""
        scheme, _, key = header.partition(" ")
        given = _digest(key.strip())
        found = [(hmac.compare_digest(given, known), tenant) for known, tenant in self._tenants]
        bearer = scheme.lower() == "bearer"
        if not bearer or not any(equal for equal, _ in found):
            says = "This server needs an API key: send it as 'Authorization: Bearer <key>'."
            if bearer and key.strip():
                says = "This API key is none of the server's: send another."
            raise BadRequest(says, code="invalid_api_key", status=401)
        return next(tenant for equal, tenant in found if equal)

    def payer(self, tenant: str, user: str) -> str:
        """The tenant or user whose share a request counts against: the tenant of its key, else the
        `user` it names. The name of a tenant that has a key is ignored there."""
        return tenant or ("" if user in self._named else user)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
