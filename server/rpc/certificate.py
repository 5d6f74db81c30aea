"""When a certificate ends."""

import contextlib
import ssl
from pathlib import Path

_NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which `ssl` has no name for."""
FLIGHTS = 5


def expires_at(certificate: Path, key: Path) -> float:
    """The end of a server's certificate, in seconds since 1970.

    The standard library reads a certificate only as that of a peer, so two ends shake hands in
    memory. Raises OSError where the files cannot be used.
    """
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate, key, password="")
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.check_hostname = False
    asking.load_verify_locations(certificate)
    asking.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    # One that has ended is to be read too.
    asking.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = asking.wrap_bio(down, up)
    server = serving.wrap_bio(up, down, server_side=True)
    for _ in range(FLIGHTS):
        for end in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    found = client.getpeercert() or {}
    return float(ssl.cert_time_to_seconds(str(found["notAfter"])))
