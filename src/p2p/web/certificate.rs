//! The certificate that a server shows inside TLS: that of the configuration, which is read again while the daemon runs, or one
//! that it has made for itself and forgets when it stops.
//!
//! A connection keeps what it was shown. Files that cannot be used change nothing, and are remembered as a failure until they
//! can.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use futures_rustls::TlsAcceptor;
use futures_rustls::pki_types::pem::{self, PemObject};
use futures_rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use futures_rustls::rustls::ServerConfig;
use parking_lot::Mutex;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::tls::{ALPN, provider};
use crate::p2p::Certificate;

/// The name in a certificate that this node makes. Nobody checks it.
const NOBODY: &str = "localhost";
/// The longest file of a certificate or a key that is read, in bytes.
const FILE: u64 = 1024 * 1024;

/// A certificate with those that lead to its authority, and its private key.
type Chain = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The certificate of the files that a configuration names, as it is shown now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CertificateStatus {
    /// The files of the certificate that is shown; none: it was made.
    pub files: Option<Certificate>,
    /// From when to when it is valid, in Unix seconds; none of one that was made, or does not say it in a readable way.
    pub valid: Option<(u64, u64)>,
    /// Why the files could not be used when they were read last; none where they could.
    pub failure: Option<String>,
}

/// What a server shows. Cheap to clone, all clones are one.
#[derive(Clone, Default)]
pub(in crate::p2p) struct Shown(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// None where nothing is listened on that needs it.
    served: ArcSwapOption<Served>,
    failure: Mutex<Option<String>>,
}

/// What is shown, ready for handshakes.
struct Served {
    config: Arc<ServerConfig>,
    chain: Vec<CertificateDer<'static>>,
    files: Option<Certificate>,
}

/// A certificate that was read and is not shown yet.
#[must_use = "nothing is shown until it is put in force"]
pub struct Fresh {
    shown: Shown,
    /// None where nothing is to change.
    served: Option<Served>,
    is_new: bool,
}

impl Fresh {
    /// Shows it to whoever connects from now on. Says whether it is another one than before.
    pub fn show(self) -> bool {
        if let Some(served) = self.served {
            self.shown.0.served.store(Some(Arc::new(served)));
        }
        self.is_new
    }
}

impl Shown {
    /// Shows the certificate of files, or one that is made.
    ///
    /// # Errors
    /// It cannot be used; the file and why.
    pub(super) fn new(files: Option<&Certificate>) -> Result<Shown, String> {
        let served = ArcSwapOption::from_pointee(Served::of(files)?);
        Ok(Shown(Arc::new(Inner {
            served,
            failure: Mutex::default(),
        })))
    }

    /// What takes handshakes now; none where nothing is shown.
    pub(super) fn acceptor(&self) -> Option<TlsAcceptor> {
        let served = self.0.served.load();
        served.as_ref().map(|served| served.config.clone().into())
    }

    /// Reads the files again, where anything is shown at all. One that was made stays while no files are named.
    ///
    /// # Errors
    /// They cannot be used; the file and why. What is shown stays.
    pub(in crate::p2p) fn read(&self, files: Option<&Certificate>) -> Result<Fresh, String> {
        let nothing = Fresh {
            shown: self.clone(),
            served: None,
            is_new: false,
        };
        let Some(before) = self.0.served.load_full() else {
            return Ok(nothing);
        };
        let read = match (files, &before.files) {
            (None, None) => {
                *self.0.failure.lock() = None;
                return Ok(nothing);
            }
            _ => Served::of(files),
        };
        *self.0.failure.lock() = read.as_ref().err().cloned();
        let served = read?;
        let is_new = served.chain != before.chain;
        Ok(Fresh {
            served: Some(served),
            is_new,
            ..nothing
        })
    }

    /// What is shown now, and what became of the last reading; none where nothing is shown.
    pub(in crate::p2p) fn status(&self) -> Option<CertificateStatus> {
        let served = self.0.served.load_full()?;
        let own = served.chain.first().filter(|_| served.files.is_some());
        Some(CertificateStatus {
            files: served.files.clone(),
            valid: own.and_then(|own| validity(own)),
            failure: self.0.failure.lock().clone(),
        })
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The private key stays out of every log.
        f.debug_tuple("Shown").field(&self.status()).finish()
    }
}

impl Served {
    fn of(files: Option<&Certificate>) -> Result<Served, String> {
        let (chain, key) = match files {
            Some(files) => read(files)?,
            None => made()?,
        };
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                let builder = builder.with_no_client_auth();
                builder.with_single_cert(chain.clone(), key)
            });
        let mut config = config.map_err(|e| match files {
            Some(files) => {
                let (chain, key) = (files.chain.display(), files.key.display());
                format!("{chain} and {key}: {e}")
            }
            None => format!("the certificate that was made: {e}"),
        })?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Each connection is long; none is resumed.
        config.send_tls13_tickets = 0;
        Ok(Served {
            config: Arc::new(config),
            chain,
            files: files.cloned(),
        })
    }
}

