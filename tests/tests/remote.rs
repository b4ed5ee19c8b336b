//! Clients on other machines: who shows the right certificate is served as those here are, and nobody else is.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use foraker_tests::bounds::{eventually, seconds};
use foraker_tests::launch::{Ended, Running, image};
use foraker_tests::supervisor::{LIMIT, Serve};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto};

/// An authority, as the administrator of a few machines would have.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Authority(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    /// A folder with a certificate of its own for a name.
    fn folder(&self, name: &str, whom: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("foraker-{}-tls-{whom}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        let write = |file: &str, text: String| std::fs::write(folder.join(file), text).expect(file);
        write("ca.pem", self.0.pem());
        write("cert.pem", certificate.pem());
        write("key.pem", key.serialize_pem());
        folder
    }
}

/// A client's command on this machine, as if it were elsewhere.
fn from_elsewhere(at: SocketAddr, folder: &Path, arguments: &[&str]) -> Ended {
    let (at, folder) = (at.to_string(), folder.display().to_string());
    let where_to = ["--host", &at, "--tls", &folder];
    let verb = if arguments.first() == Some(&"system") { 2 } else { 1 };
    Running::start(&[&arguments[..verb], &where_to, &arguments[verb..]].concat()).wait(LIMIT)
}

/// Where a supervisor says that it listens.
fn address(serve: &Serve) -> SocketAddr {
    let said = || {
        let text = serve.running.stdout();
        let line = text.lines().find_map(|line| line.strip_prefix("clients from elsewhere are served at "));
        line.and_then(|line| line.trim().parse().ok())
    };
    assert!(eventually(seconds(10), || said().is_some()), "{}", serve.running.stdout());
    said().expect("an address")
}

/// What somebody with this much of a certificate gets: none at all.
fn without_a_certificate(at: SocketAddr, folder: &Path) -> Vec<u8> {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_file(folder.join("ca.pem")).expect("an authority");
    roots.add(root).expect("an authority");
    let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("127.0.0.1").expect("a name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a connection");
    let stream = TcpStream::connect(at).expect("somebody listens");
    stream.set_read_timeout(Some(seconds(20))).expect("a timeout");
    let mut stream = StreamOwned::new(connection, stream);
    let asked = stream.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    assert!(asked.is_err() || read.is_err(), "{}", String::from_utf8_lossy(&answer));
    answer
}

#[test]
fn clients_elsewhere_show_a_certificate_and_see_one() {
    let authority = Authority::new();
    let of_daemon = authority.folder("127.0.0.1", "daemon");
    let of_client = authority.folder("client", "client");
    let of_stranger = Authority::new().folder("client", "stranger");
    let of_another = authority.folder("other.example", "another");
    let folder = of_daemon.display().to_string();
    let serve = Serve::start_with("remote", 1, "10.210", &["--listen", "127.0.0.1:0", "--tls", &folder]);
    let at = address(&serve);

    // The whole way of a guest, from elsewhere: the image goes over, its console comes back, and so does its status.
    let hello = image("hello").display().to_string();
    let ran = from_elsewhere(at, &of_client, &["run", "--rm", &hello]);
    assert!(ran.status == 0 && ran.stdout.starts_with("hello from hello"), "{ran}");
    let cells = from_elsewhere(at, &of_client, &["system", "cells"]);
    assert_eq!(cells.stdout.lines().count(), 2, "{cells}");

    // Those who are nobody's: of another authority, without a certificate, without TLS.
    let refused = from_elsewhere(at, &of_stranger, &["ps"]);
    assert!(refused.status == 125 && refused.stderr.lines().count() == 1, "{refused}");
    assert!(refused.stderr.contains("ca.pem"), "{refused}");
    assert_eq!(without_a_certificate(at, &of_client), b"");
    let mut plain = TcpStream::connect(at).expect("somebody listens");
    plain.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n").expect("something is sent");
    plain.set_read_timeout(Some(seconds(20))).expect("a timeout");
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));

    // A daemon that is somebody else is not told anything: the certificate has to be for the host that was asked for.
    let socket = serve.socket.with_extension("2.sock");
    let mut other = foraker_tests::supervisor::serve(
        &socket,
        1,
        "10.211",
        &["--listen", "127.0.0.1:0", "--tls", &of_another.display().to_string()],
    );
    let line = || other.stdout().lines().find_map(|l| l.rsplit_once(' ').map(|(_, at)| at.to_owned()));
    assert!(eventually(seconds(10), || line().is_some()), "{}", other.stderr());
    let of_other = line().and_then(|at| at.parse().ok()).expect("an address");
    let refused = from_elsewhere(of_other, &of_client, &["ps"]);
    assert!(refused.status == 125 && refused.stderr.contains("no supervisor answers"), "{refused}");
    other.signal(libc::SIGTERM);
    assert_eq!(other.wait(LIMIT).status, 0);
    let _ = std::fs::remove_dir_all(foraker_tests::supervisor::state(&socket));

    // Who connects and says nothing is in nobody's way, and is sent away after a while.
    let silent: Vec<_> = (0..200).map(|_| TcpStream::connect(at).expect("somebody listens")).collect();
    assert_eq!(from_elsewhere(at, &of_client, &["ps"]).status, 0);
    assert_eq!(serve.ask(&["ps"]).status, 0);
    let mut first = silent.first().expect("one of them");
    first.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    assert!(matches!(first.read(&mut [0; 1]), Ok(0)), "a silent client is kept");
    drop(silent);
    assert_eq!(serve.stop().status, 0);
    for folder in [of_daemon, of_client, of_stranger, of_another] {
        std::fs::remove_dir_all(folder).expect("a folder");
    }
}

#[test]
fn a_folder_without_certificates_is_said_in_one_line() {
    let folder = std::env::temp_dir().join(format!("foraker-{}-tls-empty", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let folder_text = folder.display().to_string();
    let asked = Running::start(&["ps", "--host", "localhost:1", "--tls", &folder_text]).wait(LIMIT);
    assert!(asked.status == 125 && asked.stderr.contains("the folder needs ca.pem, cert.pem and key.pem"));
    assert_eq!(asked.stderr.lines().count(), 1, "{asked}");
    let alone = Running::start(&["serve", "--listen", "127.0.0.1:0"]).wait(LIMIT);
    assert!(alone.status != 0 && alone.stderr.contains("--tls"), "{alone}");
    std::fs::remove_dir_all(folder).expect("a folder");
}
