"""What a Redis asks of those who connect to it, beside its address."""

import ssl
from dataclasses import dataclass
from typing import Any

from rerankd.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Passwords that the URL does not hold, and PEM files for TLS. A certificate's key may be in the same file."""

    password: str = ""
    sentinel_password: str = ""
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    def check_files(self) -> None:
        """Read the certificates as a connection will.

        Raises:
            ConfigError: a file is missing or holds something else; the message names its setting.
        """
        if self.key_file and not self.cert_file:
            raise ConfigError("RERANKD_CACHE_KEY_FILE has no certificate: set RERANKD_CACHE_CERT_FILE")
        context = ssl.create_default_context()
        try:
            if self.ca_file:
                context.load_verify_locations(self.ca_file)
        except OSError as error:
            raise ConfigError(f"RERANKD_CACHE_CA_FILE: no certificate can be read from it: {error}") from None
        try:
            if self.cert_file:
                # An empty password, or OpenSSL would ask the terminal for one.
                context.load_cert_chain(self.cert_file, self.key_file, password="")
        except (OSError, ValueError) as error:
            raise ConfigError(
                "RERANKD_CACHE_CERT_FILE and RERANKD_CACHE_KEY_FILE: no certificate with its unencrypted key can be "
                f"read from them: {error}"
            ) from None

    def tls(self) -> dict[str, Any]:
        """What the client calls it."""
        return {
            "ssl": True,
            "ssl_ca_certs": self.ca_file,
            "ssl_certfile": self.cert_file,
            "ssl_keyfile": self.key_file or self.cert_file,
        }
