"""The names that may stand in a URL's query: libpq's own, and those that other tools add."""

# All of libpq 18 but these, on purpose:
# service, servicefile: point at a file that a container does not have, which fails every connect;
# replication: turns the connection into one that runs no SQL;
# sslkeylogfile: writes the session's keys to disk.
_KEPT = """
application_name channel_binding client_encoding connect_timeout fallback_application_name
gssdelegation gssencmode gsslib hostaddr keepalives keepalives_count keepalives_idle
keepalives_interval krbsrvname load_balance_hosts max_protocol_version min_protocol_version
oauth_client_id oauth_client_secret oauth_issuer oauth_scope options passfile require_auth
requirepeer scram_client_key scram_server_key ssl_max_protocol_version ssl_min_protocol_version
sslcert sslcertmode sslcompression sslcrl sslcrldir sslkey sslmode sslnegotiation sslpassword
sslrootcert sslsni target_session_attrs tcp_user_timeout
"""

# A value of another kind makes every connect fail, with a text that quotes the value.
_WHOLE_NUMBERS = """
connect_timeout keepalives keepalives_count keepalives_idle keepalives_interval tcp_user_timeout
"""
CHOICES = {
    "channel_binding": {"disable", "prefer", "require"},
    "gssdelegation": {"0", "1"},
    "gssencmode": {"disable", "prefer", "require"},
    "load_balance_hosts": {"disable", "random"},
    "sslcertmode": {"disable", "allow", "require"},
    "sslcompression": {"0", "1"},
    "sslmode": {"disable", "allow", "prefer", "require", "verify-ca", "verify-full"},
    "sslnegotiation": {"postgres", "direct"},
    "sslsni": {"0", "1"},
    "target_session_attrs": {
        "any",
        "read-write",
        "read-only",
        "primary",
        "standby",
        "prefer-standby",
    },
}

# Other spellings, in lower case, of something that libpq has.
ALIASES = {
    "applicationname": "application_name",
    "connecttimeout": "connect_timeout",
    "currentschema": "search_path",
    "dbname": "database",
    "db": "database",
    "hostname": "host",
    "logintimeout": "connect_timeout",
    "pass": "password",
    "pwd": "password",
    "requiressl": "ssl",
    "schema": "search_path",
    "searchpath": "search_path",
    "socket": "unix_sock",
    "ssl-mode": "sslmode",
    "ssl_mode": "sslmode",
    "unix_socket": "unix_sock",
    "username": "user",
}
LIFTED = frozenset({"user", "password", "host", "port", "database", "unix_sock"})
TRANSLATED = frozenset({"ssl", "search_path"})

# Only names that tools are known to write may be shown in a report. Any other "name" may be the end
# of a password that held a '?' or a '&'.
_FOREIGN = """
allowpublickeyretrieval async_fallback autocommit binaryparameters cache cached_statements charset
check_same_thread command_timeout conn_health_checks conn_max_age connection_limit
connectiontimeoutmillis default_query_exec_mode detect_types direct_tls disable_server_side_cursors
driver echo encoding env isolation_level max_overflow maxpoolsize minpoolsize mode name pgbouncer
plugin pool pool_max_conns pool_min_conns pool_pre_ping pool_recycle pool_size pool_timeout pooling
prefer_simple_protocol prepare_threshold prepared_statement_cache_size prepared_statement_name_func
prepared_statements preparethreshold readonly reaping_frequency replication rewritebatchedinserts
safemodelevel server_settings serverversion service servicefile single_use_connections
socket_timeout sockettimeout ssl_require sslaccept sslfactory sslidentity sslkeylogfile
statement_cache_capacity statement_cache_size statement_timeout statuscolor stringtype supa
target_server_type targetservertype tcpkeepalive timeout timezone tlsmode uri uselibpqcompat
usepipelining useprivatekey useserverprepstmts workaround
"""

KEPT = frozenset(_KEPT.split())
WHOLE_NUMBERS = frozenset(_WHOLE_NUMBERS.split())
KNOWN = KEPT | LIFTED | TRANSLATED | frozenset(ALIASES) | frozenset(_FOREIGN.split())
