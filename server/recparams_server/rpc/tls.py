"""TLS on the gRPC port, with files that are read again when they change."""

import ssl
from pathlib import Path

import grpc
import structlog

log = structlog.get_logger()
Stamp = tuple[tuple[int, int, int] | None, ...]


class CertificateError(Exception):
    """Files that cannot be used for TLS; the message says which and why."""


def server_credentials(
    certificate: Path, key: Path, client_ca: Path | None
) -> grpc.ServerCredentials:
    """Returns credentials of a server that follow their PEM files.

    Args:
        certificate: the server's, followed by its intermediate ones.
        key: the private key to it, not encrypted.
        client_ca: certificates that clients' ones must lead to; None asks clients for none.

    Raises:
        CertificateError: a file cannot be read or used.
    """
    files = CertificateFiles(certificate, key, client_ca)
    return grpc.dynamic_ssl_server_credentials(
        files.read(),
        files.changed,  # type: ignore[arg-type]  # None is for no change
        client_ca is not None,
    )


def expires_at(certificate: Path, key: Path) -> float:
    """Returns the end of a server's certificate, in seconds since 1970.

    Raises CertificateError if the files cannot be used, as for `server_credentials`.
    """
    from cryptography import x509

    _load(certificate, key)
    try:
        found = x509.load_pem_x509_certificate(_content("tls_certificate", certificate))
    except ValueError as failure:
        raise CertificateError(f"tls_certificate {certificate}: {failure}") from None
    return found.not_valid_after_utc.timestamp()


class CertificateFiles:
    """PEM files of a server, as in `server_credentials`."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._seen: Stamp = ()

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns the new configuration if the files changed and can be used, or else None.

        gRPC calls it before each handshake.
        """
        if self._stamp() == self._seen:
            return None
        try:
            configuration = self.read()
        except CertificateError as failure:
            log.error("new certificate refused, the last one stays", error=str(failure))
            return None
        log.info("certificate reloaded", file=str(self._certificate))
        return configuration

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Returns the configuration in the files. Raises CertificateError."""
        # Taken first: what is written while these lines run is read at the next handshake.
        self._seen = self._stamp()
        chain = _content("tls_certificate", self._certificate)
        key = _content("tls_key", self._key)
        context = _load(self._certificate, self._key)
        if self._client_ca is None:
            return grpc.ssl_server_certificate_configuration([(key, chain)])
        roots = _content("tls_client_ca", self._client_ca)
        try:
            context.load_verify_locations(self._client_ca)
        except OSError as failure:
            raise CertificateError(
                f"tls_client_ca {self._client_ca} has no PEM certificate ({_reason(failure)})"
            ) from None
        return grpc.ssl_server_certificate_configuration([(key, chain)], roots)

    def _stamp(self) -> Stamp:
        """Returns a value that differs whenever a file was written or replaced."""
        files = (self._certificate, self._key, self._client_ca)
        return tuple(_stamp(file) for file in files if file is not None)


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _load(certificate: Path, key: Path) -> ssl.SSLContext:
    """Returns a context with both. Raises CertificateError if they do not belong together."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # A password keeps OpenSSL from asking for one on the terminal.
        context.load_cert_chain(certificate, key, password="")
    except OSError as failure:
        raise CertificateError(
            f"tls_certificate {certificate} and tls_key {key} are not a PEM "
            f"certificate and its own unencrypted key ({_reason(failure)})"
        ) from None
    return context


def _content(setting: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as failure:
        raise CertificateError(f"{setting} {file} cannot be read: {failure.strerror}") from None


def _reason(failure: OSError) -> str:
    return str(getattr(failure, "reason", None) or failure)
