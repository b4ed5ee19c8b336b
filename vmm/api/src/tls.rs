//! Mutual TLS: whoever speaks with a daemon from another machine shows a certificate, and so does the daemon.
//!
//! Both ends keep theirs in a folder of the same form, with PEM files as other daemons have them: `cert.pem` and `key.pem` are its own, `ca.pem` are the
//! authorities that the other end's certificate must come from. TLS 1.3 alone is spoken.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};

/// Authorities of the other end.
const AUTHORITIES: &str = "ca.pem";
/// The own certificate, and those between it and its authority.
const CERTIFICATE: &str = "cert.pem";
/// The own key.
const KEY: &str = "key.pem";
/// Seconds after which a client sees that nobody answers.
pub(crate) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// Why a folder is of no use.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file of it.
    #[error("{}: {why}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// What stands in it makes no whole.
    #[error("certificates in {}: {why}", path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// What a folder has.
struct Identity {
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    provider: Arc<CryptoProvider>,
}

fn read(folder: &Path) -> Result<Identity, TlsError> {
    let certificates = |name: &str| -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let path = folder.join(name);
        let all: Result<Vec<_>, _> =
            CertificateDer::pem_file_iter(&path).and_then(Iterator::collect::<Result<_, _>>);
        match all {
            Ok(found) if found.is_empty() => {
                Err(TlsError::File { path, why: "there is no certificate in it".to_owned() })
            }
            Ok(found) => Ok(found),
            Err(e) => Err(TlsError::File { path, why: said(&e) }),
        }
    };
    let mut roots = RootCertStore::empty();
    for root in certificates(AUTHORITIES)? {
        let refused =
            |e: rustls::Error| TlsError::File { path: folder.join(AUTHORITIES), why: e.to_string() };
        roots.add(root).map_err(refused)?;
    }
    let path = folder.join(KEY);
    let key = PrivateKeyDer::from_pem_file(&path).map_err(|e| TlsError::File { path, why: said(&e) })?;
    let chain = certificates(CERTIFICATE)?;
    Ok(Identity { roots: Arc::new(roots), chain, key, provider: Arc::new(ring::default_provider()) })
}

/// What is wrong with a PEM file, in words for whoever has to mend it.
fn said(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(e) if e.kind() == io::ErrorKind::NotFound => {
            format!("it is not there: the folder needs {AUTHORITIES}, {CERTIFICATE} and {KEY}")
        }
        pem::Error::Io(e) => e.to_string(),
        e => format!("it is no PEM file as it should be: {e}"),
    }
}

/// How a daemon with this folder speaks.
///
/// # Errors
/// See [`TlsError`].
pub fn server(folder: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let unusable = |why: String| TlsError::Unusable { path: folder.to_path_buf(), why };
    let Identity { roots, chain, key, provider } = read(folder)?;
    let clients = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
    let clients = clients.build().map_err(|e| unusable(e.to_string()))?;
    let config = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]);
    let config = config.map_err(|e| unusable(e.to_string()))?.with_client_cert_verifier(clients);
    let mut config = config.with_single_cert(chain, key).map_err(|e| unusable(e.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// How a client with this folder speaks.
///
/// # Errors
/// See [`TlsError`].
pub fn client(folder: &Path) -> Result<Arc<ClientConfig>, TlsError> {
    let unusable = |why: String| TlsError::Unusable { path: folder.to_path_buf(), why };
    let Identity { roots, chain, key, provider } = read(folder)?;
    let servers = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider));
    let servers = servers.build().map_err(|e| unusable(e.to_string()))?;
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]);
    let config = config.map_err(|e| unusable(e.to_string()))?.with_webpki_verifier(servers);
    let mut config = config.with_client_auth_cert(chain, key).map_err(|e| unusable(e.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