/// From when to when a certificate is valid, in Unix seconds.
fn validity(certificate: &CertificateDer<'_>) -> Option<(u64, u64)> {
    let (_, read) = X509Certificate::from_der(certificate).ok()?;
    let seconds = |at: i64| u64::try_from(at).unwrap_or(0);
    let valid = read.validity();
    let (from, until) = (valid.not_before.timestamp(), valid.not_after.timestamp());
    Some((seconds(from), seconds(until)))
}

/// A certificate signed with its own key. It names no program: anybody who connects is shown it.
fn made() -> Result<Chain, String> {
    let made = || {
        let mut params = rcgen::CertificateParams::new([NOBODY.to_owned()])?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, NOBODY);
        let key = rcgen::KeyPair::generate()?;
        Ok((params.self_signed(&key)?, key))
    };
    let (cert, key) =
        made().map_err(|e: rcgen::Error| format!("cannot make a certificate: {e}"))?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    Ok((vec![cert.der().clone()], key.into()))
}

/// The certificate of the configuration, with those that lead to its authority.
fn read(files: &Certificate) -> Result<Chain, String> {
    let at = |path: &Path, why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let contents = |path: &Path| bounded(path).map_err(|e| at(path, &e));
    let pem = contents(&files.chain)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|e| {
        let why = format!("its certificate cannot be read (PEM): {e}");
        at(&files.chain, &why)
    })?;
    if chain.is_empty() {
        return Err(at(&files.chain, &"it has no certificate (PEM)"));
    }
    let pem = zeroize::Zeroizing::new(contents(&files.key)?);
    let key =
        PrivateKeyDer::from_pem_slice(&pem).map_err(|e| at(&files.key, &keyless(&pem, &e)))?;
    Ok((chain, key))
}

/// Why a file gives no private key, in words that say what it should hold.
fn keyless(pem: &[u8], why: &pem::Error) -> String {
    let word = b"ENCRYPTED";
    let is_encrypted = pem.windows(word.len()).any(|part| part == word);
    match why {
        _ if is_encrypted => "its private key has a passphrase: write it without one".to_owned(),
        pem::Error::NoItemsFound => "it has no private key (PEM)".to_owned(),
        other => format!("its private key cannot be read (PEM): {other}"),
    }
}

