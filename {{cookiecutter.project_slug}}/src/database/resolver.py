"""Read DATABASE_URL: which database it asks for, or why it cannot be used.

No file, socket or clock is touched, and every value gives a Resolution. Each step is a function in
`space_runtime/url`; this module is the order in which they run.
"""

from collections.abc import Mapping

from space_runtime.url.building import (
    build_postgresql_url,
    build_sqlite_url,
    hide_secrets,
    lift_parameters,
    read_parameters,
)
from space_runtime.url.resolution import Resolution
from space_runtime.url.security import refuse_security_outside
from space_runtime.url.splitting import (
    is_transaction_pooler,
    read_hosts,
    read_keyword_string,
    refuse_incomplete,
    split_scheme,
    split_url,
)
from space_runtime.url.unwrapping import (
    cut_out_url,
    refuse_placeholders,
    refuse_placeholders_in_path,
    refuse_variables_inside,
    refuse_what_is_no_url,
    unwrap,
)
from space_runtime.url.vocabulary import (
    Parts,
    UnusableURLError,
    advise_on_space,
    refuse_control_characters,
)


class DatabaseURLResolver:
    """Reads DATABASE_URL as people paste it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._value = environ.get("DATABASE_URL")
        self._on_space = bool(environ.get("SPACE_ID"))

    def resolve(self) -> Resolution:
        """Return the configured database, or why DATABASE_URL cannot be used."""
        try:
            return self._read()
        except UnusableURLError as problem:
            return _fallback(problem)
        except Exception:
            # A bug in a step must not keep the Space from starting. The exception is not logged,
            # because its text may quote the value.
            return _fallback(UnusableURLError("unparseable"))

    def _read(self) -> Resolution:
        if self._value is None:
            raise UnusableURLError("unset")
        repairs: list[str] = []
        text = unwrap(self._value, repairs)
        refuse_what_is_no_url(text)
        text = cut_out_url(text, repairs)
        refuse_variables_inside(text)
        refuse_control_characters(text)
        parts = read_keyword_string(text)
        if parts is None:
            backend, rest = split_scheme(text, repairs)
            if backend == "sqlite":
                return self._sqlite(rest, repairs)
            parts = split_url(rest, repairs)
        return self._postgresql(parts, repairs)

    def _postgresql(self, parts: Parts, repairs: list[str]) -> Resolution:
        refuse_security_outside(self._value or "")
        lift_parameters(parts)
        refuse_placeholders(parts)
        hosts, ports = read_hosts(parts)
        parts.decode()
        refuse_incomplete(parts, hosts)
        pooled = is_transaction_pooler(parts, hosts, ports)
        query = read_parameters(parts.parameters, len(hosts), repairs, pooled=pooled)
        advice = advise_on_space(hosts, ports) if self._on_space else ""
        url, secrets = hide_secrets(build_postgresql_url(parts, hosts, ports, query))
        return Resolution(
            url=url,
            backend="postgresql",
            repairs=tuple(dict.fromkeys(repairs)),
            message=advice or "DATABASE_URL names a PostgreSQL database.",
            advice=advice,
            transaction_pooler=pooled,
            secrets=secrets,
        )

    def _sqlite(self, rest: str, repairs: list[str]) -> Resolution:
        refuse_placeholders_in_path(rest)
        return Resolution(
            url=build_sqlite_url(rest, repairs),
            backend="sqlite",
            repairs=tuple(dict.fromkeys(repairs)),
            message="DATABASE_URL names a SQLite database.",
        )


def _fallback(problem: UnusableURLError) -> Resolution:
    return Resolution(
        url=None,
        backend="sqlite",
        source="fallback",
        reason=problem.reason,
        message=problem.message,
    )
