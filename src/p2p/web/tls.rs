//! TLS around a WebSocket. It hides nothing that Noise inside does not hide, and proves nothing: it is what a firewall or a
//! proxy expects at port 443.
//!
//! A client takes any certificate whose handshake is signed with its key. A server shows the certificate of the configuration,
//! or one that it has made for itself and forgets when it stops.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use futures_rustls::pki_types::pem::PemObject;
use futures_rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime,
};
use futures_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use futures_rustls::rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature,
    verify_tls13_signature,
};
use futures_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme,
};
use futures_rustls::{TlsAcceptor, TlsConnector};

use crate::p2p::Certificate;

/// What is spoken inside: WebSockets begin as HTTP/1.1.
const ALPN: &[u8] = b"http/1.1";
/// The name in a certificate that this node makes. Nobody checks it.
const NOBODY: &str = "localhost";
/// The longest file of a certificate or a key that is read, in bytes.
const FILE: u64 = 1024 * 1024;

/// Both ends of TLS, as this node uses them.
#[derive(Clone)]
pub(in crate::p2p) struct Tls {
    pub(super) client: TlsConnector,
    /// None where nothing is listened on that needs it.
    pub(super) server: Option<TlsAcceptor>,
}

impl Tls {
    /// # Errors
    /// The certificate or its key cannot be used; the file and why.
    pub(super) fn new(certificate: Option<&Certificate>, serves: bool) -> Result<Tls, String> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let server = match (serves, certificate) {
            (false, _) => None,
            (true, Some(files)) => Some(server(&provider, read(files)?)?),
            (true, None) => Some(server(&provider, made()?)?),
        };
        Ok(Tls {
            client: client(&provider).map_err(|e| e.to_string())?.into(),
            server,
        })
    }
}

fn client(provider: &Arc<CryptoProvider>) -> Result<Arc<ClientConfig>, Error> {
    let verifier = AnyCertificate(provider.signature_verification_algorithms);
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

type Chain = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn server(provider: &Arc<CryptoProvider>, (chain, key): Chain) -> Result<TlsAcceptor, String> {
    let config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
    let mut config = config.map_err(|e| format!("the certificate and its key: {e}"))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Each connection is long; none is resumed.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config).into())
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
    let chain = chain.map_err(|e| at(&files.chain, &e))?;
    if chain.is_empty() {
        return Err(at(&files.chain, &"it has no certificate (PEM)"));
    }
    let pem = zeroize::Zeroizing::new(contents(&files.key)?);
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| at(&files.key, &e))?;
    Ok((chain, key))
}

fn bounded(path: &Path) -> io::Result<Vec<u8>> {
    let found = fs::metadata(path)?;
    if !found.is_file() || found.len() > FILE {
        let why = "expected a file of at most 1 MiB";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    fs::read(path)
}

/// Takes every certificate, and checks that the handshake is signed with its key.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_is_made_names_no_program() {
        let (chain, _) = made().unwrap();
        let has = |word: &str| chain[0].windows(word.len()).any(|w| w == word.as_bytes());
        assert!(has(NOBODY));
        for word in ["rcgen", "byway"] {
            assert!(!has(word), "{word}");
        }
    }
}