fn bounded(path: &Path) -> io::Result<Vec<u8>> {
    let found = fs::metadata(path)?;
    if !found.is_file() || found.len() > FILE {
        let why = "expected a file of at most 1 MiB";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    fs::read(path)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use futures::{AsyncReadExt as _, AsyncWriteExt as _};
    use futures_rustls::pki_types::ServerName;
    use futures_rustls::{client, server};
    use tokio::io::DuplexStream;
    use tokio_util::compat::{Compat, TokioAsyncReadCompatExt as _};

    use super::*;
    use crate::p2p::web::tls::Tls;

    /// A connection to whoever shows this.
    async fn connect(
        shown: &Shown,
    ) -> (
        client::TlsStream<Compat<DuplexStream>>,
        server::TlsStream<Compat<DuplexStream>>,
    ) {
        let (near, far) = tokio::io::duplex(65_536);
        let name = ServerName::try_from("vpn.example").unwrap();
        let client = Tls::new(None, false).unwrap().client;
        let both = tokio::join!(
            client.connect(name, near.compat()),
            shown.acceptor().unwrap().accept(far.compat())
        );
        (both.0.unwrap(), both.1.unwrap())
    }

    /// What the client of a connection was shown.
    fn seen(client: &client::TlsStream<Compat<DuplexStream>>) -> &[CertificateDer<'static>] {
        client.get_ref().1.peer_certificates().unwrap()
    }

    /// Writes a certificate of its own key, valid in these years, and both files' names.
    fn files(dir: &Path, years: std::ops::Range<i32>) -> Certificate {
        let mut params = rcgen::CertificateParams::new(["vpn.example".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(years.start, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.end, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let files = Certificate {
            chain: dir.join("cert.pem"),
            key: dir.join("key.pem"),
        };
        fs::write(&files.chain, params.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    fn shown(shown: &Shown) -> Vec<CertificateDer<'static>> {
        shown.0.served.load_full().unwrap().chain.clone()
    }

    #[test]
    fn a_certificate_that_is_made_names_no_program() {
        let (chain, _) = made().unwrap();
        let has = |word: &str| chain[0].windows(word.len()).any(|w| w == word.as_bytes());
        assert!(has(NOBODY));
        for word in ["rcgen", "byway"] {
            assert!(!has(word), "{word}");
        }
    }

    #[test]
    fn files_that_changed_are_shown_after_they_were_read_again_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let first = files(dir.path(), 2020..2030);
        let all = Shown::new(Some(&first)).unwrap();
        let before = shown(&all);
        assert!(!all.read(Some(&first)).unwrap().show(), "nothing changed");
        assert_eq!(
            all.status().unwrap().valid,
            Some((1_577_836_800, 1_893_456_000))
        );
        files(dir.path(), 2025..2035);
        let fresh = all.read(Some(&first)).unwrap();
        assert_eq!(shown(&all), before, "it is not in force yet");
        assert!(fresh.show());
        assert_ne!(shown(&all), before);
        assert_eq!(all.status().unwrap().valid.unwrap().1, 2_051_222_400);
        // Without files one is made, which stays while there are none.
        assert!(all.read(None).unwrap().show());
        assert_eq!(all.status(), Some(CertificateStatus::default()));
        assert!(!all.read(None).unwrap().show());
    }

    #[tokio::test]
    async fn who_connects_is_shown_the_new_one_and_a_connection_that_stands_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let first = files(dir.path(), 2020..2030);
        let all = Shown::new(Some(&first)).unwrap();
        let before = shown(&all);
        let (mut client, mut server) = connect(&all).await;
        assert_eq!(seen(&client), before);
        files(dir.path(), 2025..2035);
        assert!(all.read(Some(&first)).unwrap().show());
        let (later, _server) = connect(&all).await;
        assert_eq!(seen(&later), shown(&all));
        assert_ne!(seen(&later), before);
        client.write_all(b"still here").await.unwrap();
        client.flush().await.unwrap();
        let mut got = [0; 10];
        server.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"still here");
    }

    #[test]
    fn files_that_do_not_fit_together_change_nothing_and_are_a_failure_until_they_do() {
        let dir = tempfile::tempdir().unwrap();
        let good = files(dir.path(), 2020..2030);
        let all = Shown::new(Some(&good)).unwrap();
        let before = shown(&all);
        let key = fs::read(&good.key).unwrap();
        // As while an ACME client has written one of the two.
        files(dir.path(), 2025..2035);
        let fresh = fs::read(&good.key).unwrap();
        fs::write(&good.key, &key).unwrap();
        let why = all.read(Some(&good)).map(drop).unwrap_err();
        assert!(
            why.contains("cert.pem and ") && why.contains("key.pem: "),
            "{why}"
        );
        let status = all.status().unwrap();
        assert_eq!(shown(&all), before);
        assert_eq!(
            (status.failure, status.files),
            (Some(why), Some(good.clone()))
        );
        for (chain, key) in [("none.pem", "key.pem"), ("cert.pem", "none.pem")] {
            let gone = Certificate {
                chain: dir.path().join(chain),
                key: dir.path().join(key),
            };
            let why = all.read(Some(&gone)).map(drop).unwrap_err();
            assert!(why.contains("none.pem: "), "{why}");
        }
        fs::write(&good.key, fresh).unwrap();
        assert!(all.read(Some(&good)).unwrap().show());
        assert_eq!(all.status().unwrap().failure, None);
    }

    #[test]
    fn a_file_without_what_it_should_hold_is_named_with_what_that_is() {
        let dir = tempfile::tempdir().unwrap();
        let good = files(dir.path(), 2020..2030);
        let (chain, key) = (fs::read(&good.chain).unwrap(), fs::read(&good.key).unwrap());
        let why = |chain: &[u8], key: &[u8]| {
            fs::write(&good.chain, chain).unwrap();
            fs::write(&good.key, key).unwrap();
            Shown::new(Some(&good)).map(drop).unwrap_err()
        };
        let of_key = |said: &str| format!("{}: {said}", good.key.display());
        let of_chain = |said: &str| format!("{}: {said}", good.chain.display());
        for empty in [&b""[..], b"no PEM", &chain] {
            assert_eq!(why(&chain, empty), of_key("it has no private key (PEM)"));
        }
        assert_eq!(why(&key, &key), of_chain("it has no certificate (PEM)"));
        let locked =
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let said = why(&chain, locked.as_bytes());
        assert_eq!(
            said,
            of_key("its private key has a passphrase: write it without one")
        );
        let cut = |pem: &[u8]| pem[..pem.len() / 2].to_vec();
        let said = why(&chain, &cut(&key));
        assert!(
            said.starts_with(&of_key("its private key cannot be read (PEM): ")),
            "{said}"
        );
        let said = why(&cut(&chain), &key);
        assert!(
            said.starts_with(&of_chain("its certificate cannot be read (PEM): ")),
            "{said}"
        );
    }

    #[test]
    fn where_nothing_is_listened_on_inside_tls_no_file_is_read() {
        let nothing = Shown::default();
        let gone = Certificate {
            chain: PathBuf::from("/nonexistent"),
            key: PathBuf::from("/nonexistent"),
        };
        assert!(!nothing.read(Some(&gone)).unwrap().show());
        assert!(nothing.acceptor().is_none() && nothing.status().is_none());
    }
}
