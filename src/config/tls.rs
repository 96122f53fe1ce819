//! `[broker.tls]`: whom to trust, who we are, and what the broker is called.
//!
//! The files are read when the configuration is, to find what is wrong with them, and again at each connection, since
//! certificates are renewed while a worker runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, Error, InconsistentKeys, RootCertStore};

use super::field::Field;
use super::reader::{Outcome, Section};
use super::values::text;

/// `[broker.tls]`: for addresses that start with `amqps://`.
///
/// The broker's certificate is always checked: who issued it, the name in it, and its dates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// `ca`: a PEM file of the authorities that the broker's certificate may be from, in place of this machine's own list.
    pub ca: Option<PathBuf>,
    /// `cert` and `key`: who we are, where the broker asks.
    pub identity: Option<Identity>,
    /// `server_name` that the broker's certificate must be for; default: the host in the URL.
    pub server_name: Option<String>,
}

/// `cert` and `key` of `[broker.tls]`, which belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `cert`: a PEM file: the certificate, and those between it and its authority.
    pub cert: PathBuf,
    /// `key`: a PEM file: the certificate's private key, without a passphrase.
    pub key: PathBuf,
}

/// What is wrong with a file of `[broker.tls]`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("broker.tls.{key}: {message}")]
pub struct TlsFault {
    /// `ca`, `cert` or `key`.
    pub key: &'static str,
    /// What is wrong, and what to do. Shows nothing of the file's content.
    pub message: String,
}

impl TlsConfig {
    /// What a TLS client needs, from the files as they are now.
    ///
    /// # Errors
    /// If a file can't be used.
    pub fn client(&self) -> Result<ClientConfig, TlsFault> {
        let roots = match &self.ca {
            Some(ca) => authorities(ca)?,
            None => system_authorities()?,
        };
        let fault = |error: Error| TlsFault { key: "cert", message: error.to_string() };
        let builder = ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()
            .map_err(fault)?
            .with_root_certificates(roots);
        match &self.identity {
            Some(identity) => {
                let (certificates, key) = identity.read()?;
                builder.with_client_auth_cert(certificates, key).map_err(fault)
            }
            None => Ok(builder.with_no_client_auth()),
        }
    }

    /// Whether the files can be used.
    fn check(&self) -> Result<(), TlsFault> {
        self.ca.as_deref().map(authorities).transpose()?;
        self.identity.as_ref().map(Identity::read).transpose()?;
        Ok(())
    }
}

impl Identity {
    fn read(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsFault> {
        let certificates = certificates("cert", &self.cert)?;
        let fault = |message: String| TlsFault { key: "key", message };
        let path = self.key.display();
        let bytes = content("key", &self.key)?;
        let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| {
            let encrypted = bytes.windows(9).any(|window| window == b"ENCRYPTED");
            match error {
                pem::Error::NoItemsFound if encrypted => fault(format!(
                    "'{path}' has a passphrase: write it without (openssl pkey -in FILE -out FILE)"
                )),
                pem::Error::NoItemsFound => fault(format!("'{path}' holds no private key in PEM")),
                _ => fault(not_pem(&self.key)),
            }
        })?;
        match CertifiedKey::from_der(certificates.clone(), key.clone_key(), &provider()) {
            Ok(_) => Ok((certificates, key)),
            Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                Err(fault(format!("'{path}' is not the key of the certificate in '{}'", self.cert.display())))
            }
            Err(error) => {
                Err(fault(format!("'{path}' with '{}' can't be used: {error}", self.cert.display())))
            }
        }
    }
}

/// Named, because where two are compiled in (for an engine's TLS) there is no default.
fn provider() -> CryptoProvider {
    ring::default_provider()
}

fn authorities(path: &Path) -> Result<RootCertStore, TlsFault> {
    let mut store = RootCertStore::empty();
    for certificate in certificates("ca", path)? {
        store.add(certificate).map_err(|error| TlsFault {
            key: "ca",
            message: format!("'{}' has a certificate that can't be used: {error}", path.display()),
        })?;
    }
    Ok(store)
}

fn system_authorities() -> Result<RootCertStore, TlsFault> {
    let mut store = RootCertStore::empty();
    // Such lists contain what nobody can read any more.
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if store.is_empty() {
        let message = "this machine has no list of authorities: install ca-certificates, or name a file here"
            .to_owned();
        return Err(TlsFault { key: "ca", message });
    }
    Ok(store)
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFault> {
    let bytes = content(key, path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(TlsFault {
            key,
            message: format!(
                "'{}' holds no certificate in PEM, which begins with -----BEGIN CERTIFICATE-----",
                path.display()
            ),
        }),
        Err(_) => Err(TlsFault { key, message: not_pem(path) }),
    }
}

fn content(key: &'static str, path: &Path) -> Result<Vec<u8>, TlsFault> {
    std::fs::read(path)
        .map_err(|error| TlsFault { key, message: format!("'{}' can't be read: {error}", path.display()) })
}

/// Without the parser's message, which quotes the file.
fn not_pem(path: &Path) -> String {
    format!("'{}' is damaged: it begins like PEM and doesn't go on so", path.display())
}

/// The section. The files are looked at here, so that a wrong one is known before it is needed.
pub(super) fn tls(section: &mut Section<'_, '_>) -> Outcome<TlsConfig> {
    let ca = section.optional("ca", file);
    let cert = section.optional("cert", file);
    let key = section.optional("key", file);
    let server_name = section.optional("server_name", |field| {
        let name = text(field)?;
        match ServerName::try_from(name.as_str()) {
            Ok(_) => Ok(name),
            Err(_) => Err(field.is_not("a host's name or an IP address")),
        }
    });
    let identity = match (cert?, key?) {
        (Some(cert), Some(key)) => Some(Identity { cert, key }),
        (None, None) => None,
        (Some(_), None) => return Err(section.wrong("cert", "needs its key: write key = \"FILE\" too")),
        (None, Some(_)) => {
            return Err(section.wrong("key", "needs its certificate: write cert = \"FILE\" too"));
        }
    };
    let tls = TlsConfig { ca: ca?, identity, server_name: server_name? };
    tls.check().map_err(|fault| section.wrong(fault.key, fault.message))?;
    Ok(tls)
}

fn file(field: &mut Field<'_, '_>) -> Outcome<PathBuf> {
    let path = text(field)?;
    Ok(field.resolve(&path))
}
