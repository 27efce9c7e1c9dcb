//! TLS to a page of the configuration. Unlike around a WebSocket, where Noise inside names the peer, nothing but the certificate
//! says here whose answer it is: it must lead to an authority that this machine trusts, and name the host that was asked.

use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use futures_rustls::TlsConnector;
use futures_rustls::client::TlsStream;
use futures_rustls::pki_types::pem::PemObject;
use futures_rustls::pki_types::{CertificateDer, ServerName};
use futures_rustls::rustls::crypto::aws_lc_rs;
use futures_rustls::rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt as _};

/// Where systems keep the authorities that they trust, as one file of PEM: Debian, Arch and Alpine; Fedora; openSUSE; others.
pub(super) const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// The longest such file that is read, in bytes: those of today have a quarter of a megabyte.
const LONGEST: u64 = 4 << 20;
/// What is spoken inside.
const ALPN: &[u8] = b"http/1.1";

/// The stream inside TLS, once the server has shown that it is `host`. The authorities are those of the first of `bundles`
/// that there is, read anew each time: they change with updates of the system.
///
/// # Errors
/// Why it is not, or cannot be known to be, in words.
pub(super) async fn inside(
    stream: TcpStream,
    host: &str,
    bundles: &[&str],
) -> Result<TlsStream<Compat<TcpStream>>, String> {
    let host = host.trim_matches(['[', ']']).trim_end_matches('.');
    let name = ServerName::try_from(host.to_owned()).map_err(|_| "its host is no name")?;
    let bundles: Vec<String> = bundles.iter().map(|path| (*path).to_owned()).collect();
    let config = tokio::task::spawn_blocking(move || client(&bundles));
    let config = config.await.map_err(|e| e.to_string())??;
    let begun = TlsConnector::from(Arc::new(config)).connect(name, stream.compat());
    begun.await.map_err(|e| format!("no TLS: {e}"))
}

fn client(bundles: &[String]) -> Result<ClientConfig, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|e| e.to_string())?;
    let mut config = config
        .with_root_certificates(authorities(bundles)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// The authorities that this machine trusts. Those in the file that make no sense count for nothing.
fn authorities(bundles: &[String]) -> Result<RootCertStore, String> {
    for path in bundles {
        let pem = match bounded(Path::new(path)) {
            Ok(pem) => pem,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(format!("{path}: {error}")),
        };
        let mut trusted = RootCertStore::empty();
        let found = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok);
        trusted.add_parsable_certificates(found);
        if trusted.is_empty() {
            return Err(format!("{path} names no authority of certificates"));
        }
        return Ok(trusted);
    }
    Err(
        "this machine trusts no authority of certificates: install those of the system (ca-certificates)"
            .to_owned(),
    )
}

fn bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut pem = Vec::new();
    let file = std::fs::File::open(path)?;
    file.take(LONGEST + 1).read_to_end(&mut pem)?;
    if pem.len() as u64 > LONGEST {
        let why = "expected a file of at most 4 MiB";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    Ok(pem)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use futures::{AsyncReadExt as _, AsyncWriteExt as _};
    use futures_rustls::TlsAcceptor;
    use futures_rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use futures_rustls::rustls::ServerConfig;
    use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, KeyPair};
    use std::net::SocketAddr;
    use tokio::net::TcpListener;

    /// An authority, with its certificate in a file.
    pub(in super::super) struct Authority {
        certificate: Certificate,
        key: KeyPair,
        dir: tempfile::TempDir,
    }

    impl Authority {
        pub(in super::super) fn new() -> Authority {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let certificate = params.self_signed(&key).unwrap();
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("ca.pem"), certificate.pem()).unwrap();
            Authority {
                certificate,
                key,
                dir,
            }
        }

        pub(in super::super) fn bundle(&self) -> String {
            self.dir.path().join("ca.pem").display().to_string()
        }

        /// A server that shows a certificate with that name.
        fn server(&self, name: &str, is_over: bool) -> TlsAcceptor {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new([name.to_owned()]).unwrap();
            if is_over {
                params.not_after = rcgen::date_time_ymd(2020, 1, 1);
            }
            let certificate = params
                .signed_by(&key, &self.certificate, &self.key)
                .unwrap();
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
            let chain = vec![certificate.der().clone()];
            let provider = Arc::new(aws_lc_rs::default_provider());
            let config = ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(chain, key)
                .unwrap();
            Arc::new(config).into()
        }

        /// Serves one page on a certificate with that name, at the address that comes back.
        pub(in super::super) async fn serve(&self, name: &str, is_over: bool) -> SocketAddr {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let at = listener.local_addr().unwrap();
            let server = self.server(name, is_over);
            tokio::spawn(async move {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = server.accept(stream.compat()).await else {
                    return;
                };
                let mut question = [0; 1024];
                let _ = stream.read(&mut question).await;
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n203.0.113.9";
                let _ = stream.write_all(answer).await;
                let _ = stream.flush().await;
                std::future::pending::<()>().await;
            });
            at
        }
    }

    #[test]
    fn a_machine_without_authorities_says_so_and_the_first_bundle_that_there_is_counts() {
        let authority = Authority::new();
        let none = "/nonexistent/ca.pem".to_owned();
        let why = authorities(std::slice::from_ref(&none)).unwrap_err();
        assert!(why.contains("ca-certificates"), "{why}");
        let found = authorities(&[none, authority.bundle()]).unwrap();
        assert_eq!(found.len(), 1);
        let empty = authority.dir.path().join("empty.pem");
        std::fs::write(&empty, "no PEM").unwrap();
        let why = authorities(&[empty.display().to_string()]).unwrap_err();
        assert!(why.contains("names no authority"), "{why}");
        let big = authority.dir.path().join("big.pem");
        let file = std::fs::File::create(&big).unwrap();
        file.set_len(LONGEST + 1).unwrap();
        let why = authorities(&[big.display().to_string()]).unwrap_err();
        assert!(why.contains("4 MiB"), "{why}");
    }
}
