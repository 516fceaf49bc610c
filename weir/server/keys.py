"""Who may ask, and for which tenant: the API keys of a server. Keeps no key, only digests."""

import hashlib
import hmac
from collections.abc import Mapping, Sequence

from weir.errors import BadRequest


class Keys:
    """plain: keys that say nothing of who asks. named: tenant → key. With neither, all may ask."""

    def __init__(self, plain: Sequence[str], named: Mapping[str, str]):
        self._tenants = [(_digest(key), "") for key in plain]
        self._tenants += [(_digest(key), tenant) for tenant, key in named.items()]
        self._named = frozenset(named)
        self.asked = bool(self._tenants)

    def tenant(self, header: str) -> str:
        """The tenant of an Authorization header's key; empty: of no one in particular. Takes a time
        that tells nothing about the keys. Raises `BadRequest` for a key that is none of ours."""
        if not self.asked:
            return ""
        scheme, _, key = header.partition(" ")
        given = _digest(key.strip())
        found = [(hmac.compare_digest(given, known), tenant) for known, tenant in self._tenants]
        if scheme.lower() != "bearer" or not any(equal for equal, _ in found):
            raise BadRequest(
                "This server needs an API key: send it as 'Authorization: Bearer <key>'.",
                code="invalid_api_key",
                status=401,
            )
        return next(tenant for equal, tenant in found if equal)

    def payer(self, tenant: str, user: str) -> str:
        """Whose share a request counts against: the tenant of its key, or the `user` it names,
        which must not be a tenant that has a key."""
        return tenant or ("" if user in self._named else user)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
