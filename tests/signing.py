"""Keys, certificates and signatures as a team would make them: with the commands that docs/trust.md shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def _run(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True, timeout=60)


def make_key(folder: Path, name: str = "model") -> Path:
    """A private key, `<name>.key`, and beside it the public one, whose path is returned."""
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    _run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private)
    _run("openssl", "ec", "-in", private, "-pubout", "-out", public)
    return public


def make_certificate(folder: Path, name: str = "ca") -> Path:
    """An authority, whose certificate's path is returned, and a signer's key and certificate, `<name>-signer.*`."""
    authority, signer = folder / f"{name}.pem", folder / f"{name}-signer"
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    _run("openssl", "req", "-x509", *new, "-keyout", folder / f"{name}.key", "-out", authority, "-days", "2", "-subj",
         f"/CN={name}")  # fmt: skip
    _run("openssl", "req", *new, "-keyout", f"{signer}.key", "-out", f"{signer}.csr", "-subj", "/CN=signer")
    usage = folder / f"{name}.ext"
    usage.write_text("keyUsage=digitalSignature\nextendedKeyUsage=codeSigning\n")
    _run("openssl", "x509", "-req", "-in", f"{signer}.csr", "-CA", authority, "-CAkey", folder / f"{name}.key",
         "-CAcreateserial", "-extfile", usage, "-out", f"{signer}.pem", "-days", "2")  # fmt: skip
    return authority


def sign(model: Path, public: Path, *more: str | Path) -> None:
    """Signs a model's folder with the private key beside a public one."""
    _run(sys.executable, "-m", "model_signing", "sign", "key", "--private_key", public.with_suffix(".key"),
         "--signature", model / "model.sig", *more, model)  # fmt: skip


def sign_with_certificate(model: Path, authority: Path) -> None:
    """Signs a model's folder as the signer below an authority."""
    signer = authority.with_name(f"{authority.stem}-signer")
    _run(sys.executable, "-m", "model_signing", "sign", "certificate", "--private_key", f"{signer}.key",
         "--signing_certificate", f"{signer}.pem", "--certificate_chain", authority,
         "--signature", model / "model.sig", model)  # fmt: skip
